"""What grows with what: CPU per request and latency against connections, apps, parameters, reply
size and rows of the journal. Nothing may grow faster than its input; the look-up of an app and the
claim of an order should not grow at all.

Points of a series are measured in turn, several rounds, so that the machine's moods hit all alike.
"""

import contextlib
import os
import sqlite3
import statistics
import sys
import time
from dataclasses import dataclass

import chart
import report
from load import Load
from orders import CREATE, sign
from servers import House

CONNECTIONS = (1, 10, 100, 1000, 5000, 10_000)
APPS = (1, 10, 100, 1000, 10_000)
PARAMETERS = (8, 16, 32, 64)
REPLIES = (100, 1000, 10_000, 100_000, 1 << 20)
ROWS = (0, 10_000, 100_000, 1_000_000, 10_000_000)
# Rows are copied in steps of so many, so that the log of the database stays small.
STEP = 250_000


@dataclass
class Point:
    """One size of the input; `rate` is the fixed rate for its latency, `busy` the one for its CPU
    time: 0 is as fast as it goes."""

    size: int
    load: Load
    rate: int = 1000
    busy: int = 0


def measure(points, rounds, seconds):
    """For each size: CPU µs per request and p50 µs, of every round."""
    found = {point.size: {"cpu_us": [], "p50_us": []} for point in points}
    for point in points:
        point.load.slice(seconds / 2, point.busy)
    for number in range(rounds):
        for point in points:
            found[point.size]["cpu_us"].append(point.load.slice(seconds, point.busy).cpu_us)
            found[point.size]["p50_us"].append(point.load.slice(seconds, point.rate).p50_us)
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for point in points:
        point.load.close()
    return found


def connections(house, rounds):
    """At one rate for all: with 10,000 requests at once it would be their number that is measured,
    and the descriptors that a process may have. The connections take turns."""
    server = house.spigate("connections", house.backend())
    found = {}
    # One size after the other: all at once would be 16,000 connections of one process.
    for size in CONNECTIONS:
        found |= measure([Point(size, Load(house, server, size), busy=4000)], rounds, 1.5)
    return found


def apps(house, rounds):
    backend = house.backend()
    made = [(size, house.spigate(f"apps-{size}", backend, apps=size)) for size in APPS]
    return measure([Point(size, Load(house, server)) for size, server in made], rounds, 1.0)


def parameters(house, rounds):
    """The published example has 8 parameters; more are undocumented ones, signed like the rest."""
    backend = house.backend()
    server = house.spigate("parameters", backend)
    points = []
    for size in PARAMETERS:
        fields = dict(CREATE, time_stamp="2021-06-23T07:26:13Z")
        # The signature is one of them.
        fields |= {f"extra_{number:02}": f"value {number}" for number in range(size - len(fields) - 1)}
        points.append(Point(size, Load(house, server, targets=[f"/spi?{sign(fields)}"])))
    # The fewest that any request has: a connection test's action, time and signature.
    test = {"action": "TestConnection", "time_stamp": "2021-06-23T07:26:13Z"}
    points.insert(0, Point(len(test) + 1, Load(house, server, targets=[f"/spi?{sign(test)}"])))
    return measure(points, rounds, 1.0)


def replies(house, rounds):
    points = []
    for size in REPLIES:
        server = house.spigate(f"reply-{size}", house.backend(size), limits='limits.reply_bytes = "2MiB"')
        load = Load(house, server, connections=16, reply_bytes=size)
        points.append(Point(size, load, rate=200 if size > 500_000 else 1000))
    return measure(points, rounds, 1.0)


def rows(house, rounds, most):
    """Journals of so many deliveries that were really made or are copies of such; then new orders,
    each of them a claim, an end and two flushes."""
    backend = house.backend()
    seed = house.path("rows.db")
    server = house.spigate("rows-seed", backend, once=True, journal=seed)
    with Load(house, server, orders=4000, first=900_000_000_000) as load:
        load.slice(1.0)
    house.stop(server)
    sizes = [size for size in ROWS if size <= most]
    journals = {}
    for size in sizes:
        journals[size] = seed
        if size != sizes[-1]:
            journals[size] = house.path(f"rows-{size}.db")
            copy(seed, journals[size])
        began = time.monotonic()
        fill(journals[size], size)
        print(f"  {size} rows: {os.stat(journals[size]).st_size / 1e6:.0f} MB, filled in {time.monotonic() - began:.0f} s",
              file=sys.stderr, flush=True)
    made = [(size, house.spigate(f"rows-{size}", backend, once=True, journal=journal))
            for size, journal in journals.items()]
    return measure([Point(size, Load(house, server, orders=20_000), rate=500) for size, server in made], rounds, 1.0)


def copy(source, target):
    with contextlib.closing(sqlite3.connect(source)) as database:
        database.execute("VACUUM INTO ?", [target])


def fill(journal, size):
    """Makes it so many deliveries: copies of those that were made, under other keys and numbers, in
    every table that an order has a row in. Keys are hashes in life and random bytes here: what
    matters to the indexes is that they come in no order."""
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -1000000")
        made = database.execute("SELECT count(*) FROM deliveries").fetchone()[0]
        if not size:
            # None at all: what the seed made is forgotten.
            for table in ("deliveries", "keys", "names", "attempts", "aliases", "instances"):
                database.execute(f"DELETE FROM {table}")
            return
        columns = [row[1] for row in database.execute("PRAGMA table_info(deliveries)")]
        given = {"id": "?1 + n.n", "key": "randomblob(32)", "origin": "randomblob(32)",
                 "order_id": "'old-' || (?1 + n.n)", "named_instance": "'i-old-' || (?1 + n.n)",
                 "made_instance": "'i-old-' || (?1 + n.n)",
                 # As retention leaves them after 30 days.
                 "reply": "NULL", "data_key": "NULL"}
        picked = ", ".join(given.get(column, f"d.{column}") for column in columns)
        first = database.execute("SELECT max(id) + 1 FROM deliveries").fetchone()[0]
        while made < size:
            step = min(STEP, size - made)
            database.execute("BEGIN")
            # Row n of the step is a copy of one of the first 1,000 deliveries.
            database.execute(
                f"""INSERT INTO deliveries ({", ".join(columns)})
                    WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?2)
                    SELECT {picked} FROM n JOIN deliveries d ON d.id = 1 + n.n % 1000""", [first, step])
            index(database)
            database.execute("COMMIT")
            made += step
            first += step


def index(database):
    """Puts the keys and names of all deliveries into their tables, as spigate does in time."""
    database.execute("INSERT INTO keys (key, delivery) SELECT key, id FROM deliveries "
                     "WHERE id > (SELECT through FROM indexed) ORDER BY key")
    database.execute("UPDATE indexed SET through = (SELECT max(id) FROM deliveries)")
    for kind, column in enumerate(("order_id", "instance_id", "user_id", "app"), 1):
        database.execute(f"INSERT INTO names (kind, name, delivery) SELECT {kind}, {column}, id FROM deliveries "
                         f"WHERE id > (SELECT through FROM named) AND {column} IS NOT NULL ORDER BY {column}, id")
    database.execute("UPDATE named SET through = (SELECT max(id) FROM deliveries)")


SERIES = {
    "connections": ("Connections", "connections", connections),
    "apps": ("Apps in the configuration", "apps", apps),
    "parameters": ("Parameters of a request", "parameters", parameters),
    "replies": ("Size of a reply", "bytes", replies),
    "rows": ("Deliveries in the journal (SQLite)", "rows", rows),
}


def run(binaries, options):
    results = report.load("growth.json")
    results["about"] = report.about(binaries)
    for name in options.parts or SERIES:
        print(name, file=sys.stderr, flush=True)
        with House(binaries, options.directory) as house:
            rounds = 2 if options.quick else 5
            extra = [min(options.rows, 100_000 if options.quick else options.rows)] if name == "rows" else []
            results[name] = {str(size): found for size, found in SERIES[name][2](house, rounds, *extra).items()}
    print(markdown(results))
    if not options.quick:
        report.save("growth.json", results)
        report.save("growth.md", markdown(results))
        with open(os.path.join(report.ROOT, "docs", "images", "growth.svg"), "w", encoding="utf-8") as file:
            file.write(picture(results))


def markdown(results):
    lines = [f"# Growth, {report.heading(results)}\n"]
    for name, (title, unit, _) in SERIES.items():
        if name in results:
            lines += [f"| {unit} | CPU µs/request, median [min–max] | p50 µs at a fixed rate |", "|---|---|---|"]
            lines += [f"| {int(size):,} | {report.spread(found['cpu_us'], '{:.1f}')} | {report.spread(found['p50_us'], '{:.0f}')} |"
                      for size, found in results[name].items()]
            lines.append("")
    return "\n".join(lines)


def picture(results):
    panels = []
    for name, (title, unit, _) in SERIES.items():
        if name not in results:
            continue
        for figure, what in (("cpu_us", "CPU µs per request"), ("p50_us", "p50 µs at a fixed rate")):
            points = [(int(size), found[figure]) for size, found in results[name].items()]
            wide = max(statistics.median(values) for _, values in points) > 8 * min(statistics.median(values) for _, values in points)
            panels.append(chart.Panel(title, unit, what, [chart.Series(
                "", [(size, statistics.median(values)) for size, values in points],
                [(size, min(values), max(values)) for size, values in points])], log_x=name != "parameters", log_y=wide))
    about = results["about"]
    return chart.sheet(f"{about['spigate']} ({about['commit']}), {about['date']}: medians, with the least and the greatest behind",
                       panels)
