"""A vendor's backend behind spigate, send = "json". Python 3, standard library only.

Run: python3 backend.py [port]
"""

import json
import secrets
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


class Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body leave together, not 40 ms apart.

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
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


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    ThreadingHTTPServer(("127.0.0.1", port), Backend).serve_forever()
