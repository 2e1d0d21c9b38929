"""What scripts/deploy/kubernetes asks about rendered manifests. Each command ends with code 1 and
says why if something is not as it must be.

pods FILE...          every pod keeps the pod security standard "restricted", has what it mounts, and
                      ends in the time that its configuration asks for
config FILE DIR       writes the configuration of a rendered file to DIR, as the pod would see it
command FILE          the gateway's arguments and the paths of its probes, a word a line
same KUSTOMIZE HELM   two renderings say the same
sidecars FILE FILE    the gateways of two pods say the same
helm CHART DIR        lints a chart, shows that its schema refuses what it must, and renders it
"""

import copy
import json
import pathlib
import re
import sys
import tomllib

import yaml

problems = []


def problem(where, text):
    problems.append(f"{where}: {text}")


def load(path):
    with open(path, encoding="utf-8") as file:
        return [item for item in yaml.safe_load_all(file) if item]


def of_kind(objects, kind):
    return [item for item in objects if item["kind"] == kind]


def named(objects, kind, name):
    return next((item for item in of_kind(objects, kind) if item["metadata"]["name"] == name), None)


def containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


def gateway(pod):
    return next(item for item in containers(pod) if item["name"] == "spigate")


def restricted(where, pod):
    """The controls of https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            problem(where, f"{key} is set")
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in pod.get("volumes", []):
        if not (set(volume) - {"name"}) <= allowed:
            problem(where, f"volume {volume['name']} is of a kind that is not allowed")
    shared = pod.get("securityContext", {})
    for container in containers(pod):
        here, own = f"{where}, container {container['name']}", container.get("securityContext", {})
        effective = {**shared, **own}
        if effective.get("runAsNonRoot") is not True or effective.get("runAsUser") == 0:
            problem(here, "may run as root")
        if effective.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            problem(here, "has no seccomp profile")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            problem(here, "may gain privileges")
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            problem(here, "keeps capabilities")
        # Not of the standard, ours.
        if own.get("readOnlyRootFilesystem") is not True:
            problem(here, "can write its root")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            problem(here, "has no limit for its memory")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def pods(paths):
    for path in paths:
        objects = load(path)
        deployments = of_kind(objects, "Deployment")
        if not deployments:
            problem(path, "has no Deployment")
        for deployment in deployments:
            where, pod = f"{path}, {deployment['metadata']['name']}", deployment["spec"]["template"]["spec"]
            restricted(where, pod)
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            for kind, selector in (
                ("Deployment", lambda spec: spec["selector"]["matchLabels"]),
                ("Service", lambda spec: spec["selector"]),
                ("NetworkPolicy", lambda spec: spec["podSelector"].get("matchLabels", {})),
                ("PodDisruptionBudget", lambda spec: spec["selector"]["matchLabels"]),
            ):
                for item in of_kind(objects, kind):
                    wanted = selector(item["spec"])
                    if not wanted or not wanted.items() <= labels.items():
                        problem(where, f"is not what {kind} {item['metadata']['name']} selects")
            volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
            for container in containers(pod):
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        problem(where, f"has no volume {mount['name']}")
                    if "subPath" in mount:
                        problem(where, f"{mount['mountPath']} would never change")
            account = pod.get("serviceAccountName")
            if account and not named(objects, "ServiceAccount", account):
                problem(where, f"has no ServiceAccount {account}")
            ports = {port["name"]: port["containerPort"] for port in gateway(pod)["ports"]}
            for item in of_kind(objects, "Service"):
                # The admin port is not for everybody.
                if [port["targetPort"] for port in item["spec"]["ports"]] != [ports.get("spi", ports.get("companion"))]:
                    problem(where, "its Service leads elsewhere than to the port spi or companion")
            for item in of_kind(objects, "NetworkPolicy"):
                named_there = {port["port"] for rule in item["spec"]["ingress"] for port in rule["ports"]}
                if not named_there <= set(ports.values()):
                    problem(where, "its NetworkPolicy lets in to a port that the gateway has not")
            if configuration := configuration_of(objects, pod):
                agrees(where, pod, tomllib.loads(configuration))
            else:
                problem(where, "has no configuration")


def configuration_of(objects, pod):
    for volume in pod["volumes"]:
        if name := volume.get("configMap", {}).get("name"):
            item = named(objects, "ConfigMap", name)
            if item and "spigate.toml" in item["data"]:
                return item["data"]["spigate.toml"]
    return None


def agrees(where, pod, config):
    """Whether pod and configuration say the same of ports, times and sizes."""
    container = gateway(pod)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for key, port in (("listen", "spi"), ("companion", "companion"), ("admin", "admin")):
        if port in ports and config[key]["address"] != f"0.0.0.0:{ports[port]}":
            problem(where, f"{key}.address is not the port {port}")
    if "spi" not in ports and not config["listen"]["address"].startswith("127.0.0.1:"):
        problem(where, "listen.address is open, and is no port of the pod")
    stop = config["shutdown"]
    own = seconds(stop["delay"]) + seconds(stop["grace"]) + 7
    if container in pod.get("initContainers", []):
        # The backend has ended when a sidecar is told to stop: it waits for nothing but its journal.
        sleep = max(item["lifecycle"]["preStop"]["sleep"]["seconds"] for item in pod["containers"])
        own = sleep + max(seconds(app["backend"]["timeout"]) for app in config["apps"]) + seconds(stop["delay"]) + 7
        if container.get("restartPolicy") != "Always":
            problem(where, "the gateway is an init container that would have to end")
    if pod["terminationGracePeriodSeconds"] < own:
        problem(where, f"terminationGracePeriodSeconds is shorter than the {own:g} s that a stop may take")
    limits, unit = config["limits"], 1024
    worst = 20 * unit + limits["connections"] * 128
    if any("backend" in app for app in config["apps"]):
        worst += limits["in_flight"] * int(limits["reply_bytes"].removesuffix("KiB"))
    given = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * unit
    if given < worst:
        problem(where, f"{worst // unit} MiB may be needed, and {given // unit} are given")


def config(path, directory):
    objects = load(path)
    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
    text = configuration_of(objects, pod)
    target = pathlib.Path(directory)
    (target / "keys").mkdir(parents=True, exist_ok=True)
    mounts = {mount["mountPath"]: mount["name"] for mount in gateway(pod)["volumeMounts"]}
    for app in tomllib.loads(text)["apps"]:
        for key in app["keys"]:
            file = pathlib.PurePath(key["file"])
            if str(file.parent) not in mounts:
                problem(path, f"the key {file} is in no volume")
            (target / "keys" / file.name).write_text("a-key-for-this-check\n")
    for mount in mounts:
        local = {"/etc/spigate": target, "/run/secrets/spigate": target / "keys", "/var/lib/spigate": target}[mount]
        text = text.replace(f"{mount}/", f"{local}/")
    (target / "spigate.toml").write_text(text)


def command(path):
    pod = of_kind(load(path), "Deployment")[0]["spec"]["template"]["spec"]
    container = gateway(pod)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        print(f"{container[probe]['httpGet']['port']}:{container[probe]['httpGet']['path']}")
    print("--")
    print("\n".join(container["args"]))


def comparable(objects):
    """What two tools must agree on: without their own labels, and with texts of configurations read."""
    result = {}
    for item in copy.deepcopy(objects):
        labels = item["metadata"].pop("labels", {})
        if labels.get("app.kubernetes.io/instance") != "spigate":
            problem(item["metadata"]["name"], "lacks the label app.kubernetes.io/instance")
        if item["kind"] == "ConfigMap":
            item["data"]["spigate.toml"] = tomllib.loads(item["data"]["spigate.toml"])
        result[f"{item['kind']} {item['metadata']['name']}"] = item
    return result


def differences(path, one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(set(one) | set(other), key=str):
            differences(f"{path}.{key}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            differences(f"{path}[{index}]", *pair)
    elif one != other:
        problem(path, f"{json.dumps(one)} there, {json.dumps(other)} here")


def same(kustomize, chart):
    differences("", comparable(load(kustomize)), comparable(load(chart)))


def sidecars(one, other):
    """Names of volumes are the pod's affair."""
    found = []
    for path in (one, other):
        pod = of_kind(load(path), "Deployment")[0]["spec"]["template"]["spec"]
        container = gateway(pod)
        for mount in container["volumeMounts"]:
            del mount["name"]
        found.append({"container": container, "securityContext": pod["securityContext"]})
    differences("", *found)


def helm(chart_path, directory):
    from helm_python import chart
    from helm_python.chart import Chart
    from helm_python.errors import HelmError

    # An icon is recommended, which is no warning.
    report = chart.lint(chart_path, strict=True)
    for message in report["messages"]:
        if message["severity"] > 1:
            problem(chart_path, f"{message['path']}: {message['error']}")
    for error in report["errors"]:
        problem(chart_path, error)
    loaded = Chart.load(chart_path)
    name = loaded.name
    wrong = [{"imag": {}}, {"config": "nothing"}, {"keys": {"existingSecret": ""}}, {"ports": {"spi": 0}}, {"replicas": "2"}, {"companion": "yes"}, {"ports": {"companion": 0}}]
    if name != "spigate":
        wrong = [{"spigate": values} for values in wrong]
    for values in wrong:
        try:
            loaded.validate_schema(values)
            problem(chart_path, f"the schema allows {json.dumps(values)}")
        except HelmError:
            pass
    variants = {"default": {}}
    if name == "spigate":
        with open(pathlib.Path(chart_path, "values-companion.yaml"), encoding="utf-8") as file:
            variants["companion"] = yaml.safe_load(file)
        variants["fixed"] = {
            "autoscaling": {"enabled": False}, "networkPolicy": {"enabled": False}, "journal": {"existingSecret": ""},
            "image": {"tag": "edge"}, "podAnnotations": {"a": "b"}, "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}], "imagePullSecrets": [{"name": "pull"}],
            "affinity": {"nodeAffinity": {}},
        }
    for variant, values in variants.items():
        rendered = loaded.render(values, name=name, namespace=name)
        texts = [text for path, text in sorted(rendered.items()) if not path.endswith("NOTES.txt") and text.strip()]
        pathlib.Path(directory, f"helm-{name}-{variant}.yaml").write_text("\n---\n".join(texts))


if __name__ == "__main__":
    try:
        {"pods": lambda *paths: pods(paths), "config": config, "command": command, "same": same, "sidecars": sidecars, "helm": helm}[
            sys.argv[1]
        ](*sys.argv[2:])
    except ImportError as error:
        problem(sys.argv[1], error)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if problems else 0)
