"""What scripts/deploy/monitoring checks beyond the tools themselves.

    monitoring.py static              alerts, runbook, monitors and dashboard fit each other
    monitoring.py prometheus-rule     prints rules.yml as an object of the Prometheus operator
    monitoring.py live SPIGATE        a real run, scraped by a real Prometheus: no query is empty
"""

import concurrent.futures
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))
from ports import free_port

PROMETHEUS = ROOT / "deploy/prometheus"
RUNBOOK = ROOT / "docs/runbook.md"
DASHBOARD = ROOT / "deploy/grafana/spigate.json"
TESTS = ["rules_test.yml", "rules_days_test.yml"]

problems = []


def expect(holds, problem):
    if not holds:
        problems.append(problem)


def rules():
    return [rule for group in read_yaml("rules.yml")["groups"] for rule in group["rules"]]


def read_yaml(name):
    return yaml.safe_load((PROMETHEUS / name).read_text())


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


# --- static ---------------------------------------------------------------------------------


def anchors_of(page):
    """As GitHub and others make them: small letters, spaces to hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links():
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK.read_text()):
        name, _, anchor = target.partition("#")
        page = RUNBOOK.parent / name if name else RUNBOOK
        expect(page.exists(), f"docs/runbook.md links to {target}, which is not there")
        expect(not anchor or (page.exists() and anchor in anchors_of(page)), f"docs/runbook.md: no heading for {target}")


def check_annotations():
    """Each alert says how urgent it is, what it means, and where the runbook has it."""
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.M)
    anchors = anchors_of(RUNBOOK)
    for name, rule in alerts().items():
        annotations = rule.get("annotations", {})
        expect(rule.get("labels", {}).get("severity") in ("critical", "warning"), f"{name}: severity")
        for wanted in ("summary", "description"):
            expect(annotations.get(wanted, "").strip(), f"{name}: no {wanted}")
        url = annotations.get("runbook_url", "")
        page, _, anchor = url.partition("#")
        expect(page == "docs/runbook.md" and anchor == name.lower(), f"{name}: runbook_url is {url!r}")
        expect(anchor in anchors, f"{name}: docs/runbook.md has no heading for #{anchor}")
    for heading in headings:
        expect(not heading.startswith("Spigate") or heading in alerts(), f"docs/runbook.md: no alert is called {heading}")


def check_tests():
    """Each alert is seen to fire, and in the same test not to fire."""
    fires, rests = set(), set()
    for file in TESTS:
        for test in read_yaml(file)["tests"]:
            points = [
                {re.search(r'alertname="(\w+)"', sample["labels"])[1] for sample in point["exp_samples"]}
                for point in test["promql_expr_test"]
                if "ALERTS" in point["expr"]
            ]
            subject = test["name"].split(",")[0]
            expect(subject in alerts(), f"{file}: {test['name']} tests no alert")
            if any(subject in point for point in points):
                fires.add(subject)
            if any(subject not in point for point in points):
                rests.add(subject)
    for name in alerts():
        expect(name in fires, f"no test in which {name} fires")
        expect(name in rests, f"no test in which {name} does not fire")


def prometheus_rule():
    """As docs/operations.md makes it."""
    command = re.search(r"^\((printf 'apiVersion.*?)\) \| kubectl", (ROOT / "docs/operations.md").read_text(), re.M | re.S)
    return subprocess.run(["bash", "-c", command[1]], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def check_monitors():
    """The operator's objects by our schema; Kubernetes' own by those of kubernetes-validate."""
    import jsonschema
    import kubernetes_validate

    schema = json.loads((pathlib.Path(__file__).parent / "monitor.schema.json").read_text())
    documents = [
        (name, document)
        for name in ("servicemonitor.yaml", "podmonitor.yaml")
        for document in yaml.safe_load_all((PROMETHEUS / name).read_text())
        if document
    ]
    documents.append(("rules.yml as a PrometheusRule", yaml.safe_load(prometheus_rule())))
    expect(len(documents) == 4, f"{len(documents)} objects for the operator, not 4")
    for name, document in documents:
        try:
            if document["apiVersion"] == "v1":
                kubernetes_validate.validate(document, "1.29", strict=True)
            else:
                kind = document["kind"] if document["kind"] in schema["$defs"] else "PrometheusRule"
                part = {"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"}
                jsonschema.validate(document, part, cls=jsonschema.Draft202012Validator)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            problems.append(f"{name}: {error.message}")
    expect(documents[-1][1]["spec"]["groups"] == read_yaml("rules.yml")["groups"], "the PrometheusRule has other rules")
    service, monitor = documents[0][1], documents[1][1]
    labels = monitor["spec"]["selector"]["matchLabels"]
    expect(labels.items() <= service["metadata"]["labels"].items(), "servicemonitor.yaml does not select its Service")
    ports = {port["name"] for port in service["spec"]["ports"]}
    expect({endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports, "servicemonitor.yaml: port")


def panels():
    return json.loads(DASHBOARD.read_text())["panels"]


def check_dashboard():
    """By Grafana's own types: what they do not know does not survive them."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text())
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))

    def compare(given, known, where):
        if isinstance(given, dict) and isinstance(known, dict):
            for key, value in given.items():
                if key in known:
                    compare(value, known[key], f"{where}.{key}")
                else:
                    expect(value is None, f"spigate.json: Grafana does not know {where}.{key}")
        elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
            for index, (left, right) in enumerate(zip(given, known)):
                compare(left, right, f"{where}[{index}]")
        else:
            expect(given == known, f"spigate.json: {where} is {given!r}, understood as {known!r}")

    compare(dashboard, understood, "")
    ids = [panel["id"] for panel in panels()]
    expect(len(ids) == len(set(ids)), "spigate.json: two panels have one id")
    taken = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        expect(place["x"] + place["w"] <= 24 and not cells & taken, f"spigate.json: {panel['title']} overlaps")
        taken |= cells
        if panel["type"] == "row":
            continue
        expect(panel.get("description"), f"spigate.json: {panel['title']} has no description")
        for target in panel["targets"]:
            expect(target["datasource"]["uid"] == "${datasource}", f"spigate.json: data source of {panel['title']}")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
    expect({name for name in used if not name.startswith("__")} == variables, f"spigate.json: variables {used} of {variables}")


def check_names():
    """Every metric that is asked for is in the catalogue, and every recording is made."""
    catalogue = set(re.findall(r"`(spigate_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    made = {rule["record"] for rule in rules() if "record" in rule}
    expressions = [rule["expr"] for rule in rules()] + [query for _, query in dashboard_queries()] + runbook("promql")
    used = {name for expression in expressions for name, _ in selectors(expression)}
    for name in used:
        if ":" in name:
            expect(name in made, f"no rule records {name}")
        elif name.startswith("spigate_"):
            expect({name, re.sub(r"_(bucket|sum|count)$", "", name)} & catalogue, f"docs/metrics.md has no {name}")


# --- queries --------------------------------------------------------------------------------

def selectors(expression):
    """What an expression reads: names of metrics and recordings, with their matchers."""
    names = r"(?<![\w:\"])((?:spigate_|process_)\w+|up|[a-z]\w*:[\w:]+)(?![\w:\"(])(\{[^}]*\})?"
    return set(re.findall(names, re.sub(r"#.*", "", expression)))


def runbook(language):
    """The lines of its code blocks in a language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", RUNBOOK.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.strip().split("\n")]


def dashboard_queries():
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


# --- live -----------------------------------------------------------------------------------


class Backend(http.server.BaseHTTPRequestHandler):
    """A backend whose manners stand in the order's number."""

    protocol_version = "HTTP/1.1"
    instances = 0
    # Until then, what is slow is not done.
    goes_on = threading.Event()

    def do_GET(self):
        """An observed app's request that breaks a rule comes as it was sent."""
        self.answer("ok")

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("order_id", "")
        self.answer(order.split("-")[0])

    def answer(self, manner):
        status, reply = 200, {"success": True}
        if manner == "fail":
            status = 503
        elif manner == "no":
            reply = {"success": False, "message": "sold out"}
        elif manner == "broken":
            reply = {"success": "yes"}
        elif manner == "slow":
            Backend.goes_on.wait(30)
        if reply["success"] is True:
            Backend.instances += 1
            reply["instanceId"] = f"i-{os.getpid()}-{Backend.instances}"
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def get(url):
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=10, context=unverified) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(what, holds, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"error: waited {seconds} s for {what}")


class Run:
    """A gateway with its backend, and what is asked of it."""

    def __init__(self, binary, directory):
        self.binary, self.directory = binary, directory
        # Answers that came after `answer_within`, so far.
        self.late = 0
        self.spi, self.admin, self.prometheus = free_port(), free_port(), free_port()
        (directory / "key").write_text("a-key-of-the-platform")
        (directory / "other-key").write_text("a-key-of-nobody")
        backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        self.backend = f"http://127.0.0.1:{backend.server_port}/spi"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
        make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "tls.key", "-out", "tls.crt"]
        subprocess.run(make, cwd=directory, check=True, capture_output=True)
        self.config = self.make_config()

    def configure(self, text):
        """In one step: the gateway may look at any time."""
        config = self.directory / "spigate.toml"
        config.with_suffix(".new").write_text(text)
        os.replace(config.with_suffix(".new"), config)

    def make_config(self):
        text = f'[listen]\naddress = "127.0.0.1:{self.spi}"\ntls = {{ certificate = "tls.crt", key = "tls.key" }}\n'
        text += f'[admin]\naddress = "127.0.0.1:{self.admin}"\n[limits]\nin_flight = 3\n[log]\naccess = false\n'
        circuit = '[apps.backend.health]\nfailures = 1\nopen_for = "5m"\n'
        for name, extra, url, more in (
            ("crm", "", self.backend, ""),
            ("hasty", "", self.backend, 'answer_within = "1s"\nconnect_timeout = "1s"\n'),
            ("careful", 'on_unconfirmed = "hold"\n', self.backend, ""),
            ("observed", "enforce = false\n", self.backend, ""),
            ("pair", "", f"http://127.0.0.1:{free_port()}/spi", f'failover = ["{self.backend}"]\n{circuit}'),
        ):
            text += f'[[apps]]\nname = "{name}"\npath = "/{name}"\ndialect = "qingcloud-appcenter"\n{extra}'
            text += f'keys = [{{ id = "k", file = "key" }}]\n[apps.backend]\nurl = "{url}"\n{more}'
        return text

    def order(self, app, order, expected, key="key", more=(), lean=False):
        command = [self.binary, "sign", "--url", f"https://127.0.0.1:{self.spi}/{app}", "--key-file", self.directory / key]
        command += ["--action", "CreateAppInstance", "--field", f"order_id={order}", *more]
        if lean:
            for field in ("user_id=u", "app_id=a", "spec=s", "period=1_month", "cloud_info={}"):
                command += ["--field", field]
        else:
            command += ["--sample"]
        url = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[0]
        status, body = get(url)
        reply = json.loads(body)
        got = reply.get("code") or status
        if expected is not None and got != expected:
            sys.exit(f"error: {app} {order}: {got} instead of {expected}: {body}")
        return got

    def orders(self, turn):
        """What may become of an order, once."""
        self.order("crm", f"ok-{turn}", 200)
        self.order("crm", f"ok-{turn}", 200)
        self.order("crm", f"lean-{turn}", 200, lean=True)
        for number in range(3):
            self.order("crm", f"fail-{turn}{number}", "backend_error")
            self.order("crm", f"any-{turn}{number}", "signature_invalid", key="other-key")
            self.order("crm", f"any-{turn}{number}", "timestamp_expired", more=["--time", "2021-06-23T07:26:13Z"])
        self.order("crm", f"no-{turn}", 200)
        self.order("crm", f"broken-{turn}", "backend_contract")
        self.order("careful", f"broken-{turn}", "backend_contract")
        self.order("careful", f"broken-{turn}", "delivery_in_progress")
        self.order("observed", f"ok-{turn}", 200, key="other-key")
        self.order("pair", f"ok-{turn}", 200)
        with socket.create_connection(("127.0.0.1", self.spi)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while plain.recv(1024):
                pass
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            Backend.goes_on.clear()
            got = list(pool.map(lambda number: self.order("hasty", f"slow-{turn}{number}", None), range(8)))
            Backend.goes_on.set()
        if not {"backend_timeout", "overloaded"} <= set(got):
            sys.exit(f"error: eight slow orders at once, of which three have room, came to {got}")
        # A slow order has its place until its late answer is recorded; what follows needs the room.
        self.late += got.count("backend_timeout")
        wait_for(f"{self.late} late answers", lambda: self.counted("spigate_deliveries_total", "late") == self.late)

    def metrics(self):
        return get(f"http://127.0.0.1:{self.admin}/metrics")[1]

    def metric(self, line):
        return line in self.metrics().split("\n")

    def counted(self, name, outcome):
        """Of all apps and actions."""
        return sum(int(count) for count in re.findall(rf'^{name}\{{.*outcome="{outcome}".*\}} (\d+)$', self.metrics(), re.M))

    def query(self, query):
        status, body = get(f"http://127.0.0.1:{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        if status == 503:
            return []
        reply = json.loads(body)
        if reply["status"] != "success":
            sys.exit(f"error: {query}: {reply['error']}")
        return reply["data"]["result"]


def scrape_config(run):
    """The two scrape configurations, at speed, and with the run's gateway for a target."""
    static = read_yaml("prometheus.yml")
    static["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    # The only time in them that is meant as two scrapes.
    (run.directory / "rules.yml").write_text(re.sub(r"\b30s\b", "3s", (PROMETHEUS / "rules.yml").read_text()))
    static["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{run.admin}"]
    # Debian's Prometheus is built without Kubernetes. What it would find there is told by a file.
    kubernetes = kubernetes_without_discovery(run.directory)
    kubernetes["job_name"] = "kubernetes"
    static["scrape_configs"].append(kubernetes)

    def pod(name, ip, phase="Running", **annotations):
        labels = {"__address__": f"{ip}:8080", "__meta_kubernetes_pod_ip": ip, "__meta_kubernetes_pod_phase": phase}
        labels |= {"__meta_kubernetes_pod_name": name, "__meta_kubernetes_namespace": "shop"}
        labels |= {f"__meta_kubernetes_pod_annotation_spigate_{key}": value for key, value in annotations.items()}
        address = labels.pop("__address__")
        return {"targets": [address, "127.0.0.1:5432"], "labels": labels}

    pods = [
        pod("crm-1", "127.0.0.1", scrape="true", admin_port=str(run.admin)),
        pod("done", "127.0.0.2", phase="Succeeded", scrape="true", admin_port=str(run.admin)),
        pod("not-annotated", "127.0.0.3"),
        pod("six", "fd00::1", scrape="true", admin_port="9090"),
    ]
    (run.directory / "pods.json").write_text(json.dumps(pods))
    (run.directory / "prometheus.yml").write_text(yaml.safe_dump(static))


def kubernetes_without_discovery(directory):
    scrape = read_yaml("kubernetes.yml")["scrape_configs"][0]
    if scrape.pop("kubernetes_sd_configs") != [{"role": "pod"}]:
        sys.exit("error: kubernetes.yml discovers other things than pods")
    scrape["file_sd_configs"] = [{"files": [str(directory / "pods.json")]}]
    return scrape


def check_targets(run):
    targets = json.loads(get(f"http://127.0.0.1:{run.prometheus}/api/v1/targets?state=active")[1])["data"]["activeTargets"]
    found = sorted(
        (target["labels"]["job"], target["labels"].get("pod"), target["labels"].get("namespace"), target["labels"]["instance"])
        for target in targets
    )
    here = f"127.0.0.1:{run.admin}"
    wanted = [("kubernetes", "crm-1", "shop", here), ("kubernetes", "six", "shop", "[fd00::1]:9090"), ("spigate", None, None, here)]
    expect(found == wanted, f"targets are {found}")


def check_queries(run):
    asked = 0

    def ask(where, query):
        nonlocal asked
        asked += 1
        # A panel's zero for what never happened must not hide that the query is wrong.
        query = query.replace(" or vector(0)", "")
        result = run.query(query)
        numbers = [sample for sample in result if sample["value"][1] != "NaN"]
        expect(numbers, f"{where}: {'only NaN' if result else 'empty'}: {query}")

    for title, query in dashboard_queries():
        for variable, value in (("$__rate_interval", "5m"), ("$__range", "5m"), ("$app", ".*")):
            query = query.replace(variable, value)
        ask(f"panel {title}", query)
    for query in runbook("promql"):
        ask("docs/runbook.md", query)
    for rule in rules():
        if "record" in rule:
            ask(f"recording {rule['record']}", re.sub(r"\b30s\b", "3s", rule["expr"]))
        for name, matchers in selectors(rule["expr"]):
            ask(rule.get("alert") or rule["record"], name + matchers)
    return asked


def check_commands(run):
    """The runbook's commands, as they stand there."""
    commands = runbook("sh")
    expect(any("spigate journal" in command for command in commands), "docs/runbook.md has no commands")
    (run.directory / "bin").mkdir()
    (run.directory / "bin/spigate").symlink_to(run.binary)
    path = f"{run.directory / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CONFIG": str(run.directory / "spigate.toml"), "ADMIN": f"127.0.0.1:{run.admin}"}
    for command in dict.fromkeys(commands):
        tried = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        expect(tried.returncode == 0, f"docs/runbook.md: {command}: {tried.stderr.strip()}")
    return len(commands)


# What the run does must be seen; those with a `for` are pending.
SEEN = {
    "SpigateOrdersFailing": "firing",
    "SpigateOrderHeld": "firing",
    "SpigateOrderUnconfirmed": "pending",
    "SpigateOrderUnanswered": "pending",
    "SpigateBackendContractViolated": "firing",
    "SpigateOverloaded": "firing",
    "SpigateCertificateExpires": "firing",
    "SpigateBackendUrlDown": "pending",
}


# And what has no cause must not, but for a scrape that took too long.
UNSEEN = ("SpigateDown", "SpigateAbsent", "SpigateJournalErrors", "SpigatePanic", "SpigateOrderConfirmedTwice")


def check_alerts(run):
    for _ in range(100):
        active = json.loads(get(f"http://127.0.0.1:{run.prometheus}/api/v1/alerts")[1])["data"]["alerts"]
        states = {alert["labels"]["alertname"]: alert["state"] for alert in active}
        if SEEN.items() <= states.items() and not states.keys() & set(UNSEEN):
            break
        time.sleep(0.1)
    for name, state in SEEN.items():
        expect(states.get(name) == state, f"{name} is {states.get(name)}, not {state}")
    for name in UNSEEN:
        expect(name not in states, f"{name} is {states.get(name)} without a cause")
    for alert in active:
        text = " ".join(alert["annotations"].values())
        expect("<error" not in text and "<no value>" not in text, f"{alert['labels']['alertname']} says: {text}")
    groups = json.loads(get(f"http://127.0.0.1:{run.prometheus}/api/v1/rules")[1])["data"]["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        expect(rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}")


def live(binary):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="spigate-monitoring-"))
    run = Run(binary, directory)
    processes = []

    def start(name, command):
        log = open(directory / f"{name}.log", "wb")
        processes.append(subprocess.Popen(command, cwd=directory, stdout=log, stderr=log))

    try:
        config = directory / "spigate.toml"
        run.configure(run.config)
        start("spigate", [binary, "serve", "--config", config])
        wait_for("spigate", lambda: get(f"http://127.0.0.1:{run.admin}/readyz")[0] == 200)
        scrape_config(run)
        # They read nothing of the user's: no console templates, no agent, no remote.
        start("prometheus", [
            "prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{run.prometheus}", "--log.level=warn",
        ])
        wait_for("a scrape", lambda: run.query('up{job="spigate"} == 1'))
        # Twice: what begins in the first turn rises in the second.
        run.orders("a")
        run.configure("nonsense = 1\n" + run.config)
        wait_for("a failed reload", lambda: run.metric('spigate_config_reloads_total{result="failure"} 1'))
        run.configure(run.config)
        wait_for("the first turn", lambda: run.query('spigate_rejections_total{code="overloaded"}'))
        run.orders("b")
        overloaded = re.search(r'\nspigate_rejections_total\{.*code="overloaded"\} (\d+)', run.metrics())[1]
        wait_for("the second turn", lambda: any(s["value"][1] == overloaded for s in run.query('spigate_rejections_total{code="overloaded",job="spigate"}')))
        # Until it is mended; what follows needs the file.
        run.configure("nonsense = 1\n" + run.config)
        for name in ("SpigateOrderUnanswered", "SpigateReloadFailed", "SpigateOverloaded"):
            wait_for(name, lambda: run.query(f'ALERTS{{alertname="{name}"}}'))
        run.configure(run.config)
        asked = check_queries(run)
        tried = check_commands(run)
        check_targets(run)
        check_alerts(run)
        print(f"{asked} queries were asked, {tried} commands of the runbook tried")
    finally:
        for process in processes:
            process.kill()
            process.wait()
        if problems or sys.exc_info()[0]:
            for log in directory.glob("*.log"):
                print(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]), file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)


def main():
    match sys.argv[1:]:
        case ["static"]:
            for check in (check_annotations, check_links, check_tests, check_monitors, check_dashboard, check_names):
                check()
            print(f"{len(alerts())} alerts, {len(rules()) - len(alerts())} recordings, {len(list(dashboard_queries()))} queries of panels")
        case ["prometheus-rule"]:
            print(prometheus_rule(), end="")
        case ["kubernetes-config", directory]:
            config = read_yaml("kubernetes.yml")
            config["rule_files"] = [str(PROMETHEUS / "rules.yml")]
            config["scrape_configs"] = [kubernetes_without_discovery(pathlib.Path(directory))]
            print(yaml.safe_dump(config), end="")
        case ["live", binary]:
            live(str(pathlib.Path(binary).resolve()))
        case _:
            sys.exit(__doc__)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
