"""The soak's platform: sends orders at a fixed rate, each with the copies, pauses and hang-ups
that real ones have, and knows of every answer whether it may be given."""

import asyncio
import json
import random
import time
from collections import Counter

from orders import CREATE, flip, now, sign
from soak_backend import PLANS, REFUSAL, confirmation

APPS = ("json", "headers", "stateless")
# How often each plan is drawn: mostly well, as in life, and each fault often enough.
WEIGHTS = (80, 3, 4, 2, 3, 3, 3, 2)
# What the platform may be told while the first attempt of a plan runs, and when it has ended.
FIRST = {
    "well": {(200, None)}, "slow": {(504, "backend_timeout")}, "error": {(502, "backend_error")},
    "html": {(502, "backend_contract")}, "cut": {(502, "backend_broken_reply")},
    "reset": {(502, "backend_broken_reply")}, "no": {(200, None)}, "hang": {(504, "backend_timeout")},
}
# What the gateway is configured with, in seconds.
ANSWER_WITHIN, TIMEOUT = 2, 8
# Longer than the timeout: the first attempt has ended, whatever became of it.
SETTLED = TIMEOUT + 2.5

# What an order may be told that waited for a slow machine until `answer_within`.
COME_AGAIN = {"backend_timeout", "delivery_in_progress", "journal_unavailable"}


class Platform:
    def __init__(self, client, seed, longest_memory):
        self.client = client
        # Until how many seconds later a copy of an order comes that was long answered.
        self.longest_memory = longest_memory
        self.random = random.Random(seed)
        self.number = 0
        self.answers = Counter()
        self.wrong = []
        # Orders that were told to come again because this machine or its disk was slower than
        # `answer_within`.
        self.late = 0
        self.lives = set()
        self.seconds = []  # latency of orders that go well, first copy
        # Until when answers that say "no backend" are no surprise; `down` sets it.
        self.trouble_until = 0.0

    def begin(self):
        """One more order, or one more stranger; its life goes on by itself."""
        life = asyncio.ensure_future(self.stranger() if self.random.random() < 0.12 else self.order())
        self.lives.add(life)
        life.add_done_callback(self.ended)

    def ended(self, life):
        self.lives.discard(life)
        if not life.cancelled() and life.exception():
            self.fault(f"{type(life.exception()).__name__}: {life.exception()}")

    def fault(self, text):
        self.wrong.append(text)

    async def send(self, app, fields):
        """One request, signed now, and what it was answered: status, code, body, and after how many seconds."""
        target = f"/{app}?{sign(dict(fields, time_stamp=now()))}"
        begun = time.monotonic()
        message = await self.client.get(target)
        took = time.monotonic() - begun
        return *self.judge(message, f"{app} {fields.get('order_id')} {fields.get('user_id')}"), took

    def judge(self, message, what):
        if message.headers.get("content-type") != "application/json":
            self.fault(f"{what}: content type {message.headers.get('content-type')}")
        code = None
        if message.status != 200:
            code = json.loads(message.body)["code"]
        self.answers[(message.status, code)] += 1
        return message.status, code, message.body

    def expect(self, what, answer, allowed, body=None):
        """Whether it was answered so. An answer that the backend's absence or a slow machine
        explains is no fault; the order has to come again."""
        status, code, got, took = answer
        if (status, code) not in allowed:
            if code in COME_AGAIN and took >= ANSWER_WITHIN:
                self.late += 1
            elif status != 502 or time.monotonic() > self.trouble_until:
                self.fault(f"{what}: answered {status} {code} {got[:120]!r}, allowed is {allowed}")
            return False
        if status == 200 and body is not None and got != body:
            self.fault(f"{what}: answered {got[:160]!r} instead of {body[:60]!r}")
        return True

    async def order(self):
        self.number += 1
        name = f"ord-{self.number:09}"
        app = APPS[self.number % 8 % 3] if self.number % 8 < 3 else APPS[self.number % 2]
        plan = "well" if app == "stateless" else self.random.choices(PLANS, WEIGHTS)[0]
        fields = dict(CREATE, order_id=name, user_id=f"usr-{plan}")
        what = f"{app} {name} {plan}"
        # Whether the first attempt went as planned, instead of finding no backend.
        went = True
        success = confirmation(name)
        if app == "stateless":
            self.expect(what, await self.send(app, fields), {(200, None)}, success)
            return
        if plan == "well" and self.random.random() < 0.05:
            await self.client.hang_up(f"/{app}?{sign(dict(fields, time_stamp=now()))}")
            await asyncio.sleep(self.random.uniform(0, 2))
        elif plan == "well" and self.random.random() < 0.3:
            # Copies at once: one of them is delivered, and all get its answer.
            for answer in await asyncio.gather(*(self.send(app, fields) for _ in range(3))):
                self.expect(what, answer, FIRST[plan], success)
        else:
            begun = time.monotonic()
            answer = await self.send(app, fields)
            if plan == "well":
                self.seconds.append(time.monotonic() - begun)
            went = self.expect(what, answer, FIRST[plan], REFUSAL if plan == "no" else success)
        if plan in ("slow", "hang"):
            # A copy while the attempt may still run: it joins, or gets what has become of it.
            joined = {(200, None), (503, "delivery_in_progress"), (504, "backend_timeout")}
            self.expect(what, await self.send(app, fields), joined, success)
        await asyncio.sleep(self.pause(plan))
        # The platform comes again until it is told of a success.
        for _ in range(20):
            answer = await self.send(app, fields)
            if not went and answer[:2] in FIRST[plan] and answer[2] != success:
                # The first attempt that reaches the backend is only this one.
                went = True
                await asyncio.sleep(self.pause(plan))
                continue
            if self.expect(what, answer, {(200, None)}, success):
                break
            await asyncio.sleep(1.5)
        else:
            self.fault(f"{what}: never got through")
            return
        if self.random.random() < 0.3:
            await asyncio.sleep(self.random.uniform(0, self.longest_memory))
            self.expect(f"{what}, replayed", await self.send(app, fields), {(200, None)}, success)
        if self.random.random() < 0.02:
            conflict = dict(fields, period="2_year")
            self.expect(f"{what}, other content", await self.send(app, conflict), {(422, "order_conflict")})
        if self.random.random() < 0.1:
            await self.expire(app, f"i-{name}", what)

    def pause(self, plan):
        """Until an attempt of this plan has ended."""
        if plan in ("slow", "hang"):
            return SETTLED
        return 0 if plan == "well" else self.random.uniform(0.2, 2)

    async def expire(self, app, instance, what):
        fields = {"action": "ExpireAppInstance", "instance_id": instance}
        for _ in range(20):
            if self.expect(f"{what}, expired", await self.send(app, fields), {(200, None)}, b'{"success":true}'):
                break
            await asyncio.sleep(1.5)
        self.expect(f"{what}, expired again", await self.send(app, fields), {(200, None)}, b'{"success":true}')

    async def stranger(self):
        """Somebody who must be refused, whatever he tries."""
        fields = dict(CREATE, order_id=f"str-{self.random.getrandbits(40)}", user_id="usr-nobody")
        kind = self.random.randrange(6)
        if kind == 0:
            target, allowed = f"/json?{flip(sign(dict(fields, time_stamp=now())))}", (401, "signature_invalid")
        elif kind == 1:
            target, allowed = f"/json?{sign(dict(fields, time_stamp=now(-3600)))}", (401, "timestamp_expired")
        elif kind == 2:
            target, allowed = f"/headers?{sign(dict(fields, time_stamp=now()))}&admin=1", (401, "signature_invalid")
        elif kind == 3:
            target, allowed = f"/nowhere?{sign(dict(fields, time_stamp=now()))}", (404, "unknown_app")
        elif kind == 4:
            target, allowed = "/json?action=%ff", (400, "malformed_request")
        else:
            query = sign(dict(fields, time_stamp=now(), cloud_info="e30"))
            target, allowed = f"/json?{query}", (400, "field_invalid")
        answer = self.judge(await self.client.get(target), f"stranger {kind}")
        self.expect(f"stranger {kind}", (*answer, 0), {allowed})
