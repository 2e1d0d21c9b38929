"""A vendor's backend with the usual mistakes. Do not copy it: see what `spigate selftest` finds.

It runs behind spigate (send = "json"), and bare, as a notify URL of its own: give it the key then.
What is wrong:

- Connection tests, expiry and deletion are answered with 400, as if only purchases mattered.
- Every copy of an order makes an instance.
- Instances that nobody made are renewed.
- Content-Type is application/json; charset=utf-8, most frameworks' default. spigate mends that.

And bare, where spigate would let nothing of this through:

- A request without a signature passes: only one that is there is compared, and with `!=`.
- Of a parameter that stands twice the last is seen, and the first forgotten.
- The time must not be too old, but may lie in the next year.
- A time that is missing or cannot be read is an exception, and no answer.

Run: python3 naive.py [port [key]]
"""

import base64
import hashlib
import hmac
import json
import secrets
import sys
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, urlsplit

KEY = sys.argv[2] if len(sys.argv) > 2 else None


def is_genuine(order):
    pairs = sorted(pair for pair in order.items() if pair[0] != "signature")
    signed = "GET\n" + "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    mac = base64.b64encode(hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).digest()).decode()
    if order.get("signature") and order["signature"] != mac:
        return False
    time = datetime.strptime(order["time_stamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return (datetime.now(timezone.utc) - time).total_seconds() < 300


def answer(order):
    action = order["action"]
    if action.startswith("Create"):
        login = {"url": "https://crm.example.com", "username": "admin", "password": "changeme1"}
        app_info = {"frontEnd": login, "authUrl": "https://crm.example.com/sso?token=t0k3n"}
        instance_info = {"frontEndUrl": login["url"], "username": "admin", "password": "changeme1"}
        instance_id = f"ins-{secrets.token_hex(8)}"
        return 200, {"success": True, "instanceId": instance_id, "appInfo": app_info, "instanceInfo": instance_info}
    if action.startswith(("Renew", "Upgrade")):
        return 200, {"success": True}
    return 400, {"error": "unknown action"}


class Naive(BaseHTTPRequestHandler):
    def do_GET(self):
        order = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if KEY and not is_genuine(order):
            return self.reply(401, {"success": False, "message": "bad signature"})
        self.reply(*answer(order))

    def do_POST(self):
        self.reply(*answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def reply(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    ThreadingHTTPServer(("127.0.0.1", port), Naive).serve_forever()
