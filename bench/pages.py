"""How long the journal page takes at a million deliveries.

A gateway delivers one order through a backend and is stopped; its row is copied a million times
with keys, orders, instances, customers and times of their own (the replies are copies, so they
cannot be opened; one delivery that was made for real is among those that are opened), and a
fiftieth of them refused, failed or tried twice. Then a gateway is started on that journal, and each
question is asked many times over one connection: what is measured is from the first byte sent to the
last byte received, on loopback. Nothing here is pass or fail.
"""

import http.client
import os
import sqlite3
import statistics
import sys
import time

from growth import index
from load import Load
from orders import CREATE, now, sign
from servers import House, get

DAYS = 30
ROUNDS = 200
FILL = """
INSERT INTO deliveries (key, origin, fingerprint, extras, app, action, debug, cycle, order_id, instance_id, user_id,
    received_at, changed_at, state, doubt, number, gateway, claim, request_id, began_at, ended_at, outcome, code,
    confirmed_at, made_instance, data_key, reply, answered_at)
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
SELECT randomblob(32), randomblob(32), fingerprint, extras, CASE WHEN i % 1000 = 0 THEN 'rare' ELSE app END, action, 0, 0,
    printf('ord-%08d-%08x', i, abs(random()) % 4294967296), NULL, printf('usr-%08x', abs(random()) % 100000),
    :begin + i * :step, :begin + i * :step, CASE WHEN i % 50 = 0 THEN 'open' ELSE 'done' END, 0,
    CASE WHEN i % 200 = 1 THEN 2 ELSE 1 END, gateway, i, request_id, :begin + i * :step, :begin + i * :step + 20,
    CASE WHEN i % 50 <> 0 THEN 'confirmed' WHEN i % 100 = 0 THEN 'refused' ELSE 'failed' END, NULL,
    CASE WHEN i % 50 <> 0 THEN :begin + i * :step + 20 END,
    CASE WHEN i % 50 <> 0 THEN printf('ins-%08x%08x', abs(random()) % 4294967296, i) END,
    CASE WHEN i % 50 <> 0 THEN data_key END, CASE WHEN i % 50 <> 0 THEN reply END,
    CASE WHEN i % 50 <> 0 THEN :begin + i * :step + 21 END
FROM n, (SELECT * FROM deliveries ORDER BY id LIMIT 1)
"""


def fill(journal, count):
    """Copies the first delivery; one that was made for real stays the latest."""
    begin, step = int((time.time() - DAYS * 86_400) * 1000), DAYS * 86_400_000 // count
    database = sqlite3.connect(journal)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA cache_size = -400000")
    with database:
        database.execute(FILL, {"count": count, "begin": begin, "step": step})
        index(database)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    rows = database.execute(
        "SELECT order_id, made_instance, user_id, lower(hex(substr(key, 1, 16))) FROM deliveries "
        "WHERE id % :every = 3 AND made_instance IS NOT NULL", {"every": max(count // 500, 1)}).fetchall()
    database.close()
    return rows


def ask(connection, path):
    """Milliseconds, and the length of the answer."""
    begun = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    took = (time.perf_counter() - begun) * 1000
    if answer.status not in (200, 303):
        sys.exit(f"{path}: {answer.status} {body[:300]!r}")
    return took, len(body)


def measure(admin, rows, count, rounds):
    connection = http.client.HTTPConnection("127.0.0.1", admin)
    middle, old = count // 2, "20d"
    questions = {
        "overview": lambda at: "/",
        "list, latest": lambda at: "/deliveries",
        "list, deep in it": lambda at: f"/deliveries?cursor={middle + at}",
        "list, an app that is one in a thousand": lambda at: f"/deliveries?app=rare&cursor={count - at}",
        "list, refused": lambda at: f"/deliveries?outcome=refused&cursor={count - at}",
        "list, an app and an action that never was": lambda at: f"/deliveries?app=app-1&action=No&cursor={count - at}",
        "list, before 20 days ago": lambda at: f"/deliveries?until={old}&app=app-1",
        "search by order": lambda at: f"/deliveries?order_id={rows[at % len(rows)][0]}",
        "search by instance": lambda at: f"/deliveries?instance_id={rows[at % len(rows)][1]}",
        "search by customer": lambda at: f"/deliveries?user_id={rows[at % len(rows)][2]}",
        "search for anything": lambda at: f"/deliveries?q={rows[at % len(rows)][at % 4]}",
        "search for what is not there": lambda at: f"/deliveries?q=nobody-{at}",
        "one delivery": lambda at: f"/deliveries/{rows[at % len(rows)][3]}",
        "the same for programs": lambda at: f"/api/v1/deliveries/{rows[at % len(rows)][3]}",
        "list for programs, 500": lambda at: "/api/v1/deliveries?limit=500",
    }
    print("| asked for | p50 ms | p99 ms | bytes |\n|---|---|---|---|")
    for name, path in questions.items():
        # What was gathered for the overview lasts two seconds; each round here has it gathered anew.
        pause, times = (2.1, max(rounds // 20, 5)) if name == "overview" else (0, rounds)
        samples, length = [], 0
        for at in range(times):
            time.sleep(pause)
            took, length = ask(connection, path(at))
            samples.append(took)
        samples.sort()
        print(f"| {name} | {statistics.median(samples):.1f} | {samples[int(len(samples) * 0.99)]:.1f} | {length} |")


def run(binaries, options):
    with House(binaries, options.directory) as house:
        backend, journal = house.backend(), house.path("pages.db")
        server = house.spigate("pages-seed", backend, once=True, journal=journal)
        for order in ("ord-000000000001", "ord-000000000002"):
            query = sign(dict(CREATE, order_id=order, time_stamp=now()))
            if get(f"http://127.0.0.1:{server.port}/spi?{query}")[0] != 200:
                sys.exit("the first order was not delivered")
        house.stop(server)
        rows = fill(journal, options.deliveries)
        server = house.spigate("pages", backend, once=True, journal=journal)
        size = os.path.getsize(journal) / 1e6
        print(f"{options.deliveries} deliveries, {size:.0f} MB, {ROUNDS} questions of each kind\n")
        measure(server.admin, rows, options.deliveries, ROUNDS)
