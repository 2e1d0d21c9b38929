"""Memory under attack: what each kind of connection and request can make spigate hold, beside what
the configuration allows.

A fresh process for each attack, with `[limits]` of a sidecar (deploy/kubernetes/overlays/sidecar)
but for the number of connections, which is what is attacked with. Resident memory before and
during; the difference by the number of attackers is the figure. After it the attackers leave, and
an ordinary request has to be answered.
"""

import contextlib
import selectors
import socket
import ssl
import sys
import threading
import time

import report
from orders import CREATE, PUBLISHED, sign
from servers import House, get

KIB = 1024
IDLE = 10_000
HTTP2 = 2_000
# More than the limit lets in, so that the limit is seen to hold.
IN_FLIGHT = 256
REPLY = 256 * KIB
LIMITS = f"""limits.connections = 12000
limits.in_flight = {IN_FLIGHT}
limits.reply_bytes = "{REPLY // KIB}KiB"
"""


def settle(server):
    """Resident memory once it stands still: the same within 64 KiB for half a second."""
    last = server.resident()
    for _ in range(60):
        time.sleep(0.5)
        now = server.resident()
        if abs(now - last) <= 64 * KIB:
            return now
        last = now
    return last


def plain(server):
    return socket.create_connection(("127.0.0.1", server.port), 10)


def asked(connection, target=f"/spi?{PUBLISHED}", headers=""):
    """Sends a request and reads its answer, so that the connection is one that was used."""
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data or len(data.split(b"\r\n\r\n", 1)[1]) < length(data):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError(f"closed after {data[:200]!r}")
        data += part
    return data


def length(data):
    head = data.split(b"\r\n\r\n", 1)[0].lower()
    return int(head.split(b"content-length:")[1].split(b"\r\n")[0])


def idle(server, attackers):
    """Connected, never a byte."""
    attackers += [plain(server) for _ in range(IDLE)]


def idle_used(server, attackers):
    """Asked once each, and were answered; idle since."""
    for _ in range(IDLE):
        attackers.append(plain(server))
        asked(attackers[-1])


def idle_tls(server, attackers):
    """A handshake, one request, and idle since."""
    context = ssl.create_default_context(cafile=server.trust)
    for _ in range(IDLE):
        attackers.append(context.wrap_socket(plain(server), server_hostname="localhost"))
        asked(attackers[-1])


def idle_http2(server, attackers):
    """A handshake that agrees on HTTP/2, one request, and idle since. A client has to answer a PING
    within 40 s, which these do not: they have to be fewer than can be opened in that time."""
    context = ssl.create_default_context(cafile=server.trust)
    context.set_alpn_protocols(["h2"])
    # GET, https; path and authority as literals: HPACK without its tables.
    head = b"\x82\x87\x04" + hpack_text(f"/spi?{PUBLISHED}") + b"\x01" + hpack_text("localhost")
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS) + frame(HEADERS, END_STREAM | END_HEADERS, 1, head)
    for _ in range(HTTP2):
        attackers.append(context.wrap_socket(plain(server), server_hostname="localhost"))
        attackers[-1].sendall(begin)
        read_answer(attackers[-1])


DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
ACK = END_STREAM = 1
END_HEADERS = 4


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def hpack_text(text):
    """A string without compression; its length in seven bits, and then in groups of seven."""
    rest, size = len(text) - 127, bytes([min(len(text), 127)])
    while rest >= 0:
        size += bytes([rest % 128 | (0x80 if rest >= 128 else 0)])
        rest = rest // 128 or -1
    return size + text.encode()


def read_answer(connection):
    """Frames to the end of the one stream; the settings of the server are taken note of."""
    with connection.makefile("rb") as stream:
        while True:
            header = stream.read(9)
            if len(header) < 9:
                raise ConnectionError("closed before the answer")
            kind, flags = header[3], header[4]
            stream.read(int.from_bytes(header[:3], "big"))
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK))
            if kind not in (DATA, HEADERS, SETTINGS, WINDOW_UPDATE):
                raise ConnectionError(f"a frame of kind {kind}, not an answer")
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                return


def half_heads(server, attackers):
    """Almost all of the largest head that is read, and then nothing."""
    head = b"GET /spi?" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"b" * 65_000
    for _ in range(1000):
        attackers.append(plain(server))
        attackers[-1].sendall(head)


def slow_readers(server, attackers):
    """Ask for the largest reply again and again on a connection, and read nothing."""
    request = f"GET /spi?{PUBLISHED} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for _ in range(1000):
        connection = socket.socket()
        # The least that the kernel allows, so that the answer stays with the gateway.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request * 8)
        attackers.append(connection)


def largest(server, attackers):
    """As many of the largest valid requests at once as callers, to a backend that gives its largest
    reply slowly, so that all are in flight together."""
    fields = dict(CREATE, time_stamp="2021-06-23T07:26:13Z", order_id="ord-{}")
    padding = 15_000 // 50
    fields |= {f"extra_{number:02}": "v" * padding for number in range(50)}
    headers = "".join(f"X-Pad-{number}: {'p' * 400}\r\n" for number in range(70))
    for number in range(1000):
        attackers.append(plain(server))
        query = sign(dict(fields, order_id=f"ord-{number:012}"))
        attackers[-1].sendall(f"GET /spi?{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())


class SlowBackend:
    """Sends all of the largest reply but its last byte, and that only when told to."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.held = []
        self.end = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        body = b'{"success":true,"instanceId":"i-1","message":"' + b"z" * (REPLY - 49) + b'"}'
        answer = (f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body
        waiting = selectors.DefaultSelector()
        waiting.register(self.listener, selectors.EVENT_READ)
        while not self.end.is_set():
            for key, _ in waiting.select(0.2):
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    waiting.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj
                waiting.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.recv(256 * KIB)
                    connection.sendall(answer[:-1])
                self.held.append(connection)
        for connection in self.held:
            connection.close()


ATTACKS = {
    "idle connections, never a byte": (idle, IDLE, {}),
    "idle connections, asked once": (idle_used, IDLE, {}),
    "idle TLS connections, asked once": (idle_tls, IDLE, {"tls": True}),
    "idle HTTP/2 connections, asked once": (idle_http2, HTTP2, {"tls": True}),
    "heads of 125 KB without an end": (half_heads, 1000, {}),
    "slow readers of replies of 256 KiB": (slow_readers, 1000, {"reply": REPLY}),
    "largest requests and replies, in flight": (largest, 1000, {"backend": SlowBackend}),
}


def run(binaries, options):
    results = {"about": report.about(binaries), "attacks": {}}
    for name, (attack, count, needs) in ATTACKS.items():
        with House(binaries, options.directory) as house:
            backend = needs["backend"]() if "backend" in needs else house.backend(needs.get("reply", 350))
            tls = house.certificate() if "tls" in needs else None
            server = house.spigate("attacked", backend, send="json", access=True, limits=LIMITS, tls=tls,
                                   once="backend" in needs)
            server.trust = tls and tls[0]
            before = settle(server)
            attackers = []
            attack(server, attackers)
            during = settle(server)
            open_ = metric(server, "spigate_connections")
            for connection in attackers:
                connection.close()
            if "backend" in needs:
                backend.end.set()
            after = recover(server, tls)
            results["attacks"][name] = {"count": count, "before": before, "during": during, "after": after,
                                        "each": (during - before) / count, "open": open_}
            print(f"  {name}: {before / 1e6:.1f} MB, {during / 1e6:.1f} MB, {open_:.0f} connections", file=sys.stderr, flush=True)
    print(markdown(results))
    if not options.quick:
        report.save("memory.json", results)
        report.save("memory.md", markdown(results))


def metric(server, name):
    text = get(f"http://127.0.0.1:{server.admin}/metrics")[2]
    return next(float(line.split(" ")[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def recover(server, tls):
    """Until all attackers are gone; then an ordinary caller is answered."""
    deadline = time.monotonic() + 90
    while metric(server, "spigate_connections") > 0:
        if time.monotonic() > deadline:
            sys.exit("connections stay open after their callers left")
        time.sleep(0.1)
    connection = plain(server)
    if tls:
        connection = ssl.create_default_context(cafile=tls[0]).wrap_socket(connection, server_hostname="localhost")
    with connection:
        asked(connection, "/spi?action=%ff")
    return settle(server)


def markdown(results):
    lines = [f"# Memory under attack, {report.heading(results)}\n",
             "| attackers | connections | MB before | MB during | MB after | KB for each |", "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {found['open']:,.0f} | {found['before'] / 1e6:.1f} | {found['during'] / 1e6:.1f} | "
              f"{found['after'] / 1e6:.1f} | {found['each'] / 1000:.1f} |" for name, found in results["attacks"].items()]
    return "\n".join(lines) + "\n"
