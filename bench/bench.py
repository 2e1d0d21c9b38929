"""What a request costs: spigate beside nginx, HAProxy and a bare hyper proxy, on this machine.

Without a word: the whole comparison and the table of targets. `--quick` takes 3 minutes, else it
is below 15. `growth`, `memory`, `pages`: see the files of those names. `tables`: only writes the tables of
the results that are there into README and docs; `--readme` does so after a run.

Nothing here passes or fails by a figure. A candidate that answers wrongly ends the run.
"""

import argparse
import os
import shutil
import signal
import sys

import compare
import growth
import memory
import pages
import report
from servers import ROOT, House, has_lua

PARTS = ("cpu", "latency", "memory", "scale", "start", "core")


def program(directory, name):
    path = os.path.join(directory, name)
    if not os.path.exists(path):
        sys.exit(f"{path} is missing; start this by scripts/bench, which builds it")
    return path


def measure(part, binaries, options):
    """One part of the comparison, in a house of its own."""
    quick = options.quick
    with House(binaries, options.directory) as house:
        if part == "cpu":
            return compare.cpu(house, 4 if quick else 18, options.only)
        if part == "latency":
            return compare.latency(house, 2 if quick else 8, options.only)
        if part == "memory":
            return compare.resident(house)
        if part == "scale":
            return compare.scale(house, 3 if quick else 12)
        if part == "start":
            return {"ms": compare.start_up(house, 5 if quick else 20),
                    "binary_bytes": os.stat(binaries["spigate"]).st_size}
        return compare.core(house)


def main():
    # A run that is told to stop ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="compare", choices=("compare", "growth", "memory", "pages", "tables"))
    parser.add_argument("--quick", action="store_true", help="fewer rounds: 3 minutes; keeps no results")
    parser.add_argument("--smoke", action="store_true", help="tries every candidate and measures nothing")
    parser.add_argument("--parts", metavar="A,B", help="only these parts, into the results that are there: "
                        f"{', '.join(PARTS)}; of growth {', '.join(growth.SERIES)}")
    parser.add_argument("--only", metavar="WORDS", action="append", help="measures the CPU time and latency of those "
                        "candidates only whose names hold these words; may be given again; keeps no results")
    parser.add_argument("--optimized", metavar="FILE", help="measures this program as well, which scripts/release "
                        "has built")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of growth: most rows of a journal")
    parser.add_argument("--deliveries", type=int, default=1_000_000, help="of pages: how many are in the journal")
    parser.add_argument("--readme", action="store_true", help="writes the tables into README and docs")
    parser.add_argument("--directory", help="where journals lie while they are measured; a real disk")
    parser.add_argument("--dev", action="store_true", help="with --smoke: the binaries of the dev profile")
    parser.add_argument("--binaries", default=os.path.join(ROOT, "target", "release"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    binaries = {"spigate": program(options.binaries, "spigate")} | {
        name: program(os.path.join(options.binaries, "examples"), name) for name in ("load", "bare_hyper", "core")}
    if options.optimized:
        binaries["profiled"] = program(*os.path.split(os.path.realpath(options.optimized)))
    known = {"growth": list(growth.SERIES), "compare": PARTS}.get(options.what, ())
    options.parts = options.parts.split(",") if options.parts else None
    if unknown := set(options.parts or ()) - set(known):
        parser.error(f"there are no parts {', '.join(sorted(unknown))}")
    if options.what == "tables":
        report.write_tables(report.load("bench.json"))
        return
    lacking = [name for name, is_there in (
        ("nginx", shutil.which("nginx")), ("nginx with Lua (libnginx-mod-http-lua, lua-cjson)", has_lua()),
        ("haproxy", shutil.which("haproxy")), ("openssl", shutil.which("openssl"))) if not is_there]
    for name in lacking:
        print(f"skipped: {name}", file=sys.stderr)
    if lacking and os.environ.get("CI") == "true":
        sys.exit("error: CI must not skip it")
    if options.dev and not options.smoke:
        parser.error("--dev is for --smoke: a dev build measures nothing")
    if options.smoke:
        with House(binaries, options.directory) as house, compare.candidates(house, orders=2000) as loads:
            compare.rounds(1, loads, lambda candidate: candidate.load.slice(0.2))
            print(f"{len(loads)} candidates start, refuse what they must and answer rightly")
        return
    if options.what == "growth":
        growth.run(binaries, options)
        return
    if options.what == "memory":
        memory.run(binaries, options)
        return
    if options.what == "pages":
        pages.run(binaries, options)
        return
    if options.only:
        options.parts = options.parts or ["cpu", "latency"]
    # A whole run begins anew; parts are added to what is there.
    results = report.load("bench.json") if options.parts and not options.only else {}
    results["about"] = report.about(binaries)
    for part in PARTS:
        if part in (options.parts or PARTS):
            print(part, file=sys.stderr, flush=True)
            results[part] = measure(part, binaries, options)
    if options.only:
        print(report.few(results))
        return
    if soak := report.load("soak.json"):
        results["soak"] = soak
    print(report.whole(results))
    if not options.quick:
        report.save("bench.json", results)
        report.save("bench.md", report.whole(results))
    if options.readme:
        report.write_tables(results)


if __name__ == "__main__":
    main()
