"""The comparison: every candidate in one run, in short slices that alternate, so that a slow
minute of the machine hits all of them.

The main figure is CPU microseconds per request of the proxy process alone, saturated or nearly
so: absolute values move with the machine, ratios within a round hold. Latency is measured at a
fixed rate below saturation, from the moment a request was due.
"""

import contextlib
import http.server
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import servers
from load import Load
from orders import CREATE, PUBLISHED, flip, now, sign
from servers import get

CONNECTIONS = 64
MANY = 256
CROWD = 2000
RATE = 2000
# Seconds that a candidate has in a round.
SLICE = 1.0
# Requests a second at which nothing queues.
LOW_RATE = 200

NGINX, LUA, HAPROXY, BARE = "nginx plain", "nginx + Lua", "HAProxy plain", "bare hyper"
PATH1, PATH2, REFUSED = "spigate, headers", "spigate, json, access log", "spigate, refused signature"
TLS, REPLAYED = "spigate, headers, TLS", "spigate, replayed order"
STATELESS_MANY = f"spigate, headers, {MANY} connections"
DURABLE = f"spigate, durable distinct orders, {MANY} connections"


def by_profile(name):
    """The same candidate, of the build that scripts/release makes."""
    return name.replace("spigate", "spigate by profile", 1)


PROFILED = (PATH1, PATH2, STATELESS_MANY, DURABLE)

DOES = {
    NGINX: "proxies, nothing else",
    LUA: "verifies, checks freshness, fields and the reply",
    HAPROXY: "proxies, nothing else",
    BARE: "verifies and checks the reply, nothing else",
    PATH1: "everything but the journal; metrics on",
    PATH2: "the same, decoded to JSON; a line for each request into a file",
    REFUSED: "answers 401",
    TLS: "as without TLS; connections are kept",
    REPLAYED: "answers from the journal",
    STATELESS_MANY: "everything but the journal; metrics on",
    DURABLE: "everything: two flushes of the disk for an order",
} | {by_profile(name): "the same, built by `scripts/release`" for name in PROFILED}


@dataclass
class Candidate:
    name: str
    load: Load


class BrokenBackend:
    """Answers what no platform may ever see."""

    def __enter__(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                self.rfile.read(int(self.headers.get("content-length", "0")))
                body = b'{"success":"yes","instanceId":7}'
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()


def must(name, what, server, query, status):
    got, media, body = get(f"http://127.0.0.1:{server.port}/spi?{query}")
    if got != status or media != "application/json":
        sys.exit(f"{name}: {what} is answered {got} {media} {body[:200]}, not {status}")


def show_honesty(name, server, freshness):
    """A candidate that says it verifies is shown to do so before it is measured."""
    must(name, "the published example", server, PUBLISHED, 200)
    must(name, "a flipped signature", server, flip(PUBLISHED), 401)
    must(name, "another user", server, PUBLISHED.replace("usr-xx1xx", "usr-xx2xx"), 401)
    must(name, "an unsigned parameter", server, PUBLISHED + "&a=1", 401)
    encoded = dict(CREATE, order_id="ord-999999999999", user_id="张 三+~*/", time_stamp=now())
    must(name, "values that need encoding", server, sign(encoded), 200)
    if freshness:
        must(name, "a request of tomorrow", server, sign(dict(CREATE, time_stamp=now(86400))), 401)
        fields = dict(CREATE, time_stamp=now())
        del fields["user_id"]
        must(name, "a request without its user", server, sign(fields), 400)


def verifying(house, backend):
    """Those that verify, by name, with whether they look at the time; started on `backend`."""
    made = {}
    if servers.has_lua():
        made[LUA] = house.nginx(f"lua-{backend.port}", backend, lua=True), True
    made[BARE] = house.bare_hyper(f"bare-{backend.port}", backend), False
    made[PATH1] = house.spigate(f"headers-{backend.port}", backend), True
    made[PATH2] = house.spigate(f"json-{backend.port}", backend, send="json", access=True), True
    if "profiled" in house.binaries:
        build = {"program": "profiled"}
        made[by_profile(PATH1)] = house.spigate(f"headers-profiled-{backend.port}", backend, **build), True
        made[by_profile(PATH2)] = house.spigate(f"json-profiled-{backend.port}", backend, send="json", access=True,
                                                **build), True
    return made


def show_reply_check(house):
    with BrokenBackend() as broken:
        for name, (server, _) in verifying(house, broken).items():
            must(name, "a reply that breaks the contract", server, PUBLISHED, 502)
            house.stop(server)


@contextlib.contextmanager
def candidates(house, orders=40_000, only=None):
    """The comparison's candidates, shown to be honest, connected and warm: all of them, or those whose
    names hold one of the words in `only`."""
    show_reply_check(house)
    backend = house.backend()
    made = {}
    if shutil.which("nginx"):
        made[NGINX] = house.nginx("plain", backend)
    if shutil.which("haproxy"):
        made[HAPROXY] = house.haproxy("haproxy", backend)
    for name, (server, freshness) in verifying(house, backend).items():
        show_honesty(name, server, freshness)
        made[name] = server
    durable = house.spigate("durable", backend, once=True)
    show_honesty(REPLAYED, durable, True)
    for name in (NGINX, HAPROXY):
        if name in made:
            must(name, "anything", made[name], flip(PUBLISHED), 200)
    loads = [Candidate(name, Load(house, server, CONNECTIONS)) for name, server in made.items()]

    def add(name, *arguments, **options):
        loads.append(Candidate(name, Load(house, *arguments, **options)))

    add(REFUSED, made[PATH1], CONNECTIONS, targets=[f"/spi?{flip(PUBLISHED)}"], status=401,
        contains='"code":"signature_invalid"')
    if tls := house.certificate():
        add(TLS, house.spigate("tls", backend, tls=tls), CONNECTIONS, trust=tls[0])
    add(REPLAYED, durable, CONNECTIONS)
    add(STATELESS_MANY, made[PATH1], MANY)
    add(DURABLE, durable, MANY, orders=orders)
    if "profiled" in house.binaries:
        add(by_profile(STATELESS_MANY), made[by_profile(PATH1)], MANY)
        add(by_profile(DURABLE), house.spigate("durable-profiled", backend, once=True, program="profiled"), MANY,
            orders=orders)
    left_out = [candidate for candidate in loads if only and not any(words in candidate.name for words in only)]
    for candidate in left_out:
        candidate.load.close()
        loads.remove(candidate)
    if not loads:
        sys.exit(f"no candidate is called {' or '.join(only)}")
    try:
        for candidate in loads:
            candidate.load.slice(0.1 if orders < 10_000 else 0.5)
        yield loads
    finally:
        for candidate in loads:
            candidate.load.close()


def rounds(count, loads, measure):
    """`measure` of every candidate in every round; each round begins with another one."""
    samples = {candidate.name: [] for candidate in loads}
    for number in range(count):
        for candidate in loads[number % len(loads):] + loads[:number % len(loads)]:
            samples[candidate.name].append(measure(candidate))
        print(f"  round {number + 1} of {count}", file=sys.stderr, flush=True)
    return samples


def cpu(house, count, only=None):
    """CPU per request and throughput, as fast as each goes."""
    with candidates(house, only=only) as loads:
        samples = rounds(count, loads, lambda candidate: candidate.load.slice(SLICE))
    return {name: {"cpu_us": [one.cpu_us for one in slices], "rate": [one.rate for one in slices]}
            for name, slices in samples.items()}


def latency(house, count, only=None):
    """At fixed rates; and what the disk's own flush takes in between."""
    grown, in_place = Flush(house.path("grown")), Flush(house.path("in-place"), ROOM)
    with candidates(house, only=only) as loads:
        loads = [candidate for candidate in loads
                 if candidate.name not in (REFUSED, STATELESS_MANY, by_profile(STATELESS_MANY))]
        samples = rounds(count, loads, lambda candidate: candidate.load.slice(1.5, RATE))
        by_name = {candidate.name: candidate.load for candidate in loads}
        low = {name: [] for name in (PATH1, DURABLE) if name in by_name}
        flush, flush_in_place = [], []
        for _ in range(count):
            for name, found in low.items():
                found.append(by_name[name].slice(1, LOW_RATE).p50_us)
            flush.append(grown.micros())
            flush_in_place.append(in_place.micros())
    return {
        "rate": RATE, "low_rate": LOW_RATE,
        "at_rate": {name: {"p50_us": [one.p50_us for one in slices], "p99_us": [one.p99_us for one in slices]}
                    for name, slices in samples.items()},
        "low_p50_us": low, "flush_us": flush, "flush_in_place_us": flush_in_place,
    }


# More than all flushes of a run write.
ROOM = 32 * 1024 * 1024


class Flush:
    """What the disk takes to make 4 KiB durable, at the pace of the low rate: by which a file grows, or
    in a file that has room for them."""

    def __init__(self, path, room=0):
        self.file = open(path, "wb", buffering=0)
        self.file.write(b"\0" * room)
        os.fsync(self.file.fileno())
        self.file.seek(0)

    def micros(self, count=60):
        took = []
        for _ in range(count):
            time.sleep(1 / LOW_RATE)
            self.file.write(b"x" * 4096)
            begun = time.perf_counter()
            os.fdatasync(self.file.fileno())
            took.append((time.perf_counter() - begun) * 1e6)
        return statistics.median(took)


def resident(house):
    """Resident memory of fresh processes: after load over 64 connections, and with 2,000 idle ones
    more that have each asked once."""
    backend = house.backend()
    # On a machine with other work to do, all of the crowd may come to be in flight.
    limits = f"limits.in_flight = {2 * CROWD}"
    start = {
        NGINX: lambda: house.nginx("plain-memory", backend),
        LUA: lambda: house.nginx("lua-memory", backend, lua=True),
        HAPROXY: lambda: house.haproxy("haproxy-memory", backend),
        BARE: lambda: house.bare_hyper("bare-memory", backend),
        PATH1: lambda: house.spigate("headers-memory", backend, limits=limits),
        PATH2: lambda: house.spigate("json-memory", backend, send="json", access=True, limits=limits),
        REPLAYED: lambda: house.spigate("durable-memory", backend, once=True, limits=limits),
        by_profile(PATH1): lambda: house.spigate("profiled-memory", backend, limits=limits, program="profiled"),
    }
    found = {}
    for name, begin in start.items():
        needs = {NGINX: shutil.which("nginx"), LUA: servers.has_lua(), HAPROXY: shutil.which("haproxy"),
                 by_profile(PATH1): "profiled" in house.binaries}
        if not needs.get(name, True):
            continue
        server = begin()
        fresh = server.resident()
        with Load(house, server, CONNECTIONS) as load:
            load.slice(3)
            loaded = server.resident()
            with Load(house, server, CROWD) as crowd:
                # In turn, so that each asks once.
                crowd.slice(CROWD / 4000, 4000)
                crowded = server.resident()
        house.stop(server)
        found[name] = {"fresh": fresh, "at_64": loaded, "at_2000": crowded,
                       "per_connection": (crowded - loaded) / CROWD}
    return found


def scale(house, rounds_):
    """One thread and 64 connections, two threads and 2,000, and what the same crowd costs the others;
    nothing is pinned."""
    backend = house.backend()
    house.pins = False
    limits = f"limits.in_flight = {2 * CROWD}"
    one = house.spigate("one-thread", backend, threads=1, limits=limits)
    two = house.spigate("two-threads", backend, threads=2, limits=limits)
    made = {"spigate, 1 thread": one, "spigate, 2 threads": two}
    if shutil.which("nginx"):
        made[f"{NGINX}, 1 worker"] = house.nginx("plain-scale", backend)
    if shutil.which("haproxy"):
        made[f"{HAPROXY}, 1 thread"] = house.haproxy("haproxy-scale", backend)
    loads = [Candidate(f"{name}, {count:,} connections", Load(house, server, count))
             for name, server in made.items() for count in (CONNECTIONS, CROWD)]
    for candidate in loads:
        candidate.load.slice(0.5)
    samples = rounds(rounds_, loads, lambda candidate: candidate.load.slice(SLICE))
    for candidate in loads:
        candidate.load.close()
    return {name: [one.cpu_us for one in slices] for name, slices in samples.items()}


def start_up(house, count):
    """Milliseconds from the start of the process to `ready` in its log, with 100 apps and a journal."""
    backend = house.backend()
    server = house.spigate("start", backend, apps=100, once=True)
    house.stop(server)
    command = house.pinned(house.proxy_core, [house.program("spigate"), "serve", "--config", server.config])
    took = []
    for _ in range(count):
        with open(house.path("start.out"), "wb") as out:
            begun = time.perf_counter()
            child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while True:
            with open(house.path("start.out"), "rb") as text:
                if b'"ready"' in text.read():
                    break
            if child.poll() is not None:
                sys.exit("spigate with 100 apps ended at its start")
            time.sleep(0.0005)
        took.append((time.perf_counter() - begun) * 1000)
        child.terminate()
        child.wait()
    return took


def core(house):
    """The pure core: nanoseconds; instructions and allocations of one round by valgrind, which has
    no SHA instructions, so that it counts the portable SHA-256."""
    program = house.program("core")

    def run(rounds_, *tool):
        return subprocess.run(house.pinned(house.proxy_core, [*tool, program, str(rounds_)]), capture_output=True,
                              text=True, check=True)

    nanos = [int(run(200_000).stdout) / 200_000 for _ in range(7)]

    def each(pattern, *tool):
        """What one more round adds to a number that valgrind tells at its end."""
        few, many = (int(re.search(pattern, run(number, "valgrind", *tool).stderr).group(1).replace(",", ""))
                     for number in (100, 1100))
        return (many - few) / 1000

    found = {"ns": nanos}
    if shutil.which("valgrind"):
        found["instructions"] = each(r"Collected : (\d+)", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        found["allocations"] = each(r"total heap usage: ([\d,]+) allocs", "--tool=memcheck")
    return found
