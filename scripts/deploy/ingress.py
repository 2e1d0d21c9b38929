"""What can be said of deploy/traefik and deploy/kubernetes/ingress-nginx without Traefik and without a
cluster: that they name settings that exist, ask the companion by the right contract, take every
spelling of spigate's headers off a request, and log no query."""

import pathlib
import re
import sys

import yaml

deploy = pathlib.Path("deploy")
problems = []


def problem(where, text):
    problems.append(f"{where}: {text}")


def load(path):
    return yaml.safe_load((deploy / path).read_text(encoding="utf-8"))


# The settings that these files use, as Traefik 3's reference has them. A word that is not here is a
# typing error, or has to be looked up first.
TRAEFIK = {
    "traefik/traefik.yml": {
        "entryPoints": {"*": {"address": str}},
        "providers": {"file": {"filename": str}},
        "log": {"level": str},
        "accessLog": {
            "format": str,
            "fields": {"defaultMode": str, "names": {"*": str}, "headers": {"defaultMode": str}},
        },
    },
    "traefik/dynamic.yml": {
        "http": {
            "routers": {"*": {"entryPoints": list, "rule": str, "middlewares": list, "service": str, "tls": dict}},
            "middlewares": {
                "*": {"forwardAuth": {"address": str, "trustForwardHeader": bool, "authResponseHeadersRegex": str}}
            },
            "services": {"*": {"loadBalancer": {"servers": list}}},
        },
        "tls": {"certificates": list},
    },
}


def known(where, value, shape):
    if isinstance(shape, type):
        if not isinstance(value, shape):
            problem(where, f"is no {shape.__name__}")
    elif not isinstance(value, dict):
        problem(where, "is no table")
    else:
        for key, below in value.items():
            if key in shape or "*" in shape:
                known(f"{where}.{key}", below, shape.get(key, shape.get("*")))
            else:
                problem(where, f"{key} is not known")


def asks(where, url, path):
    if not re.fullmatch(rf"http://[a-z0-9.-]+:8081{path}", url):
        problem(where, f"{url} is not the companion's {path}")


# Whatever a client may try, and what it may not lose.
POSING = """X-Spi-App x_spi_app X_spi-app X.SPI.App X-Spi-Param-Order-Id X_spi_param_order_id X-Spi-Anything
Idempotency-Key idempotency_key Idempotency.Key X-Request-Id x_request_id""".split()
HARMLESS = "User-Agent X-Spinach App_signature Traceparent X-Forwarded-For X-Spi Xx-Spi-App Idempotency-Key-Of-Mine".split()


def traefik():
    for path, shape in TRAEFIK.items():
        known(path, load(path), shape)
    static, dynamic = load("traefik/traefik.yml"), load("traefik/dynamic.yml")["http"]
    fields = static["accessLog"]["fields"]
    if static["accessLog"]["format"] != "json" or fields["defaultMode"] != "drop" or fields["headers"]["defaultMode"] != "drop":
        problem("traefik/traefik.yml", "logs more than it names")
    for name in ("RequestPath", "RequestLine"):
        if fields["names"].get(name, "drop") != "drop":
            problem("traefik/traefik.yml", f"logs {name}, which has the query")
    for name, router in dynamic["routers"].items():
        # The first one, so that nothing changes the request before it.
        auth = dynamic["middlewares"][router["middlewares"][0]]["forwardAuth"]
        if router["service"] not in dynamic["services"] or not set(router["entryPoints"]) <= set(static["entryPoints"]):
            problem("traefik/dynamic.yml", f"{name} leads nowhere")
        asks("traefik/dynamic.yml", auth["address"], "/companion/forward-auth")
        if auth["trustForwardHeader"]:
            problem("traefik/dynamic.yml", "a client could say which request is verified")
        # Go's syntax is Python's here.
        pattern = re.compile(auth["authResponseHeadersRegex"])
        for header in POSING:
            if not pattern.search(header):
                problem("traefik/dynamic.yml", f"lets a client's {header} pass")
        for header in HARMLESS:
            if pattern.search(header):
                problem("traefik/dynamic.yml", f"takes {header} off")


def ingress_nginx():
    where = "kubernetes/ingress-nginx"
    annotations = load(f"{where}/ingress.yaml")["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    names = {"auth-url", "auth-response-headers", "proxy-buffer-size", "proxy-connect-timeout", "proxy-read-timeout", "proxy-next-upstream"}
    for name, value in annotations.items():
        if name.removeprefix(prefix) not in names:
            problem(where, f"the annotation {name} is not known")
        if not isinstance(value, str):
            problem(where, f"the annotation {name} is no text")
    asks(where, annotations[f"{prefix}auth-url"], "/companion/auth-request")
    headers = annotations[f"{prefix}auth-response-headers"]
    # The controller's own check; it refuses the whole Ingress else.
    if not re.fullmatch(r"[a-zA-Z0-9\-_]+(,[a-zA-Z0-9\-_]+)*", headers):
        problem(where, "auth-response-headers is no list of names")
    if len(set(headers.lower().split(","))) != len(headers.split(",")):
        problem(where, "a header stands twice")
    data = load(f"{where}/configmap.yaml")["data"]
    if not all(isinstance(value, str) for value in data.values()):
        problem(where, "a setting is no text")
    for variable in ("$request ", '$request"', "$request_uri", "$args", "$query_string", "$http_referer", "$is_args"):
        if variable in data["log-format-upstream"]:
            problem(where, f"logs {variable}, which has the query")


traefik()
ingress_nginx()
for line in problems:
    print(f"error: {line}", file=sys.stderr)
sys.exit(1 if problems else 0)
