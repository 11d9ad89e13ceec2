"""A bad road to a storage server: some requests are refused, some never arrive, some answers get lost on the way back.

What happens to a request is drawn from a seed; while the road is closed, everything is refused. Lists may lag: what was
written a moment ago is not in them yet.
"""

import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_LATE_S = 1.0
_BROKEN = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"


@dataclass
class Road:
    """What goes wrong, as shares of all requests, and what has so far.

    Attributes:
        refused: answered 503 and not passed on.
        broken: answered 500 and not passed on.
        lost: the share of writes that are passed on and whose answer is dropped: at 0.02 every fiftieth, so that
            even a short run loses one.
        late: passed on after a second.
        lag_s: for so long after it was written by this road an object is in no list.
        closed_until: a `time.monotonic()` until which everything is refused.
        met: how often what has happened.
    """

    refused: float = 0.0
    broken: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    lag_s: float = 0.0
    seed: int = 0
    closed_until: float = 0.0
    met: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self._chance, self._lock = random.Random(self.seed), threading.Lock()
        self._written: dict[str, float] = {}
        self._owed = 0.0  # answers of writes that are due to be lost

    def fate(self, *, writes: bool) -> str:
        """What becomes of the next request."""
        with self._lock:
            drawn = self._chance.random()
            fate = "refused" if time.monotonic() < self.closed_until else ""
            for name in ("refused", "broken", "late"):
                if not fate and drawn < getattr(self, name):
                    fate = name
                drawn -= getattr(self, name)
            self._owed += self.lost if writes else 0.0
            if not fate and writes and self._owed >= 1:
                fate, self._owed = "lost", self._owed - 1
            self.met[fate or "passed"] += 1
            return fate

    def wrote(self, path: str) -> None:
        """An object was written for the first time."""
        with self._lock:
            self._written.setdefault(unquote(path).partition("?")[0], time.monotonic())

    def shown(self, path: str, listing: bytes) -> bytes:
        """A listing of the bucket in `path` without what is too young for it."""
        bucket = path.partition("?")[0].rstrip("/")
        with self._lock:
            since = time.monotonic() - self.lag_s
            young = {path.removeprefix(f"{bucket}/") for path, at in self._written.items() if at > since}
            self.met["left out"] += len(young)

        def keep(entry: re.Match[bytes]) -> bytes:
            return b"" if unquote(entry[2].decode()) in young else entry[0]

        return re.sub(rb"<(Contents)>.*?<Key>(.*?)</Key>.*?</Contents>", keep, listing, flags=re.DOTALL)


@contextmanager
def storage_proxy(endpoint: str, road: Road) -> Iterator[str]:
    """The address of `endpoint` by that road."""
    upstream = endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self):
            self.close_connection = True
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                return
            body = self._body()
            fate = road.fate(writes=self.command not in ("GET", "HEAD"))
            if fate in ("refused", "broken"):
                code, text = (503, _SLOW_DOWN) if fate == "refused" else (500, _BROKEN)
                self._answer(code, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text)
                return
            if fate == "late":
                time.sleep(_LATE_S)
            connection = http.client.HTTPConnection(upstream, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if self.command == "PUT" and answer.status == 200:
                road.wrote(self.path)
            if self.command == "GET" and road.lag_s and b"<ListBucketResult" in data[:300]:
                data = road.shown(self.path, data)
                answer.headers.replace_header("Content-Length", str(len(data)))
            if fate != "lost":
                self._answer(answer.status, answer.getheaders(), data)

        def _body(self):
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = []
            while True:
                pieces.append(self.rfile.readline())
                size = int(pieces[-1].partition(b";")[0], 16)
                pieces.append(self.rfile.read(size + 2))
                if not size:
                    return b"".join(pieces)

        def _answer(self, code, headers, data):
            self.send_response_only(code)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in headers):
                self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request, client_address):
            pass  # a client that was killed hangs up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
