"""Drives `load client` (bench/load): one process for each candidate, connected all the time, that
loads it for a slice when it is told to."""

import json
import subprocess
import sys
from dataclasses import dataclass

import watch
from orders import CREATE, KEY, PUBLISHED, quote


@dataclass
class Slice:
    """What one slice came to."""

    seconds: float
    requests: int
    cpu_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float

    @property
    def rate(self):
        return self.requests / self.seconds


def order_template():
    """The published create with an order's number, unsigned: `load client` fills in and signs."""
    fields = dict(CREATE, order_id="ord-{}", time_stamp="2021-06-23T07:26:13Z")
    return "&".join(f"{name}={quote(value)}" for name, value in sorted(fields.items())).replace("%7B%7D", "{}")


class Load:
    """Connections to one server, and what is asked over them."""

    def __init__(self, house, server, connections=64, targets=None, orders=0, first=1, status=200, contains=None,
                 reply_bytes=350, trust=None, cores=None):
        self.name = server.name
        self.server = server
        lines = targets or [f"/spi?{order_template() if orders else PUBLISHED}"]
        house.loads = getattr(house, "loads", 0) + 1
        file = house.write(f"targets-{house.loads}", "".join(f"{line}\n" for line in lines))
        command = [house.program("load"), "client", "--port", str(server.port), "--connections", str(connections),
                   "--targets", file, "--status", str(status), "--reply-bytes", str(reply_bytes),
                   "--watch", ",".join(str(pid) for pid in server.pids())]
        for name, value in (("contains", contains), ("trust", trust)):
            if value:
                command += [f"--{name}", value]
        if orders:
            command += ["--orders", str(orders), "--first", str(first), "--key", KEY]
        self.child = subprocess.Popen(house.pinned(cores or house.load_core, command), stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        if self.child.stdout.readline() != "ready\n":
            sys.exit(f"the load for {self.name} does not start")

    def slice(self, seconds, rate=0):
        """One slice; ends the run if any answer was wrong."""
        self.child.stdin.write(f"{seconds} {rate}\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: the load ended; what it said stands above")
        told = json.loads(line)
        if told["wrong"]:
            sys.exit(f"{self.name}: {told['wrong']} of {told['requests']} answers are wrong, as this one:\n"
                     f"{told['first_wrong']}")
        if not told["requests"]:
            sys.exit(f"{self.name}: no answers in {seconds} s; out of signed orders?")
        cpu = told["cpu_ticks"] / watch.TICKS / told["requests"] * 1e6
        return Slice(told["seconds"], told["requests"], cpu, told["p50_us"], told["p90_us"], told["p99_us"],
                     told["max_us"])

    def close(self):
        self.child.stdin.close()
        self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
