"""As much of HTTP/1.1 as the soak's two sides need, on asyncio streams: exact, and strict with
what spigate sends."""

import asyncio
import time
from dataclasses import dataclass


@dataclass
class Message:
    first: str
    headers: dict
    body: bytes

    @property
    def status(self):
        return int(self.first.split(" ", 2)[1])


async def read(reader):
    """One message; a body only by Content-Length, which is all that spigate sends."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    headers = {}
    for line in lines:
        name, value = line.split(":", 1)
        headers[name.lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    return Message(first, headers, await reader.readexactly(length) if length else b"")


def response(status, body, content_type="application/json", length=None):
    length = len(body) if length is None else length
    head = f"HTTP/1.1 {status} x\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


class Client:
    """Keeps connections and takes the one that was used last; like any client it asks once more
    if a kept one turns out to be closed before a byte of the answer came."""

    def __init__(self, port, idle=4):
        self.port, self.idle, self.kept = port, idle, []

    async def get(self, target):
        request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        while True:
            reader, writer, is_kept = await self.connection()
            try:
                writer.write(request)
                message = await read(reader)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                writer.close()
                if is_kept and not getattr(error, "partial", b""):
                    continue
                raise
            if message.headers.get("connection", "").lower() == "close":
                writer.close()
            else:
                self.kept.append((reader, writer, time.monotonic()))
            return message

    async def connection(self):
        while self.kept:
            reader, writer, since = self.kept.pop()
            if time.monotonic() - since < self.idle and not reader.at_eof():
                return reader, writer, True
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return reader, writer, False

    async def hang_up(self, target):
        """Sends a request and does not wait for its answer."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await writer.drain()
        # Long enough that the request is read most of the time.
        await asyncio.sleep(0.02)
        writer.close()

    def close(self):
        while self.kept:
            self.kept.pop()[1].close()
