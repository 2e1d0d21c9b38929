"""Results as JSON and as Markdown, and the tables in README and docs that show them: between the
lines `<!-- bench:begin -->` and `<!-- bench:end -->` stands what the last real run has written."""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess

import compare
import targets
import watch
from servers import ROOT
from targets import ratios, spread

RESULTS = os.path.join(ROOT, "bench", "results")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

CHINESE = {
    compare.NGINX: "nginx，只做代理",
    compare.LUA: "nginx + Lua，验签并检查应答",
    compare.HAPROXY: "HAProxy，只做代理",
    compare.BARE: "裸 hyper，验签并检查应答",
    compare.PATH1: "spigate，`headers`",
    compare.PATH2: "spigate，`json`，带访问日志",
    compare.REFUSED: "spigate，拒绝错误的签名",
    compare.TLS: "spigate，`headers`，TLS",
    compare.REPLAYED: "spigate，重放已记录的订单",
    compare.STATELESS_MANY: "spigate，`headers`，256 个连接",
    compare.DURABLE: "spigate，持久投递，订单各不相同，256 个连接",
}
CHINESE |= {compare.by_profile(name): f"{CHINESE[name]}（`scripts/release` 构建）" for name in compare.PROFILED}


def said(*command):
    """The first line that a program says of its version."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return (done.stdout + done.stderr).strip().splitlines()[0]


def about(binaries):
    """Machine and versions."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = re.search(r"model name\s*:\s*(.*)", file.read())
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(re.search(r"MemTotal:\s*(\d+)", file.read()).group(1)) / 1024 / 1024
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=False).stdout.strip()
    nginx = said("nginx", "-v")
    haproxy = said("haproxy", "-v")
    return {
        "date": datetime.date.today().isoformat(), "commit": commit, "spigate": said(binaries["spigate"], "--version"),
        "nginx": nginx and nginx.split("/")[-1], "haproxy": haproxy and haproxy.split()[2],
        "kernel": platform.release(), "cpu": cpu.group(1) if cpu else platform.machine(), "cores": os.cpu_count(),
        "memory_gib": round(memory, 1), "busy_percent": round(watch.busy_percent()),
    }


def heading(results):
    told = results["about"]
    other = f"; busy with other work before the run: {told['busy_percent']} %" if told.get("busy_percent", 0) > 2 else ""
    return (f"{told['date']}, {told['spigate']} ({told['commit']}), nginx {told['nginx']}, HAProxy {told['haproxy']}; "
            f"{told['cores']} cores of {told['cpu']}, Linux {told['kernel']}{other}")


def comparison(results):
    """The main table."""
    cpu, late, memory = (results.get(part, {}) for part in ("cpu", "latency", "memory"))
    at_rate = late.get("at_rate", {})
    lines = [
        "| candidate | does | CPU µs/request, median [min–max] | × nginx plain | requests/s | "
        f"ms at {compare.RATE:,}/s: p50, p99 | MB at {compare.CONNECTIONS}, {compare.CROWD:,} connections |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, does in compare.DOES.items():
        if name not in cpu:
            continue
        found, ratio = cpu[name], ratios(cpu[name]["cpu_us"], cpu[compare.NGINX]["cpu_us"])
        quick = at_rate.get(name)
        times = ", ".join(f"{statistics.median(quick[figure]) / 1000:.2f}" for figure in ("p50_us", "p99_us")) if quick else ""
        room = memory.get(name)
        sizes = ", ".join(f"{room[at] / 1e6:.0f}" for at in ("at_64", "at_2000")) if room else ""
        lines.append(f"| {name} | {does} | {spread(found['cpu_us'], '{:.1f}')} | {spread(ratio)} | "
                     f"{statistics.median(found['rate']):,.0f} | {times} | {sizes} |")
    return "\n".join(lines) + "\n"


def few(results):
    """What was measured of some candidates only, and the targets that it says something of."""
    lines = []
    if cpu := results.get("cpu"):
        lines += ["| candidate | CPU µs/request, median [min–max] | requests/s |", "|---|---|---|"]
        lines += [f"| {name} | {spread(found['cpu_us'], '{:.1f}')} | {spread(found['rate'], '{:,.0f}')} |"
                  for name, found in cpu.items()]
    rows = [row for row in targets.table(results) if row.is_met is not None]
    return "\n".join([heading(results), "", *lines, "", targets.markdown(rows) if rows else ""])


def short(results, chinese=False):
    """The table for the README."""
    told, cpu, memory = results["about"], results["cpu"], results.get("memory", {})
    rounds = len(next(iter(cpu.values()))["cpu_us"])
    if chinese:
        lines = [f"{told['date']} 由 `scripts/bench` 测得：spigate {told['commit']}，nginx {told['nginx']}，HAProxy "
                 f"{told['haproxy']}，{told['cpu']} 的 {told['cores']} 个核心；{rounds} 轮交替测量的中位数，方括号内为最小值和最大值。", "",
                 "| 被测对象 | 每个请求的 CPU 时间（µs） | 与 nginx 之比 | 64 个连接时的内存（MB） |", "|---|---|---|---|"]
    else:
        lines = [f"Measured by `scripts/bench` on {told['date']}: spigate {told['commit']}, nginx {told['nginx']}, HAProxy "
                 f"{told['haproxy']}, {told['cores']} cores of {told['cpu']}; medians of {rounds} alternating rounds, with the "
                 "least and the greatest.", "",
                 "| candidate | CPU µs/request | × nginx plain | MB at 64 connections |", "|---|---|---|---|"]
    for name in compare.DOES:
        if name in cpu:
            ratio = ratios(cpu[name]["cpu_us"], cpu[compare.NGINX]["cpu_us"])
            room = f"{memory[name]['at_64'] / 1e6:.0f}" if name in memory else ""
            lines.append(f"| {CHINESE[name] if chinese else name} | {spread(cpu[name]['cpu_us'], '{:.1f}')} | {spread(ratio)} | {room} |")
    return "\n".join(lines) + "\n"


def whole(results):
    """What is printed and kept."""
    parts = [f"# {heading(results)}\n"]
    if "cpu" in results:
        parts.append(f"{compare.CONNECTIONS} connections where the name does not say otherwise.\n\n{comparison(results)}")
    if "scale" in results:
        lines = ["| nothing pinned | CPU µs/request |", "|---|---|"]
        lines += [f"| {name} | {spread(values, '{:.1f}')} |" for name, values in results["scale"].items()]
        parts.append("\n".join(lines) + "\n")
    if "memory" in results:
        lines = ["| resident, MB | fresh | after load, 64 connections | 2,000 more, idle | KB for each of these |", "|---|---|---|---|---|"]
        lines += [f"| {name} | {room['fresh'] / 1e6:.1f} | {room['at_64'] / 1e6:.1f} | {room['at_2000'] / 1e6:.1f} | "
                  f"{room['per_connection'] / 1000:.1f} |" for name, room in results["memory"].items()]
        parts.append("\n".join(lines) + "\n")
    parts.append(f"## Targets\n\n{targets.markdown(targets.table(results))}")
    return "\n".join(parts)


def load(name):
    try:
        with open(os.path.join(RESULTS, name), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def save(name, content):
    os.makedirs(RESULTS, exist_ok=True)
    with open(os.path.join(RESULTS, name), "w", encoding="utf-8") as file:
        if name.endswith(".json"):
            json.dump(rounded(content), file, indent=1, ensure_ascii=False)
            file.write("\n")
        else:
            file.write(content)


def rounded(value):
    """Four digits say all that a measurement says."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def paste(file, text):
    """Puts a table between the markers of a page."""
    path = os.path.join(ROOT, file)
    with open(path, encoding="utf-8") as page:
        old = page.read()
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.S)
    new, count = pattern.subn(lambda found: f"{found.group(1)}{text}{found.group(2)}", old)
    if count != 1:
        raise SystemExit(f"{file}: the lines {BEGIN} and {END} must stand there once")
    with open(path, "w", encoding="utf-8") as page:
        page.write(new)


def write_tables(results):
    paste("README.md", short(results))
    paste("README.zh-CN.md", short(results, chinese=True))
    paste("docs/performance.md", whole(results).replace("# ", "### ", 1).replace("\n## ", "\n### "))
