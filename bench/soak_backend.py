"""The soak's backend: fails, stalls and breaks off by plan, and keeps the book that the soak is
about: whether a delivery that it confirmed ever reaches it again.

How the first attempt of an order goes is written in its user id, so that both sides know it; any
later attempt goes well. `down` closes the listener and all idle connections for a while.
"""

import asyncio
import json

from http1 import read, response

# What the first attempt does; see `answer`.
PLANS = ("well", "slow", "error", "html", "cut", "reset", "no", "hang")
# Longer than the soak's `answer_within`, shorter than its `timeout`.
SLOW_SECONDS = 3.5
REFUSAL = b'{"success":false,"message":"no more seats"}'


def confirmation(name):
    """The reply to a create: another instance id for each order, and a password that no log may show."""
    return json.dumps({
        "success": True, "instanceId": f"i-{name}",
        "appInfo": {"frontEnd": {"url": "https://crm.example.com/login", "username": "admin", "password": "x" * 24},
                    "authUrl": "https://crm.example.com/sso/" + "z" * 30},
    }).encode()


class Backend:
    def __init__(self):
        self.attempts = {}  # idempotency key -> number of calls
        self.confirmed = set()  # idempotency keys whose success reply was handed over whole
        self.wrong = []
        self.calls = 0
        self.server, self.port = None, 0
        self.idle = set()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def down(self, seconds):
        self.server.close()
        for writer in list(self.idle):
            writer.close()
        await asyncio.sleep(seconds)
        await self.start()

    async def serve(self, reader, writer):
        try:
            while True:
                self.idle.add(writer)
                request = await read(reader)
                self.idle.discard(writer)
                if not await self.answer(request, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.idle.discard(writer)
            writer.close()

    async def answer(self, request, reader, writer):
        """Whether the connection can be used again."""
        self.calls += 1
        method, target, _ = request.first.split(" ")
        if method == "POST":
            fields = json.loads(request.body)
            action, user, order = fields["action"], fields.get("user_id", ""), fields.get("order_id", "")
        else:
            action = request.headers["x-spi-action"]
            user, order = (request.headers.get(f"x-spi-param-{name}", "") for name in ("user-id", "order-id"))
        app = request.headers["x-spi-app"]
        if action != "CreateAppInstance":
            return await self.confirm(request, writer, app, b'{"success":true}')
        plan = user.rsplit("-", 1)[1]
        attempt = 1
        if app != "stateless":
            key = request.headers["idempotency-key"]
            attempt = self.attempts[key] = self.attempts.get(key, 0) + 1
            if int(request.headers["x-spi-attempt"]) < attempt:
                self.wrong.append(f"{order}: attempt {request.headers['x-spi-attempt']} is call number {attempt}")
        if plan not in PLANS:
            self.wrong.append(f"{order}: the user id arrived as {user!r}")
        if attempt == 1:
            if plan == "slow":
                await asyncio.sleep(SLOW_SECONDS)
            elif plan == "error":
                writer.write(response(500, b'{"error":"database"}'))
                return True
            elif plan == "html":
                writer.write(response(200, b"<h1>it works</h1>", "text/html"))
                return True
            elif plan == "cut":
                body = confirmation(order)
                writer.write(response(200, body[:-20], length=len(body)))
                await writer.drain()
                return False
            elif plan == "reset":
                writer.transport.abort()
                return False
            elif plan == "no":
                writer.write(response(200, REFUSAL))
                return True
            elif plan == "hang":
                # Until spigate gives up and closes.
                try:
                    await asyncio.wait_for(reader.read(1), 60)
                except TimeoutError:
                    self.wrong.append(f"{order}: a call that hangs was not given up")
                return False
        return await self.confirm(request, writer, app, confirmation(order))

    async def confirm(self, request, writer, app, body):
        key = request.headers.get("idempotency-key")
        if app != "stateless":
            if key in self.confirmed:
                self.wrong.append(f"{request.first}: {key} reached the backend again after its confirmation")
            self.confirmed.add(key)
        writer.write(response(200, body))
        await writer.drain()
        return True

