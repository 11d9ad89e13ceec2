"""Receivers of events on this machine: good ones, bad ones, and none."""

import json
import logging
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat


@contextmanager
def receiver(*statuses, silent=False, drip=False):
    """A server that keeps (path, Authorization, event) of each request.

    It answers with each of the statuses, and with the last one ever after; by default with 201. A silent one never
    answers, and the answer of a dripping one never ends.
    """
    seen, stop = [], threading.Event()
    answers = chain(statuses, repeat(statuses[-1] if statuses else 201))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            if silent:
                stop.wait(60)
                return
            self.send_response(next(answers))
            self.send_header("Content-Length", "100000" if drip else "0")
            self.end_headers()
            while drip and not stop.wait(0.2):  # each byte comes in time, the last one never
                self.wfile.write(b".")
                self.wfile.flush()

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            """A client that has given up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        stop.set()
        server.shutdown()
        thread.join()


def dead_port():
    """A port of this machine where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


def lineage_warnings(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
