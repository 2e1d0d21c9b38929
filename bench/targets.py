"""The project's targets, and what a run says of each: met or not, by the medians of ratios within
rounds. Printed by every full run; passes and fails nothing."""

import statistics
from dataclasses import dataclass

from compare import BARE, DURABLE, LUA, NGINX, PATH1, PATH2, REFUSED, REPLAYED, STATELESS_MANY, by_profile

MIB = 1024 * 1024


@dataclass
class Row:
    number: str
    path: str
    target: str
    measured: str
    is_met: bool | None  # None: this run does not say


def spread(values, form="{:.2f}"):
    """Median and least to greatest."""
    return (f"{form.format(statistics.median(values))} [{form.format(min(values))}–{form.format(max(values))}]")


def ratios(values, base):
    return [value / reference for value, reference in zip(values, base)]


def scale_of_others(scale):
    """What 2,000 connections cost the proxies that do nothing else, by what 64 cost them."""
    told = ""
    for name in ("nginx plain, 1 worker", "HAProxy plain, 1 thread"):
        crowd, few = (scale.get(f"{name}, {count} connections") for count in ("2,000", "64"))
        if crowd and few:
            told += f"; {name}: {statistics.median(ratios(crowd, few)):.2f}"
    return told


def table(results):
    """The rows, in order; what was not measured is said to be."""
    rows = []

    def add(number, path, target, values, bound, form="{:.2f}", less=True, more=""):
        if values is None:
            rows.append(Row(number, path, target, "not measured in this run", None))
            return
        middle = statistics.median(values)
        rows.append(Row(number, path, target, spread(values, form) + more, middle <= bound if less else middle >= bound))

    cpu = results.get("cpu", {})

    def ratio(name, base, figure="cpu_us"):
        if name in cpu and base in cpu:
            return ratios(cpu[name][figure], cpu[base][figure])
        return None

    add("1", "stateless, headers", "≤ 1.0 × nginx plain (first release ≤ 1.2)", ratio(PATH1, NGINX), 1.0)
    add("1", "", "≤ 0.55 × nginx + Lua", ratio(PATH1, LUA), 0.55)
    add("1", "", "≤ 1.1 × bare hyper", ratio(PATH1, BARE), 1.1)
    add("2", "stateless, json, access log", "≤ 1.25 × nginx plain", ratio(PATH2, NGINX), 1.25)
    add("3", "refused signature", "≤ 0.5 × stateless, headers", ratio(REFUSED, PATH1), 0.5)
    add("4", "durable, distinct orders, 256 connections", "throughput ≥ 0.4 × stateless",
        ratio(DURABLE, STATELESS_MANY, "rate"), 0.4, less=False)
    late = results.get("latency")
    if late and {DURABLE, PATH1} <= late["low_p50_us"].keys():
        added = [durable - plain - 2 * flush for durable, plain, flush in
                 zip(late["low_p50_us"][DURABLE], late["low_p50_us"][PATH1], late["flush_us"])]
        # Older results do not have it.
        in_place = late.get("flush_in_place_us")
        add("4", "", "p50 at low load: at most two flushes more than stateless, in µs", added, 0, "{:+.0f}",
            more=f"; stateless {statistics.median(late['low_p50_us'][PATH1]):.0f}, durable "
                 f"{statistics.median(late['low_p50_us'][DURABLE]):.0f}, a flush {statistics.median(late['flush_us']):.0f}"
                 + (f" ({statistics.median(in_place):.0f} where the file does not grow)" if in_place else ""))
    else:
        add("4", "", "p50 at low load: at most two flushes more than stateless", None, 0)
    add("5", "replayed order", "≤ 1 × stateless, headers", ratio(REPLAYED, PATH1), 1.0)
    memory = results.get("memory", {}).get(PATH1)
    add("6", "memory", "≤ 12 MB at 64 connections", memory and [memory["at_64"] / 1e6], 12, "{:.1f}")
    add("6", "", "≤ 16 KB for an idle connection", memory and [memory["per_connection"] / 1000], 16, "{:.1f}")
    soak = results.get("soak")
    if soak:
        hours, holds = soak["minutes"] / 60, soak["memory_is_flat"]
        rows.append(Row("6", "", "flat over an hour of load",
                        f"{soak['memory_slope'] / MIB:+.2f} MiB an hour, in {hours:.1f} h of `scripts/soak` on {soak['date']}",
                        holds if hours > 0.95 else None))
    else:
        rows.append(Row("6", "", "flat over an hour of load", "`scripts/soak` says", None))
    scale = results.get("scale")
    names = ("spigate, 2 threads, 2,000 connections", "spigate, 1 thread, 64 connections")
    add("7", "scale", "2 threads, 2,000 connections ≤ 1.2 × 1 thread, 64 connections",
        scale and ratios(*(scale[name] for name in names)), 1.2, more=scale_of_others(scale or {}))
    core = results.get("core")
    more = f"; {core['instructions']:.0f} instructions with SHA-256 in software" if core and "instructions" in core else ""
    add("8", "pure core", "≤ 1.0 µs", core and [nanos / 1000 for nanos in core["ns"]], 1.0, more=more)
    allocations = core and core.get("allocations")
    add("8", "", "≤ 2 allocations", None if allocations is None else [allocations], 2, "{:g}")
    start = results.get("start")
    add("9", "start to ready, 100 apps", "≤ 50 ms", start and start["ms"], 50, "{:.0f}")
    add("9", "binary", "≤ 20 MB", start and [start["binary_bytes"] / 1e6], 20, "{:.1f}")
    if by_profile(PATH1) in cpu:
        built = "{}, built by `scripts/release`".format
        add("1", built("stateless, headers"), "≤ 1.0 × nginx plain (first release ≤ 1.2)", ratio(by_profile(PATH1), NGINX), 1.0)
        add("1", "", "≤ 0.55 × nginx + Lua", ratio(by_profile(PATH1), LUA), 0.55)
        add("1", "", "≤ 1.1 × bare hyper", ratio(by_profile(PATH1), BARE), 1.1)
        add("2", built("stateless, json, access log"), "≤ 1.25 × nginx plain", ratio(by_profile(PATH2), NGINX), 1.25)
        add("4", built("durable"), "throughput ≥ 0.4 × stateless, of the same build",
            ratio(by_profile(DURABLE), by_profile(STATELESS_MANY), "rate"), 0.4, less=False)
    return rows


def markdown(rows):
    verdict = {True: "met", False: "**not met**", None: "–"}
    lines = ["| # | path | target | measured, median [min–max] | |", "|---|---|---|---|---|"]
    for row in rows:
        measured = row.measured
        # One value has no spread.
        value, _, rest = measured.partition(" [")
        if rest.startswith(f"{value}–{value}]"):
            measured = value + rest.split("]", 1)[1]
        lines.append(f"| {row.number} | {row.path} | {row.target} | {measured} | {verdict[row.is_met]} |")
    return "\n".join(lines) + "\n"
