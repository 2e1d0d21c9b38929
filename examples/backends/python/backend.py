"""A vendor's backend behind spigate, for every form of `send`. Python 3, standard library only.

Run: python3 backend.py [port]
"""

import json
import secrets
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

instances = {}  # A real backend has a database for both.
answered = {}  # Idempotency-Key -> the answer that was given
lock = threading.Lock()


def create(action, order):
    instance_id = f"ins-{uuid.uuid4().hex}"
    instances[instance_id] = {"order": order, "state": "running"}
    user, password, url = "admin", secrets.token_urlsafe(12), "https://crm.example.com"
    if action == "CreateInstance":
        info = {"frontEndUrl": url, "adminUrl": url, "username": user, "password": password}
        return {"success": True, "instanceId": instance_id, "instanceInfo": info}
    front_end = {"url": url, "username": user, "password": password}
    return {"success": True, "instanceId": instance_id, "appInfo": {"frontEnd": front_end}}


def answer(action, order):
    """What the platform is told."""
    if action == "TestConnection":
        return {"success": True}
    if action.startswith("Create"):
        return create(action, order)
    instance = instances.get(order["instance_id"])
    # Expire and delete can come anew under a known Idempotency-Key (journal off, or lost): never skip
    # them because the key is known, make them harmless to repeat.
    if action.startswith("Expire"):
        if instance:
            instance["state"] = "expired"
        return {"success": True}
    if action.startswith("Delete"):
        instances.pop(order["instance_id"], None)
        return {"success": True}
    if not instance:
        return {"success": False, "message": "no such instance"}
    if action.startswith(("Renew", "Upgrade")):
        instance.update(order=order, state="running")
        return {"success": True}
    return {"success": False, "message": "unknown action"}


def read(request):
    """The order. A real backend has only the form that its configuration says."""
    if request.command == "POST":  # send = "json"
        return json.loads(request.rfile.read(int(request.headers["Content-Length"])))
    order = dict(parse_qsl(urlsplit(request.path).query, keep_blank_values=True))  # "query", "raw"
    for name, value in request.headers.items():  # "headers"
        if name.lower().startswith("x-spi-param-"):
            order[name[12:].lower().replace("-", "_")] = unquote(value)
    return order


class Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body leave together, not 40 ms apart.

    def do_POST(self):
        order = read(self)
        action, key = self.headers["X-Spi-Action"], self.headers["Idempotency-Key"]
        with lock:
            reply = answered.get(key)
            if reply is None:
                reply = answer(action, order)
                if reply["success"] and action.startswith(("Create", "Renew", "Upgrade")):
                    answered[key] = reply
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    ThreadingHTTPServer(("127.0.0.1", port), Backend).serve_forever()
