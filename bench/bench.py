"""What a request costs: spigate beside nginx, in one run, on this machine.

The figure is CPU microseconds per request of the proxy process alone (utime + stime from
/proc/PID/stat over the requests completed): absolute values move with the machine, ratios in
one run hold. Candidates are measured in short slices that alternate, so that a slow minute
hits all of them; the table shows medians and the spread. Nothing here is pass or fail, except
that a candidate which answers wrongly is not measured at all.

Every server listens on loopback, is started here, and is stopped by its process id.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SPIGATE = os.path.join(ROOT, "target", "release", "spigate")
BARE_HYPER = os.path.join(ROOT, "target", "release", "examples", "bare_hyper")
TICKS = os.sysconf("SC_CLK_TCK")
# The platform's published create example: 410 bytes of query, a valid signature.
KEY = "2UNHjKQE9u6A4np4kI++o5iXPcn3cA6yZjDEdHN3iXfDFwCRaKtCQHSLT9HdeF+1"
QUERY = (
    "user_id=usr-xx1xx&signature=puc6rZedSRTUTgSWoIX63eYb9ZM3QRuBWS1Jows9I5E%3D&action=CreateAppInstance"
    "&time_stamp=2021-06-23T07%3A26%3A13Z&spec=5aWX6aSQ5ZCN56ewMQ%3D%3D&cloud_info=eyJhcGlfc2VydmVyIjogImFwaS5xaW5"
    "nY2xvdWQuY29tOjc3NzciLCAic3NvX3NlcnZlciI6ICJzc28ucWluZ2Nsb3VkLmNvbSJ9&period=1_day&app_id=app-xxxxx"
)
# 350 bytes, as a real backend answers.
REPLY = json.dumps(
    {
        "success": True,
        "instanceId": "a0ec8245-d3f4-11eb-b8c6-acde48001122",
        "appInfo": {
            "frontEnd": {"url": "https://crm.example.com/login", "username": "admin", "password": "x" * 24},
            "admin": {"url": "https://crm.example.com/admin", "username": "root", "password": "y" * 24},
            "authUrl": "https://crm.example.com/sso/" + "z" * 30,
        },
    },
    separators=(",", ":"),
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pinned(core, command):
    if core is None:
        return command
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") and os.cpu_count() > 1 else command


def cpu_seconds(pid):
    """CPU time of a process and its threads, without its children."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.headers.get("content-type"), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("content-type"), error.read().decode()


class Process:
    """A server of this run; `pid` is the process that does the work."""

    def __init__(self, command, core, log, port):
        with open(log, "wb") as out:
            self.child = subprocess.Popen(pinned(core, command), stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                if time.monotonic() > deadline or self.child.poll() is not None:
                    with open(log, encoding="utf-8", errors="replace") as text:
                        sys.exit(f"{command[0]} does not start:\n{text.read()}")
                time.sleep(0.02)
        self.pid = self.child.pid

    def use_worker(self):
        """nginx works in a child of the process that was started."""
        with open(f"/proc/{self.child.pid}/task/{self.child.pid}/children", encoding="ascii") as file:
            self.pid = int(file.read().split()[0])
        return self

    def stop(self):
        self.child.send_signal(signal.SIGINT if self.child.args[-1].endswith(".toml") else signal.SIGTERM)
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def nginx(directory, name, core, server, port):
    path = os.path.join(directory, name)
    os.makedirs(path)
    config = os.path.join(path, "nginx.conf")
    with open(config, "w", encoding="utf-8") as file:
        file.write(
            f"""daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;
  client_body_temp_path {path}/b; proxy_temp_path {path}/p; fastcgi_temp_path {path}/f;
  uwsgi_temp_path {path}/u; scgi_temp_path {path}/s; types {{ }} default_type application/json;
  {server}
}}
"""
        )
    return Process(["nginx", "-p", path, "-c", config], core, os.path.join(path, "log"), port).use_worker()


def spigate(directory, name, core, backend, send, access, once=False):
    path = os.path.join(directory, name)
    os.makedirs(path)
    port, admin = free_port(), free_port()
    config = os.path.join(path, "spigate.toml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(
            f"""listen.address = "127.0.0.1:{port}"
admin.address = "127.0.0.1:{admin}"
log.access = {str(access).lower()}
shutdown.delay = "0s"
[[apps]]
name = "bench"
path = "/spi"
dialect = "qingcloud-appcenter"
keys = [{{ id = "k", value = "{KEY}" }}]
deliver_once = {str(once).lower()}
freshness.max_age = "36500d"
[apps.backend]
url = "http://127.0.0.1:{backend}/"
send = "{send}"
"""
        )
    process = Process([SPIGATE, "serve", "--config", config], core, os.path.join(path, "log"), port)
    return (process, port, admin) if once else (process, port)


def load(core, url, connections, seconds):
    """Requests completed, and those answered with another status than 2xx or 3xx."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url]
    text = subprocess.run(pinned(core, command), capture_output=True, text=True, check=True).stdout
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: (.*)", text)
    return requests, int(other.group(1)) if other else 0, errors.group(1) if errors else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=1, help="length of a slice")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    options = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing; on Debian: apt-get install {tool}")
    if not os.path.exists(SPIGATE):
        sys.exit("build the release first: cargo build --release")
    proxy_core, load_core = 0, 1

    directory = tempfile.mkdtemp(prefix="spigate-bench-")
    running = []
    try:
        backend = free_port()
        running.append(
            nginx(directory, "backend", load_core,
                  f"server {{ listen 127.0.0.1:{backend}; location / {{ return 200 '{REPLY}'; }} }}", backend))
        candidates = {}
        port = free_port()
        plain = nginx(
            directory, "nginx-plain", proxy_core,
            f"upstream b {{ server 127.0.0.1:{backend}; keepalive 128; keepalive_requests 1000000000; }} "
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://b; proxy_http_version 1.1; "
            f"proxy_set_header Connection ''; }} }}", port)
        running.append(plain)
        candidates["nginx plain"] = (plain, f"http://127.0.0.1:{port}/spi?{QUERY}", 200)
        port = free_port()
        bare = Process([BARE_HYPER, f"127.0.0.1:{port}", f"127.0.0.1:{backend}", KEY], proxy_core,
                       os.path.join(directory, "bare-hyper.log"), port)
        running.append(bare)
        candidates["bare hyper, verify and check"] = (bare, f"http://127.0.0.1:{port}/spi?{QUERY}", 200)
        process, port = spigate(directory, "headers", proxy_core, backend, "headers", access=False)
        running.append(process)
        good, flipped = f"http://127.0.0.1:{port}/spi?{QUERY}", f"http://127.0.0.1:{port}/spi?{QUERY.replace('puc6', 'qvc6')}"
        candidates["spigate, verified, headers"] = (process, good, 200)
        candidates["spigate, refused signature"] = (process, flipped, 401)
        process, port = spigate(directory, "json-log", proxy_core, backend, "json", access=True)
        running.append(process)
        candidates["spigate, verified, json, access log"] = (process, f"http://127.0.0.1:{port}/spi?{QUERY}", 200)

        for name, (process, url, status) in candidates.items():
            got, content_type, body = get(url)
            right = got == status and content_type == "application/json" and (status != 200 or body == REPLY)
            if not right:
                sys.exit(f"{name} answers wrongly: {got} {content_type} {body[:200]}")
            if name != "nginx plain" and status == 200 and get(url.replace("puc6", "qvc6"))[0] != 401:
                sys.exit(f"{name} accepts a flipped signature")
            load(load_core, url, options.connections, 1)

        samples = {name: [] for name in candidates}
        rates = {name: [] for name in candidates}
        for number in range(options.rounds):
            for name, (process, url, status) in candidates.items():
                before = cpu_seconds(process.pid)
                requests, other, errors = load(load_core, url, options.connections, options.seconds)
                spent = cpu_seconds(process.pid) - before
                wrong = other if status == 200 else requests - other
                if wrong or errors:
                    sys.exit(f"{name}: {wrong} wrong answers, socket errors: {errors}")
                samples[name].append(spent / requests * 1e6)
                rates[name].append(requests / options.seconds)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)

        base = samples["nginx plain"]
        rows = []
        for name, values in samples.items():
            ratios = [value / reference for value, reference in zip(values, base)]
            rows.append({
                "candidate": name,
                "cpu_us": statistics.median(values), "cpu_us_min": min(values), "cpu_us_max": max(values),
                "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
                "requests_per_second": statistics.median(rates[name]),
                "resident_mb": resident_mb(candidates[name][0].pid),
            })
        version = subprocess.run([SPIGATE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        proxy = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.strip().split("/")[-1]
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = re.search(r"model name\s*:\s*(.*)", file.read())
        about = {
            "date": datetime.date.today().isoformat(), "spigate": version, "nginx": proxy,
            "cpu": cpu.group(1) if cpu else platform.machine(), "cores": os.cpu_count(),
            "connections": options.connections, "rounds": options.rounds, "slice_seconds": options.seconds,
        }
        print(f"{about['date']}, {version}, nginx {proxy}, {about['cores']} cores of {about['cpu']}, "
              f"{options.connections} connections, {options.rounds} rounds of {options.seconds} s\n")
        print("| candidate | CPU µs/request, median [min–max] | × nginx plain, median [min–max] | requests/s | RSS MB |")
        print("|---|---|---|---|---|")
        for row in rows:
            print(f"| {row['candidate']} | {row['cpu_us']:.1f} [{row['cpu_us_min']:.1f}–{row['cpu_us_max']:.1f}] | "
                  f"{row['ratio']:.2f} [{row['ratio_min']:.2f}–{row['ratio_max']:.2f}] | "
                  f"{row['requests_per_second']:.0f} | {row['resident_mb']:.1f} |")
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump({"about": about, "rows": rows}, file, indent=1, ensure_ascii=False)
                file.write("\n")
    finally:
        for process in reversed(running):
            process.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
