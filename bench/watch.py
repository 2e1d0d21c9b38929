"""Looks at a process from outside: memory, CPU time, descriptors, threads; and whether a series
of such samples is flat."""

import os
import re
import statistics
import time

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid):
    """A process and its children, as nginx and HAProxy work in children."""
    found = [pid]
    for process in found:
        try:
            tasks = os.listdir(f"/proc/{process}/task")
        except FileNotFoundError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{process}/task/{task}/children", encoding="ascii") as file:
                    found.extend(int(child) for child in file.read().split())
            except FileNotFoundError:
                pass
    return found


def cpu_seconds(pid):
    """utime + stime of a process with all its threads and running children."""
    total = 0
    for process in tree(pid):
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident_bytes(pid):
    """What is resident of a process and its children. Pages that they share count in each."""
    total = 0
    for process in tree(pid):
        with open(f"/proc/{process}/status", encoding="ascii") as file:
            total += int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) * 1024
    return total


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def busy_percent(seconds=1.0):
    """What the machine does besides: how busy its cores are now, time stolen by its host included."""
    def look():
        with open("/proc/stat", encoding="ascii") as file:
            times = [int(field) for field in file.readline().split()[1:9]]
        # The fourth and fifth are idle and waiting for a disk.
        return sum(times), times[3] + times[4]

    total, idle = look()
    time.sleep(seconds)
    total_then, idle_then = look()
    return 100 * (1 - (idle_then - idle) / max(1, total_then - total))


def slope(points):
    """Theil–Sen: the median of the slopes between pairs; a spike does not move it."""
    slopes = [
        (after[1] - before[1]) / (after[0] - before[0])
        for number, before in enumerate(points)
        for after in points[number + 1 :]
    ]
    return statistics.median(slopes) if slopes else 0.0
