#!/usr/bin/env bash
# Updates a Deployment while orders come in, as the platform sends them, and counts what became of
# them. Ends with code 0 if every order was answered with success, and with the same instance when it
# came again after the update.
#
#   deploy/kubernetes/rolling-update.sh --namespace crm --deployment crm-spigate --key-file app_key
#
# For a cluster that serves no customers: it makes test orders, each of which becomes a tenant in the
# backend. It needs kubectl, spigate (the binary, for `spigate call`) and the app's key.
set -euo pipefail

usage() {
    cat <<'END'
--key-file FILE      the app's key
--deployment NAME    what is updated                     (spigate)
--namespace NAME     where it is                         (kubectl's own)
--service NAME       reached by kubectl port-forward     (the deployment's name)
--path PATH          the app's path                      (/spi)
--url URL            instead of a port-forward: the notify URL, through the ingress
--action NAME        what is ordered                     (CreateAppInstance)
--dialect NAME       the app's dialect                   (spigate's first)
--image IMAGE        the update: a new image of spigate; without it the pods are only replaced
--before N           orders before the update            (5)
--patience SECONDS   how long the platform tries         (180)
END
}

deployment=spigate namespace='' service='' path=/spi url='' key='' action=CreateAppInstance dialect=() image=''
before=5 patience=180
while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --*) [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; } ;;&
        --key-file) key=$2 ;;
        --deployment) deployment=$2 ;;
        --namespace) namespace=$2 ;;
        --service) service=$2 ;;
        --path) path=$2 ;;
        --url) url=$2 ;;
        --action) action=$2 ;;
        --dialect) dialect=(--dialect "$2") ;;
        --image) image=$2 ;;
        --before) before=$2 ;;
        --patience) patience=$2 ;;
        *) echo "error: unknown argument $1; see --help" >&2; exit 2 ;;
    esac
    shift 2
done
[ -r "$key" ] || { echo "error: --key-file has to name a file with the app's key" >&2; exit 2; }
for tool in kubectl spigate; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not on PATH" >&2; exit 2; }
done
in_namespace=()
[ -z "$namespace" ] || in_namespace=(--namespace "$namespace")

work=$(mktemp -d)
children=()
finish() {
    touch "$work/stop"
    for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

if [ -z "$url" ]; then
    # A port-forward ends with its pod: begin it again, as an ingress would turn to another one.
    port=18080
    (
        trap '[ -z "${forward:-}" ] || kill "$forward"; exit' TERM
        while [ ! -e "$work/stop" ]; do
            kubectl ${in_namespace[@]+"${in_namespace[@]}"} port-forward "service/${service:-$deployment}" "$port:80" >/dev/null 2>&1 &
            forward=$!
            wait "$forward" || true
            sleep 0.5
        done
    ) &
    children+=($!)
    url=http://127.0.0.1:$port$path
fi

# order NUMBER: sends it until it is answered with success, as the platform would; prints how often it
# was sent and the instance, or nothing if it was given up.
order() {
    local tries=0 reply until=$((SECONDS + patience))
    while [ "$SECONDS" -lt "$until" ]; do
        tries=$((tries + 1))
        if reply=$(spigate call --url "$url" --key-file "$key" ${dialect[@]+"${dialect[@]}"} --action "$action" --sample \
            --field "order_id=$run-$1" 2>/dev/null); then
            printf '%s %s\n' "$tries" "$(sed -nE '1s/.*"instanceId": *"([^"]*)".*/\1/p' <<<"$reply")"
            return
        fi
        sleep 1
    done
}

run=update-$(date +%s)-$$
: >"$work/orders"
(
    number=0
    while [ ! -e "$work/stop" ]; do
        number=$((number + 1))
        read -r tries instance < <(order "$number") || tries=
        printf '%s %s %s\n' "$number" "${tries:-lost}" "${instance:-}" >>"$work/orders"
    done
) &
sender=$!
children+=("$sender")

echo "orders $run-1, $run-2, ... go to $url"
until [ "$(wc -l <"$work/orders")" -ge "$before" ]; do sleep 0.2; done
if grep -q lost "$work/orders"; then
    echo "error: orders fail already before the update; send one with: spigate call --url $url --action $action --sample" >&2
    exit 1
fi

echo "updating deployment/$deployment"
if [ -n "$image" ]; then
    kubectl ${in_namespace[@]+"${in_namespace[@]}"} set image "deployment/$deployment" "spigate=$image"
else
    kubectl ${in_namespace[@]+"${in_namespace[@]}"} rollout restart "deployment/$deployment"
fi
kubectl ${in_namespace[@]+"${in_namespace[@]}"} rollout status "deployment/$deployment" --timeout=10m

# A few more, at the new pods.
enough=$(($(wc -l <"$work/orders") + before))
until [ "$(wc -l <"$work/orders")" -ge "$enough" ]; do sleep 0.2; done
touch "$work/stop"
wait "$sender"

lost=0 again=0 doubled=0 orders=0
while read -r number tries instance; do
    orders=$((orders + 1))
    if [ "$tries" = lost ]; then
        echo "lost: $run-$number"
        lost=$((lost + 1))
        continue
    fi
    [ "$tries" = 1 ] || again=$((again + 1))
    # The platform never heard the answer, and comes again.
    read -r _ replayed < <(order "$number") || replayed=
    if [ "$replayed" != "$instance" ]; then
        echo "delivered twice: $run-$number made $instance, and then ${replayed:-nothing}"
        doubled=$((doubled + 1))
    fi
done <"$work/orders"
shared=$(awk '$3 != "" { print $3 }' "$work/orders" | sort | uniq -d | wc -l)
[ "$shared" = 0 ] || echo "$shared instances were given to more than one order"

echo "$orders orders, $again of them sent more than once, $lost lost, $doubled delivered twice"
[ "$lost" = 0 ] && [ "$doubled" = 0 ] && [ "$shared" = 0 ]
