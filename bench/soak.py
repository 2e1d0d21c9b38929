"""An hour of ordinary trouble: is spigate the same process at its end as at its beginning?

A moderate fixed rate of orders with copies, hang-ups, refusals and strangers; a backend that is
slow, fails, breaks off, hangs and goes away; a configuration that changes every few seconds, now
and then to nonsense; a journal that forgets. All the while the process is sampled.

It fails if an answer is wrong, if an order reaches the backend again after its confirmation, if
the gateway counts a panic, or if a series is not flat. Flat means:

- resident memory: the Theil–Sen slope over the second half, projected to an hour, is below
  2 MiB or 5 % of the median, whichever is more; judged in runs of 20 minutes or more;
- descriptors, threads: the median of the last quarter exceeds that of the third by no more than
  8 and 1;
- the journal's files: the greatest size in the last quarter exceeds that of the third by no more
  than a tenth. Judged in runs of 50 minutes or more: the journal forgets every 10 minutes.

Everything is on loopback; spigate is started here and stopped by its process id.
"""

import argparse
import asyncio
import collections
import csv
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import watch
from chart import Panel, Series, sheet
from http1 import Client
from orders import KEY
from soak_backend import Backend
from soak_platform import ANSWER_WITHIN, TIMEOUT, Platform

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1024 * 1024
SAMPLE_EVERY = 5.0
# In seconds: an order that was begun may still wait for its replay, or for a backend that is down.
LAST_WORDS = 150
SHORT = "not judged in a run so short"
CONFIG = """\
[listen]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[log]
level = "{level}"
[limits]
idle_timeout = "10s"
parameters = {parameters}
[shutdown]
delay = "0s"
grace = "20s"
[journal]
url = "sqlite:./spigate.db"
retain_replies = "{replies}m"
retain_history = "{history}m"
"""
APP = """\
[[apps]]
name = "{name}"
path = "/{name}"
dialect = "qingcloud-appcenter"
keys = [{keys}]
deliver_once = {once}
[apps.backend]
url = "http://127.0.0.1:{port}/{name}"
send = "{send}"
connect_timeout = "500ms"
answer_within = "{within}s"
timeout = "{timeout}s"
"""


def configuration(number, port, history):
    """The same to every caller, and never the same twice running."""
    keys = f'{{ id = "now", value = "{KEY}" }}'
    if number % 3 == 1:
        keys += f', {{ id = "next", value = "{"k" * 40}{number % 7}" }}'
    text = CONFIG.format(level=("info", "warn")[number % 2], parameters=64 + number % 5, history=history,
                         replies=history // 2)
    apps = [("json", "json", "true"), ("headers", "headers", "true"), ("stateless", "headers", "false")]
    if number % 4 == 3:
        apps.append(("guest", "query", "true"))
    for name, send, once in apps:
        text += APP.format(name=name, keys=keys, once=once, port=port, send=send, within=ANSWER_WITHIN,
                           timeout=TIMEOUT + number % 2)
    return text


class Gateway:
    """The process, its files, and what it said."""

    def __init__(self, binary, directory):
        self.config = os.path.join(directory, "spigate.toml")
        self.directory, self.binary = directory, binary
        self.log = os.path.join(directory, "log")
        self.bad_lines = []
        self.read_to = 0

    def write(self, text):
        with open(self.config + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(self.config + ".new", self.config)

    async def start(self):
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen([self.binary, "serve", "--config", self.config], stdout=out, stderr=out)
        self.pid = self.child.pid
        deadline = time.monotonic() + 20
        while True:
            with open(self.log, encoding="utf-8") as file:
                ready = [json.loads(line) for line in file if '"ready"' in line]
            if ready:
                break
            if self.child.poll() is not None or time.monotonic() > deadline:
                with open(self.log, encoding="utf-8") as file:
                    sys.exit(f"spigate does not start:\n{file.read()}")
            await asyncio.sleep(0.05)
        text = json.dumps(ready[0])
        ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)]
        if len(ports) != 2:
            sys.exit(f"the line that says ready names other addresses than two: {text}")
        self.port, self.admin = ports

    def look_at_log(self):
        """Whatever a soak must not see; and cuts the file, as a rotation would."""
        with open(self.log, "rb") as file:
            file.seek(self.read_to)
            for line in file:
                if b"panick" in line or b"xxxxxxxxxxxxxxxx" in line or KEY.encode() in line:
                    self.bad_lines.append(line[:300].decode(errors="replace"))
            self.read_to = file.tell()
        if self.read_to > 32 * MIB:
            os.truncate(self.log, 0)
            self.read_to = 0

    def sample(self):
        def size(ending):
            try:
                return os.stat(os.path.join(self.directory, "spigate.db" + ending)).st_size
            except FileNotFoundError:
                return 0

        return {
            "resident": watch.resident_bytes(self.pid), "descriptors": watch.descriptors(self.pid),
            "threads": watch.threads(self.pid), "journal": size(""), "wal": size("-wal"),
            "cpu": watch.cpu_seconds(self.pid),
        }


async def metrics(client):
    """The sum of each metric over its labels, and of each with `result` or `outcome`."""
    text = (await client.get("/metrics")).body.decode()
    totals = collections.Counter()
    for name, labels, value in re.findall(r"^(\w+)(\{[^}]*\})? (\S+)$", text, re.M):
        totals[name] += float(value)
        for label in re.findall(r'(?:result|outcome|code)="(\w+)"', labels):
            totals[f"{name} {label}"] += float(value)
    return totals


async def run(options, directory):
    backend = Backend()
    await backend.start()
    gateway = Gateway(options.binary, directory)
    # The last copies come within LAST_WORDS, and are judged by the reply that was recorded.
    history = max(6, min(8, round(options.minutes / 6)))
    gateway.write(configuration(0, backend.port, history))
    await gateway.start()
    client, admin = Client(gateway.port, idle=4), Client(gateway.admin, idle=60)
    platform = Platform(client, options.seed, longest_memory=min(90, options.minutes * 20))
    samples, outages, reloads, nonsense = [], [], 0, 0
    begun = time.monotonic()
    end = begun + options.minutes * 60
    next_order = next_sample = begun
    next_reload = begun + 3
    down_every = max(30.0, options.minutes * 60 / 12)
    next_down = begun + down_every / 2
    print(f"spigate is process {gateway.pid}; {options.rate} lives a second for {options.minutes} minutes",
          file=sys.stderr, flush=True)

    async def down():
        platform.trouble_until = time.monotonic() + 5 + 4
        await backend.down(5)

    try:
        while (now := time.monotonic()) < end:
            if gateway.child.poll() is not None:
                platform.fault(f"spigate ended by itself with {gateway.child.returncode}")
                break
            while next_order <= now:
                platform.begin()
                next_order += 1 / options.rate
            if next_reload <= now:
                reloads += 1
                if reloads % 5 == 0:
                    nonsense += 1
                    gateway.write("[listen\naddress = nonsense")
                else:
                    gateway.write(configuration(reloads, backend.port, history))
                next_reload += 3
            if next_down <= now:
                outages.append(asyncio.ensure_future(down()))
                next_down += down_every
            if next_sample <= now:
                sample = dict(gateway.sample(), minute=(now - begun) / 60)
                samples.append(sample)
                gateway.look_at_log()
                next_sample += SAMPLE_EVERY
                if len(samples) % 60 == 0:
                    await metrics(admin)
                    print(f"minute {sample['minute']:.0f}: {sample['resident'] / MIB:.1f} MiB, "
                          f"{sample['descriptors']} descriptors, {sum(platform.answers.values())} answers, "
                          f"{len(platform.wrong) + len(backend.wrong)} wrong", file=sys.stderr, flush=True)
            await asyncio.sleep(max(0.0, min(next_order, next_sample, next_reload) - time.monotonic()))
        # Lives that began run on to their end.
        if platform.lives:
            await asyncio.wait(platform.lives, timeout=LAST_WORDS)
        for life in list(platform.lives):
            platform.fault("an order still waited for its answer at the end")
            life.cancel()
        await asyncio.gather(*outages)
        totals = await metrics(admin) if gateway.child.poll() is None else {}
        if gateway.child.poll() is None:
            gateway.child.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(gateway.child.wait, 40)
            if status != 0:
                platform.fault(f"spigate ended with {status}")
        gateway.look_at_log()
    finally:
        client.close()
        admin.close()
        if gateway.child.poll() is None:
            gateway.child.kill()
            gateway.child.wait()
    return platform, backend, gateway, samples, totals, (reloads, nonsense)


def quarter(samples, number, name):
    """The values of a quarter of the run, 0 to 3."""
    size = len(samples) / 4
    return [sample[name] for sample in samples[int(number * size) : int((number + 1) * size)]]


def memory_slope(samples):
    """Bytes an hour in the second half, and how many are still flat."""
    half = samples[len(samples) // 2 :]
    per_hour = watch.slope([(sample["minute"] / 60, sample["resident"]) for sample in half])
    return per_hour, max(2 * MIB, statistics.median(sample["resident"] for sample in half) / 20)


def flat(samples, minutes):
    """(what, measured, bound, whether it holds) for each series."""
    per_hour, bound = memory_slope(samples)
    rows = [("resident memory, slope of the second half", f"{per_hour / MIB:+.2f} MiB an hour",
             f"below {bound / MIB:.1f} MiB an hour" if minutes >= 20 else SHORT, minutes < 20 or per_hour < bound)]
    for name, more in (("descriptors", 8), ("threads", 1)):
        before, after = (statistics.median(quarter(samples, number, name)) for number in (2, 3))
        rows.append((f"{name}, medians of the third and the last quarter", f"{before:g}, {after:g}",
                     f"at most {more} more", after - before <= more))
    for name in ("journal", "wal"):
        before, after = (max(quarter(samples, number, name)) for number in (2, 3))
        is_judged = minutes >= 50
        rows.append((f"{'journal file' if name == 'journal' else 'its log'}, greatest of the third and the last quarter",
                     f"{before / MIB:.1f}, {after / MIB:.1f} MiB",
                     "at most a tenth more" if is_judged else SHORT,
                     not is_judged or after <= before * 1.1 + MIB))
    return rows


def report(options, platform, backend, gateway, samples, totals, reloads):
    """Prints what was seen, and says whether it holds."""
    # What the backend saw weighs most: it stands first.
    wrong = backend.wrong + platform.wrong + [f"in the log: {line}" for line in gateway.bad_lines]
    for name in ("spigate_panics_total", "spigate_duplicate_confirmations_total", "spigate_rejections_total internal",
                 "spigate_journal_errors_total"):
        if totals.get(name, 0):
            wrong.append(f"{name} is {totals[name]:g}")
    if platform.late > max(5, sum(platform.answers.values()) / 1000):
        wrong.append(f"{platform.late} orders were told to come again without the backend's doing: too slow a machine, "
                     "disk or gateway")
    taken = totals.get("spigate_config_reloads_total success", 0)
    failed = totals.get("spigate_config_reloads_total failure", 0)
    if taken < 0.6 * (reloads[0] - reloads[1]) or failed < 0.6 * reloads[1]:
        wrong.append(f"of {reloads[0]} changes of the configuration {taken:g} were taken and {failed:g} refused")
    rows = flat(samples, options.minutes)
    version = subprocess.run([options.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    minutes = samples[-1]["minute"]
    cpu = samples[-1]["cpu"] - samples[0]["cpu"]
    lines = [
        f"# Soak of {minutes:.0f} minutes, {datetime.date.today().isoformat()}, {version}", "",
        f"{platform.number} orders and {sum(platform.answers.values())} answers, {backend.calls} calls of the backend; "
        f"{taken:g} reloads, {failed:g} refused ones; {platform.late} late answers; spigate used {cpu / minutes / 60 * 100:.1f} % of a core. "
        f"An order that goes well: median {statistics.median(platform.seconds) * 1000:.1f} ms, "
        f"99th percentile {sorted(platform.seconds)[int(len(platform.seconds) * 0.99)] * 1000:.1f} ms.", "",
        "| series | measured | bound | |", "|---|---|---|---|",
        *(f"| {what} | {measured} | {bound} | {'flat' if holds else '**not flat**'} |"
          for what, measured, bound, holds in rows),
        "", "| answer | times |", "|---|---|",
        *(f"| {status} {code or ''} | {count} |" for (status, code), count in platform.answers.most_common()),
        "", f"Resident: {samples[0]['resident'] / MIB:.1f} MiB at the start, "
        f"{max(sample['resident'] for sample in samples) / MIB:.1f} MiB at most, {samples[-1]['resident'] / MIB:.1f} at the end.",
    ]
    if wrong:
        lines += ["", f"**{len(wrong)} wrong:**", "", *(f"- {text}" for text in wrong[:20])]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        keep(options.out, text, samples, f"Soak of {minutes:.0f} minutes, {version}")
    return not wrong and all(holds for *_, holds in rows)


def keep(directory, text, samples, title):
    """The report, the samples, their picture, and what the table of targets wants to know."""
    os.makedirs(directory, exist_ok=True)
    per_hour, bound = memory_slope(samples)
    said = {"date": datetime.date.today().isoformat(), "minutes": samples[-1]["minute"], "memory_slope": per_hour,
            "memory_is_flat": per_hour < bound}
    for name, content in (("soak.md", text), ("soak.svg", picture(title, samples)),
                          ("soak.json", json.dumps(said, indent=1) + "\n")):
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(content)
    with open(os.path.join(directory, "soak.csv"), "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, samples[0].keys())
        table.writeheader()
        table.writerows(samples)


def picture(title, samples):
    def series(name, unit=1):
        return [(sample["minute"], sample[name] / unit) for sample in samples]

    def panel(title, y, *lines):
        return Panel(title, "minutes", y, list(lines), dots=False)

    return sheet(title, [
        panel("Resident memory", "MiB", Series("", series("resident", MIB))),
        panel("Journal", "MiB", Series("file", series("journal", MIB)), Series("log", series("wal", MIB))),
        panel("Descriptors", "open", Series("", series("descriptors"))),
        panel("Threads", "", Series("", series("threads"))),
    ])


def main():
    # A run that is told to stop ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=15, help="orders and strangers that begin in a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "release", "spigate"))
    parser.add_argument("--out", metavar="DIRECTORY",
                        help="where report, samples and picture are kept; bench/results for runs of an hour")
    options = parser.parse_args()
    if options.out is None and options.minutes >= 60:
        options.out = os.path.join(ROOT, "bench", "results")
    directory = tempfile.mkdtemp(prefix="spigate-soak-")
    try:
        holds = report(options, *asyncio.run(run(options, directory)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
