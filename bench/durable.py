"""What the journal costs: durable, distinct orders beside the stateless path, in one run.

Three candidates, all spigate, all verified, `send = "headers"`, no access log, one backend:
stateless (`deliver_once = false`), durable with every order another one, and one order replayed.
Throughput with many connections, interleaved in short slices; latency with one connection, where
nothing queues. The batch size is read from spigate's own metrics; the disk's flush is measured
with 4 KiB appends in the same directory. Nothing here is pass or fail.

Servers listen on loopback, are started here, and are stopped by their process ids.
"""

import argparse
import base64
import hashlib
import hmac
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

from bench import KEY, SPIGATE, cpu_seconds, free_port, get, nginx, pinned, spigate

# The reply's instance id is another one for each call, as the platform demands.
REPLY = (
    '{"success":true,"instanceId":"$request_id","appInfo":{"frontEnd":{"url":"https://crm.example.com/login",'
    '"username":"admin","password":"' + "x" * 24 + '"},"admin":{"url":"https://crm.example.com/admin","username":"root",'
    '"password":"' + "y" * 24 + '"},"authUrl":"https://crm.example.com/sso/' + "z" * 30 + '"}}'
)
FIELDS = {
    "action": "CreateAppInstance", "user_id": "usr-xx1xx", "app_id": "app-xxxxx", "spec": "5aWX6aSQ5ZCN56ewMQ==",
    "cloud_info": "eyJhcGlfc2VydmVyIjogImFwaS5xaW5nY2xvdWQuY29tOjc3NzciLCAic3NvX3NlcnZlciI6ICJzc28ucWluZ2Nsb3VkLmNvbSJ9",
    "period": "1_day", "time_stamp": "2021-06-23T07:26:13Z",
}


def target(order):
    """Path and signed query of a purchase."""
    fields = dict(FIELDS, order_id=order)
    query = "&".join(f"{name}={urllib.parse.quote(value, safe='')}" for name, value in sorted(fields.items()))
    mac = hmac.new(KEY.encode(), f"GET\n{query}".encode(), hashlib.sha256).digest()
    return f"/spi?{query}&signature={urllib.parse.quote(base64.b64encode(mac).decode(), safe='')}"


class Targets:
    """A pre-signed list that wrk takes one after the other, and never from the start again."""

    def __init__(self, directory, count):
        self.path = os.path.join(directory, "targets")
        with open(self.path, "w", encoding="ascii") as file:
            for number in range(count):
                file.write(target(f"ord-{number:08}") + "\n")
        self.script = os.path.join(directory, "targets.lua")
        self.used, self.count = 0, count
        with open(self.script, "w", encoding="ascii") as file:
            # The number of lines to skip is an argument; the thread says at its end how many it took.
            file.write("""
local taken = 0
function init(arguments)
  lines = io.lines(arguments[1])
  for _ = 1, tonumber(arguments[2]) do lines() end
end
function request()
  taken = taken + 1
  local line = lines()
  if line == nil then print("out of targets"); os.exit(1) end
  return wrk.format("GET", line)
end
""")


def load(core, url, connections, seconds, targets=None):
    """Requests per second, wrong answers, and the median latency in milliseconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if targets:
        command += ["-s", targets.script, url, "--", targets.path, str(targets.used)]
    else:
        command.append(url)
    text = subprocess.run(pinned(core, command), capture_output=True, text=True, check=True).stdout
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    if targets:
        # Those in flight at the end are taken, too.
        targets.used += requests + 2 * connections
        if targets.used > targets.count:
            sys.exit("the pre-signed list is too short; give --targets more")
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    median, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", text).groups()
    return requests, int(other.group(1)) if other else 0, float(median) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def flush_milliseconds(directory, count=300):
    """What the disk itself takes to make 4 KiB durable."""
    samples = []
    with open(os.path.join(directory, "flush"), "wb", buffering=0) as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            samples.append((time.perf_counter() - begun) * 1000)
    return statistics.median(samples), sorted(samples)[int(count * 0.99)]


def batches(admin):
    text = get(f"http://127.0.0.1:{admin}/metrics")[2]
    return [float(re.search(rf"spigate_journal_batch_size_{part} (\S+)", text).group(1)) for part in ("sum", "count")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=2, help="length of a slice")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--targets", type=int, default=400_000, help="orders to sign ahead")
    parser.add_argument("--directory", help="where the journal lies while it is measured; a real disk")
    parser.add_argument("--unpinned", action="store_true", help="let everything use all cores")
    options = parser.parse_args()
    proxy_core, load_core = (None, None) if options.unpinned else (0, 1)
    directory = tempfile.mkdtemp(prefix="spigate-bench-", dir=options.directory)
    running = []
    try:
        targets = Targets(directory, options.targets)
        backend = free_port()
        running.append(nginx(directory, "backend", load_core,
                             f"server {{ listen 127.0.0.1:{backend}; location / {{ return 200 '{REPLY}'; }} }}", backend))
        stateless, port = spigate(directory, "stateless", proxy_core, backend, "headers", access=False)
        running.append(stateless)
        durable, durable_port, admin = spigate(directory, "durable", proxy_core, backend, "headers", access=False,
                                               once=True)
        running.append(durable)
        one = target("ord-replayed")
        candidates = {
            "stateless": (stateless, f"http://127.0.0.1:{port}{one}", None),
            "durable, distinct orders": (durable, f"http://127.0.0.1:{durable_port}", targets),
            "durable, one order replayed": (durable, f"http://127.0.0.1:{durable_port}{one}", None),
        }
        first, again = (get(f"http://127.0.0.1:{durable_port}{one}") for _ in range(2))
        if first[0] != 200 or first != again:
            sys.exit(f"the order is not replayed: {first} {again}")
        samples = {name: {"rate": [], "cpu": [], "median": []} for name in candidates}
        sizes = []
        for number in range(options.rounds):
            for name, (process, url, list_) in candidates.items():
                before, batch = cpu_seconds(process.pid), batches(admin)
                requests, wrong, _ = load(load_core, url, options.connections, options.seconds, list_)
                spent = cpu_seconds(process.pid) - before
                if wrong:
                    sys.exit(f"{name}: {wrong} wrong answers")
                samples[name]["rate"].append(requests / options.seconds)
                samples[name]["cpu"].append(spent / requests * 1e6)
                if list_:
                    jobs, number_of = (after - then for after, then in zip(batches(admin), batch))
                    sizes.append(jobs / number_of)
                _, _, median = load(load_core, url, 1, 1, list_)
                samples[name]["median"].append(median)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        flush = flush_milliseconds(directory)
        version = subprocess.run([SPIGATE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        pins = "not pinned" if options.unpinned else "spigate on one core, load and backend on the other"
        print(f"{version}, {options.connections} connections, {options.rounds} rounds of {options.seconds} s, {pins}\n")
        print("| candidate | requests/s, median [min–max] | × stateless | CPU µs/request | p50 ms, one connection |")
        print("|---|---|---|---|---|")
        base = samples["stateless"]["rate"]
        for name, values in samples.items():
            ratio = statistics.median(rate / reference for rate, reference in zip(values["rate"], base))
            print(f"| {name} | {statistics.median(values['rate']):.0f} [{min(values['rate']):.0f}–"
                  f"{max(values['rate']):.0f}] | {ratio:.2f} | {statistics.median(values['cpu']):.1f} | "
                  f"{statistics.median(values['median']):.3f} [{min(values['median']):.3f}–{max(values['median']):.3f}] |")
        print(f"\nOperations in one transaction: {statistics.median(sizes):.1f} [{min(sizes):.1f}–{max(sizes):.1f}]. "
              f"The disk's own flush of 4 KiB: {flush[0]:.2f} ms median, {flush[1]:.2f} ms p99.")
    finally:
        for process in reversed(running):
            process.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
