"""A Cloud Storage of one's own: an emulator on loopback, behind a front that can do it harm.

Google's Python client and Beam reach the front by `STORAGE_EMULATOR_HOST`. TensorFlow's client knows no such variable:
its requests to `https://storage.googleapis.com` come through the front as their proxy, which shows certificates of an
authority that is made for the purpose.
"""

import contextlib
import http.client
import http.server
import json
import os
import random
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter, defaultdict
from pathlib import Path

import trustme
from google.cloud import storage
from google.oauth2.credentials import Credentials

from tests.programs import free_ports, until

EMULATOR = Path(".engines/fake-gcs-server")
HOSTS = ("www.googleapis.com", "storage.googleapis.com", "oauth2.googleapis.com")  # and those of services
_TOKEN_PATHS = ("/token", "/oauth2/v3/token")  # where the clients exchange credentials
_TOKEN, _REFRESH_TOKEN = "a-token", "a-refresh-token"
CREDENTIALS = {
    "type": "authorized_user", "client_id": "an-id", "client_secret": "a-secret", "refresh_token": _REFRESH_TOKEN
}  # fmt: skip
_OF_THE_CONNECTION = {
    "connection",
    "transfer-encoding",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "expect",
    "date",
    "server",
}


class Faults:
    """What may befall a request, each with the same probability.

    Attributes:
        share: of requests, for each kind.
        seen: how often each kind befell one.
    """

    KINDS = ("503", "429", "reset before", "reset after", "slow", "truncated")

    def __init__(self, share=0.0, seed=0):
        self.share = share
        self.seen = Counter()
        self._once = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def once(self, kind):
        """Lets a fault befall the next request."""
        self._once.append(kind)

    def draw(self):
        """The kind of fault of the next request, or None."""
        with self._lock:
            if self._once:
                return self._once.pop()
            place = self._random.random() / self.share if self.share else len(self.KINDS)
            kind = self.KINDS[int(place)] if place < len(self.KINDS) else None
            self.seen[kind] += 1
        return kind


class _Upload:
    """A resumable upload as Cloud Storage has it: what came already is passed over, and the end can be asked for again.

    The emulator takes what comes twice for more. https://cloud.google.com/storage/docs/performing-resumable-uploads
    """

    _STEP = 256 << 10  # of what is kept of an upload that breaks off

    def __init__(self):
        self._size = 0
        self._end = None
        self._lock = threading.Lock()

    def put(self, ask, content_range, body, breaks_off):
        """Status, headers and content of the answer to a request with a `Content-Range`; `ask` asks the emulator."""
        with self._lock:
            if self._end is None and body:
                start, total = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range).groups()
                assert int(start) <= self._size, "a hole"
                body = body[self._size - int(start) :]
                if breaks_off:
                    body = body[: len(body) // 2 // self._STEP * self._STEP]
                if body:
                    answer = ask(body, f"bytes {self._size}-{self._size + len(body) - 1}/{total}")
                    assert answer[0] in (200, 308), answer
                    self._size += len(body)
                    self._end = answer if answer[0] == 200 else None
            elif self._end is None and content_range == "bytes */0":
                self._end = ask(b"", content_range)
            if self._end is not None:
                return self._end
            return 308, {"Range": f"bytes=0-{self._size - 1}"} if self._size else {}, b""


class _Front(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, emulator_port, tls, faults, services):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.services = services
        self.hosts = {*HOSTS, *(service.host for service in services)}
        self.emulator_port = emulator_port
        self.tls = tls
        self.faults = faults
        self.requests = []
        self.uploads = defaultdict(_Upload)
        self.looking = threading.Lock()  # at an object, before it is replaced

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (OSError, http.client.HTTPException)):  # of a client that hung up
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scheme = "http"

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._emulator = http.client.HTTPConnection("127.0.0.1", self.server.emulator_port, timeout=60)

    def finish(self):
        self._emulator.close()
        with contextlib.suppress(OSError):
            super().finish()
        self.connection.close()

    def do_CONNECT(self):
        """What follows is for the host that the client names, which it takes us for."""
        host = self.path.partition(":")[0]
        if host not in self.server.hosts:
            self.send_error(502, f"{host} is not here")
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.scheme, self.close_connection = "https", False

    def do_request(self):
        body = self._body()
        if self.path in _TOKEN_PATHS:
            self._give_token(body)
            return
        if self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            self._answer(401, {"Content-Type": "text/plain"}, b"no token")
            return
        for service in self.server.services:
            if service.takes(self.headers["Host"].partition(":")[0], self.command, self.path.partition("?")[0]):
                self._answer(*service(self.command, self.path, self.headers, body))
                return
        fault = self.server.faults.draw()
        self.server.requests.append((self.command, self.path, dict(self.headers), len(body)))
        if fault in ("503", "429"):
            self._answer(int(fault), {"Content-Type": "text/plain"}, b"an injected fault")
        elif fault == "reset before":
            self._reset()
        else:
            status, headers, content = self._ask(body, fault)
            if fault == "reset after" or (fault == "truncated" and self._upload):
                self._reset()
            else:
                self._answer(status, headers, content, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_request

    def _give_token(self, body):
        known = urllib.parse.parse_qs(body.decode()).get("refresh_token") == [_REFRESH_TOKEN]
        content = (
            {"access_token": _TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            if known
            else {"error": "invalid_grant"}
        )
        self._answer(200 if known else 400, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # of a trailer
            pass
        return b"".join(pieces)

    @property
    def _upload(self):
        """The upload of which the request is a part, or None."""
        named = urllib.parse.parse_qs(self.path.partition("?")[2]).get("upload_id")
        return self.server.uploads[named[0]] if named and self.command == "PUT" else None

    def _ask(self, body, fault):
        """What Cloud Storage answers: status, headers and content."""
        headers = {
            name.title(): value for name, value in self.headers.items() if name.lower() not in _OF_THE_CONNECTION
        }
        if self._upload and "Content-Range" in headers:
            return self._upload.put(
                lambda part, content_range: self._ask_emulator(part, headers | {"Content-Range": content_range}),
                headers["Content-Range"], body, fault == "truncated",
            )  # fmt: skip
        query = {name: value for name, (value, *_) in urllib.parse.parse_qs(self.path.partition("?")[2]).items()}
        is_conditional = self.command == "POST" and "ifGenerationMatch" in query
        with self.server.looking if is_conditional else contextlib.nullcontext():
            name = query.get("name") or (is_conditional and json.loads(re.search(rb'{"name".*?}', body)[0])["name"])
            if is_conditional and self._generation(name) != query["ifGenerationMatch"]:
                return 412, {"Content-Type": "text/plain"}, b"conditionNotMet"
            if query.get("uploadType") == "media" and not body:
                body, headers["Content-Type"] = _as_parts(name), "multipart/related; boundary=part"
                self.path = self.path.replace("uploadType=media", "uploadType=multipart")
            return self._ask_emulator(body, headers)

    def _generation(self, name):
        """That of the object which an upload would replace; 0 for none."""
        path = self.path.partition("?")[0].removeprefix("/upload")
        self._emulator.request("GET", f"{path}/{urllib.parse.quote(name, safe='')}")
        response = self._emulator.getresponse()
        found = json.loads(response.read() or b"{}")
        return str(found["generation"]) if response.status == 200 else "0"

    def _ask_emulator(self, body, headers):
        self._emulator.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        response = self._emulator.getresponse()
        content = response.read()
        headers = {
            name.title(): value for name, value in response.getheaders() if name.lower() not in _OF_THE_CONNECTION
        }
        if location := headers.get("Location"):  # it leads the client back here
            path = location.partition("://")[2].partition("/")[2]
            headers["Location"] = f"{self.scheme}://{self.headers['Host']}/{path}"
        if "json" in headers.get("Content-Type", ""):  # as do the links in what it says of objects
            own = f"{self.scheme}://{self.headers['Host']}".encode()
            for host in (f"127.0.0.1:{self.server.emulator_port}", *HOSTS):
                content = content.replace(f"http://{host}/".encode(), own + b"/")
        if self.command == "HEAD":
            headers["Content-Length"] = response.getheader("Content-Length", "0")
        return response.status, headers, content

    def _answer(self, status, headers, content, fault=None):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "truncated" and content:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, len(content), max(1, len(content) // 4)):
                time.sleep(0.25)
                self.wfile.write(content[start : start + max(1, len(content) // 4)])
        else:
            self.wfile.write(content)

    def _reset(self):
        """Ends the connection as a machine does that has lost it."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if isinstance(self.connection, ssl.SSLSocket):
            socket.socket(fileno=self.connection.detach()).close()
        else:
            self.connection.close()


def _as_parts(name):
    """The body of a multipart upload of nothing, of which one of the emulators takes no other."""
    parts = (("application/json", json.dumps({"name": name})), ("application/octet-stream", ""))
    return "".join(f"--part\r\nContent-Type: {kind}\r\n\r\n{text}\r\n" for kind, text in parts).encode() + b"--part--"


class CloudStorage:
    """A running emulator behind its front.

    Attributes:
        environment: the variables that lead all clients to it.
        faults: what befalls requests; without harm at first.
        requests: method, path, headers and length of the body of each, in the order of their arrival.
    """

    def __init__(self, front, folder):
        self._front = front
        self.faults = front.faults
        self.requests = front.requests
        port = front.server_address[1]
        self.environment = {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "https_proxy": f"http://127.0.0.1:{port}",
            "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",  # which is asked for now and then, for nothing
            "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "50000",  # TensorFlow's; else a second
            "no_proxy": "localhost,127.0.0.1",
            "CURL_CA_BUNDLE": str(folder / "authority.pem"),
            "REQUESTS_CA_BUNDLE": str(folder / "authority.pem"),
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "credentials.json"),
        }

    def empty(self, bucket):
        """Deletes all objects."""
        for blob in self.client().list_blobs(bucket):
            blob.delete()

    def upload(self, folder, bucket, prefix):
        """Copies the files below a local folder to objects whose names begin with a prefix."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.client().bucket(bucket).blob(f"{prefix}{path.relative_to(folder)}").upload_from_filename(path)

    def download(self, bucket, prefix, folder):
        """Copies the objects whose names begin with a prefix to a local folder."""
        for blob in self.client().list_blobs(bucket, prefix=prefix):
            if not blob.name.endswith("/"):
                target = folder / blob.name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(target)

    def client(self):
        """Google's own."""
        return storage.Client(
            "project", Credentials(_TOKEN), client_options={"api_endpoint": self.environment["STORAGE_EMULATOR_HOST"]}
        )


@contextlib.contextmanager
def running(folder, *buckets, services=()):
    """A storage with some empty buckets in us-central1, for the time of the block.

    Args:
        folder: for what it keeps.
        buckets: their names.
        services: what answers in place of other APIs, as `google_apis.Api`.
    """
    (port,) = free_ports(1)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "credentials.json").write_text(json.dumps(CREDENTIALS))
    authority.issue_cert(*HOSTS, *(service.host for service in services)).configure_cert(tls)
    process = subprocess.Popen(_command(port), stdout=subprocess.DEVNULL, stderr=(folder / "emulator.log").open("wb"))
    try:
        until(lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        front = _Front(port, tls, Faults(), services)
        threading.Thread(target=front.serve_forever, daemon=True).start()
        server = CloudStorage(front, folder)
        for bucket in buckets:
            server.client().create_bucket(bucket, location="us-central1")
        yield server
        front.shutdown()
        front.server_close()
    finally:
        process.kill()
        process.wait()


def _command(port):
    """Of the emulator: the one that `make engines` builds, else the one from PyPI."""
    if EMULATOR.exists():
        return [EMULATOR, "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory", "-log-level=error"]
    if command := shutil.which("gcp-storage-emulator", path=os.path.dirname(sys.executable)):
        return [command, "start", f"--port={port}", "--in-memory", "--host=127.0.0.1"]
    raise FileNotFoundError("no emulator: make engines")
