"""Ports on loopback where nobody listens, for programs that cannot say which one they took.

They lie below those that the kernel gives to connections and to listeners on port 0 by itself, so
that nothing else takes them before they are used, or while a server is away.

    python3 scripts/ports.py    # prints one
"""

import itertools
import os
import socket

# Each once, and another process begins elsewhere.
PORTS = itertools.count(12_000 + os.getpid() % 18_000)


def free_port():
    for port in PORTS:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


if __name__ == "__main__":
    print(free_port())
