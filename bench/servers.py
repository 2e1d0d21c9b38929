"""Starts what is measured: each server on loopback, in its own directory, with one worker on the
core of the proxies; and stops it by its process id."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import watch
from orders import KEY

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "scripts"))
from ports import free_port

HERE = os.path.join(ROOT, "bench")
# nginx's own names for the directories that it would else want under /var.
NGINX_PATHS = "".join(f"{name}_temp_path {{0}}/{name}; " for name in
                      ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


def get(url, timeout=15):
    """Status, content type and body of a plain GET."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            return response.status, response.headers.get("content-type"), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("content-type"), error.read().decode()


def is_ready(admin):
    try:
        return get(f"http://127.0.0.1:{admin}/readyz")[0] == 200
    # The public listener is there before the admin one.
    except urllib.error.URLError:
        return False


class Server:
    """A process that listens, and its children."""

    def __init__(self, house, name, command, port, cores, environment=None, patience=20):
        self.name, self.port = name, port
        self.log = os.path.join(house.directory, f"{name}.log")
        with open(self.log, "wb") as out:
            self.child = subprocess.Popen(house.pinned(cores, command), stdout=out, stderr=subprocess.STDOUT,
                                          env=dict(os.environ, **(environment or {})))
        house.running.append(self)
        deadline = time.monotonic() + patience
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                if time.monotonic() > deadline or self.child.poll() is not None:
                    with open(self.log, encoding="utf-8", errors="replace") as text:
                        sys.exit(f"{name} does not start ({' '.join(command)}):\n{text.read()}")
                time.sleep(0.005)

    def pids(self):
        return watch.tree(self.child.pid)

    def resident(self):
        return watch.resident_bytes(self.child.pid)

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            # Workers of nginx that wait for connections end with it, or are ended.
            for pid in reversed(self.pids()):
                os.kill(pid, signal.SIGKILL)
            self.child.wait()


class House:
    """A directory, the servers that run in it, and which cores are whose."""

    def __init__(self, binaries, directory=None, pin=True):
        self.binaries = binaries
        self.directory = tempfile.mkdtemp(prefix="spigate-bench-", dir=directory)
        self.running = []
        self.pins = pin and (os.cpu_count() or 1) > 1 and shutil.which("taskset") is not None
        self.proxy_core, self.load_core = ("0", "1") if self.pins else (None, None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in reversed(self.running):
            server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def stop(self, server):
        self.running.remove(server)
        server.stop()

    def pinned(self, cores, command):
        return ["taskset", "-c", cores, *command] if cores and self.pins else command

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def program(self, name):
        return self.binaries[name]

    def backend(self, reply_bytes=350):
        port = free_port()
        command = [self.program("load"), "backend", "--port", str(port), "--reply-bytes", str(reply_bytes)]
        return Server(self, f"backend-{port}", command, port, self.load_core)

    def nginx(self, name, backend, lua=False):
        """nginx as a plain proxy, or with bench/lua/gateway.lua in front."""
        port, path = free_port(), self.path(name)
        os.makedirs(path)
        modules, setting, location = "", "", "location / { proxy_pass http://backend; }"
        if lua:
            modules = "".join(f"load_module {file}; " for file in lua_modules())
            self.write(f"{name}/key", KEY)
            setting = (
                f'lua_package_path "{HERE}/lua/?.lua;/usr/share/lua/5.1/?.lua;;"; '
                'lua_package_cpath "/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;;"; '
                f'init_by_lua_block {{ local file = io.open("{path}/key"); '
                'require("gateway").init(file:read("*a")); file:close() } '
            )
            location = ('location = /spi { content_by_lua_block { require("gateway").handle() } } '
                        "location = /backend { internal; proxy_pass http://backend/spi; }")
        config = self.write(f"{name}/nginx.conf", f"""\
{modules}daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; {NGINX_PATHS.format(path)}
  types {{ }} default_type application/json; {setting}
  upstream backend {{ server 127.0.0.1:{backend.port}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; proxy_http_version 1.1; proxy_set_header Connection "";
    {location}
  }}
}}
""")
        return Server(self, name, ["nginx", "-p", path, "-c", config], port, self.proxy_core)

    def haproxy(self, name, backend):
        port = free_port()
        config = self.write(f"{name}.cfg", f"""\
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend f
  bind 127.0.0.1:{port} backlog 4096
  default_backend b
backend b
  server s 127.0.0.1:{backend.port}
""")
        return Server(self, name, ["haproxy", "-db", "-q", "-f", config], port, self.proxy_core)

    def bare_hyper(self, name, backend):
        port = free_port()
        command = [self.program("bare_hyper"), f"127.0.0.1:{port}", f"127.0.0.1:{backend.port}", KEY]
        return Server(self, name, command, port, self.proxy_core)

    def spigate(self, name, backend, send="headers", access=False, once=False, apps=1, limits="", tls=None,
                threads=None, cores=None, journal=None, program="spigate"):
        """`apps`: so many, of which the last has the path that is asked for; `tls`: (certificate, key);
        `program`: "spigate", or "profiled" for the build of scripts/release."""
        port, admin = free_port(), free_port()
        journal = journal or self.path(f"{name}.db")
        text = f'listen.address = "127.0.0.1:{port}"\nadmin.address = "127.0.0.1:{admin}"\n'
        if tls:
            text += f'listen.tls = {{ certificate = "{tls[0]}", key = "{tls[1]}" }}\n'
        text += f'log.access = {str(access).lower()}\nshutdown.delay = "0s"\nshutdown.grace = "3s"\n'
        text += f'limits.idle_timeout = "600s"\nlimits.header_timeout = "60s"\n{limits}\n'
        text += f'journal.url = "sqlite:{journal}"\n'
        for number in range(1, apps + 1):
            path = "/spi" if number == apps else f"/spi/{number}"
            text += f"""
[[apps]]
name = "app-{number}"
path = "{path}"
dialect = "qingcloud-appcenter"
keys = [{{ id = "k", value = "{KEY}" }}]
deliver_once = {str(once).lower()}
freshness.max_age = "36500d"
backend = {{ url = "http://127.0.0.1:{backend.port}/spi", send = "{send}" }}
"""
        config = self.write(f"{name}.toml", text)
        environment = {"TOKIO_WORKER_THREADS": str(threads)} if threads else None
        server = Server(self, name, [self.program(program), "serve", "--config", config], port,
                        cores or self.proxy_core, environment, patience=120)
        server.admin, server.config = admin, config
        deadline = time.monotonic() + 120
        while not is_ready(admin):
            if time.monotonic() > deadline:
                sys.exit(f"{name} does not get ready")
            time.sleep(0.005)
        return server

    def certificate(self):
        """A certificate for localhost that signs itself, and its key; nothing where openssl is not."""
        if not shutil.which("openssl"):
            return None
        files = self.path("tls.crt"), self.path("tls.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext",
             "basicConstraints=critical,CA:FALSE", "-out", files[0], "-keyout", files[1]],
            check=True, capture_output=True)
        return files


def lua_modules():
    """nginx's modules for Lua, where they are installed, in the order that they need."""
    folder = "/usr/lib/nginx/modules"
    files = [os.path.join(folder, f"{name}.so") for name in ("ndk_http_module", "ngx_http_lua_module")]
    return files if all(os.path.exists(file) for file in files) else []


def has_lua():
    return shutil.which("nginx") is not None and bool(lua_modules()) and os.path.exists("/usr/lib/x86_64-linux-gnu/lua/5.1/cjson.so")
