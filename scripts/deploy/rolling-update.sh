#!/usr/bin/env bash
# rolling-update.sh CONFIG: runs deploy/kubernetes/rolling-update.sh without a cluster. A kubectl of
# our own does to two processes, the sample backend and the gateway, what Kubernetes does to a pod
# with the strategy Recreate: it stops the backend, then the gateway, and starts both again.
set -euo pipefail
cd "$(dirname "$0")/../.."
config=$1
work=$(mktemp -d)
# Also one that nobody has waited for.
cat >"$work/gone" <<'END'
#!/usr/bin/env bash
! [ -e "/proc/$1" ] || grep -q ') Z' "/proc/$1/stat" 2>/dev/null
END
stop() {
    for name in backend gateway; do
        if [ -s "$work/$name" ]; then
            pid=$(<"$work/$name")
            kill "$pid" 2>/dev/null || true
            until "$work/gone" "$pid"; do sleep 0.1; done
        fi
    done
}
trap 'stop; rm -rf "$work"' EXIT
port() { python3 scripts/ports.py; }
spi=$(port) admin=$(port) backend=$(port)
mkdir "$work/bin"
ln -s "$(realpath "$SPIGATE")" "$work/bin/spigate"
cat >"$work/start" <<END
#!/usr/bin/env bash
python3 "$PWD/examples/backends/python/backend.py" $backend >/dev/null 2>&1 &
echo \$! >"$work/backend"
SPIGATE_LISTEN__ADDRESS=127.0.0.1:$spi SPIGATE_ADMIN__ADDRESS=127.0.0.1:$admin \
    SPIGATE_APPS__0__BACKEND__URL=http://127.0.0.1:$backend/internal/spi \
    "$work/bin/spigate" serve --config "$config" >>"$work/log" 2>&1 &
echo \$! >"$work/gateway"
END
cat >"$work/bin/kubectl" <<END
#!/usr/bin/env bash
set -euo pipefail
[ "\$1 \$2" = "--namespace crm" ] || { echo "unexpected: \$*" >&2; exit 1; }
case "\${*:3}" in
    "rollout restart deployment/crm-spigate")
        for name in backend gateway; do
            pid=\$(<"$work/\$name")
            kill "\$pid"
            until "$work/gone" "\$pid"; do sleep 0.1; done
        done
        sleep 1
        "$work/start"
        ;;
    "rollout status deployment/crm-spigate --timeout=10m")
        python3 - <<PY
import time, urllib.request
for _ in range(120):
    try:
        urllib.request.urlopen("http://127.0.0.1:$admin/readyz", timeout=5)
        break
    except OSError:
        time.sleep(0.5)
else:
    raise SystemExit("the new gateway does not get ready")
PY
        ;;
    *) echo "unexpected: \$*" >&2; exit 1 ;;
esac
END
chmod +x "$work/gone" "$work/start" "$work/bin/kubectl"
"$work/start"
if ! PATH=$work/bin:$PATH timeout 300 deploy/kubernetes/rolling-update.sh --namespace crm --deployment crm-spigate \
    --url "http://127.0.0.1:$spi/spi" --key-file "$(dirname "$config")/keys/2026-11" >"$work/said" 2>&1; then
    echo "error: deploy/kubernetes/rolling-update.sh" >&2
    cat "$work/said" "$work/log" >&2
    exit 1
fi
tail -n 1 "$work/said"
grep -q ' [1-9][0-9]* of them sent more than once, 0 lost, 0 delivered twice' "$work/said" || {
    echo "error: no order met the update; it shows nothing" >&2
    exit 1
}
