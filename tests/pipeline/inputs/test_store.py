"""The one reader of photos: limits, links, web servers, digests and storage errors."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.contract.errors import Code, RowError, Status
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits, inspect
from pipeline.inputs.store import InputStore
from pipeline.storage.objects import Storage
from tests.support.photos import SIGNED, code_of, encode, noise

LIMITS = InputLimits()


def test_a_link_out_of_an_allowed_folder_is_refused(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.png").write_bytes(encode(noise(), "PNG"))
    (inside / "x.png").symlink_to(outside / "x.png")
    (tmp_path / "alias").symlink_to(inside)
    (inside / "own.png").write_bytes(encode(noise(), "PNG"))
    limits = InputLimits(allow=(str(tmp_path / "alias"),))
    assert InputStore(limits).fetch(f"file://{inside}/own.png")
    assert InputStore(limits).fetch(f"file://{tmp_path}/alias/own.png")
    assert code_of(InputStore(limits).fetch, f"file://{inside}/x.png") is Code.URI_NOT_ALLOWED
    assert InputStore(LIMITS).fetch(f"file://{inside}/x.png")


def test_bytes_are_capped_whatever_the_size_says(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"x" * 100)
    assert len(InputStore(InputLimits(max_bytes=100)).fetch(f"file://{path}")) == 100
    assert code_of(InputStore(InputLimits(max_bytes=99)).fetch, f"file://{path}") is Code.IMAGE_TOO_LARGE
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte that takes no space
    assert code_of(InputStore(LIMITS).fetch, f"file://{path}") is Code.IMAGE_TOO_LARGE
    os.mkfifo(tmp_path / "pipe.png")
    assert code_of(InputStore(LIMITS).fetch, f"file://{tmp_path}/pipe.png") is Code.IMAGE_UNREADABLE
    assert code_of(InputStore(LIMITS).fetch, "file:///dev/zero") is Code.IMAGE_UNREADABLE
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert code_of(InputStore(LIMITS).fetch, f"file://{tmp_path}/zero.png") is Code.IMAGE_UNREADABLE
    assert code_of(InputStore(LIMITS).fetch, f"file://{tmp_path}") is Code.IMAGE_UNREADABLE
    assert code_of(InputStore(LIMITS).fetch, f"file://{tmp_path}/none.png") is Code.IMAGE_MISSING
    (tmp_path / "empty.png").touch()
    assert code_of(InputStore(LIMITS).fetch, f"file://{tmp_path}/empty.png") is Code.IMAGE_EMPTY


class Web(BaseHTTPRequestHandler):
    """A server that ignores ranges, hides sizes, redirects and fails."""

    picture = encode(noise(), "PNG")
    sent = 0

    def do_GET(self):
        if self.path.startswith("/img/moved"):
            self.send_response(302)
            self.send_header("Location", "/secret.png")
            self.end_headers()
        elif self.path in ("/img/x.png", "/secret.png"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.picture)
        elif self.path == "/img/endless.png":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(2000):
                    self.wfile.write(b"x" * 100_000)
                    Web.sent += 100_000
            except OSError:
                pass
        elif self.path.startswith("/img/signed.png?"):
            Web.asked = self.path
            self.send_response(200 if "hunter2" in self.path else 403)
            self.end_headers()
            self.wfile.write(self.picture)
        elif self.path.startswith("/img/late.png?"):
            self.send_error(403, "expired")
        else:
            self.send_error(503 if self.path == "/img/busy.png" else 404)

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_the_web_is_off_until_a_prefix_is_listed_and_then_stays_inside(web):
    assert code_of(InputStore(LIMITS).fetch, f"{web}/img/x.png") is Code.URI_NOT_ALLOWED
    limits = InputLimits(allow=(f"{web}/img",), max_bytes=1_000_000)
    assert InputStore(limits).fetch(f"{web}/img/x.png") == Web.picture
    assert code_of(InputStore(limits).fetch, f"{web}/secret.png") is Code.URI_NOT_ALLOWED
    assert code_of(InputStore(limits).fetch, f"{web}/img/moved.png") is Code.URI_NOT_ALLOWED
    assert code_of(InputStore(limits).fetch, f"{web}/img/none.png") is Code.IMAGE_MISSING
    assert code_of(InputStore(limits).fetch, f"{web}/img/endless.png") is Code.IMAGE_TOO_LARGE
    assert Web.sent < 100_000_000
    with pytest.raises(RowError) as caught:
        InputStore(limits).fetch(f"{web}/img/busy.png")
    assert (caught.value.code, caught.value.status) == (Code.STORAGE, Status.FAILED)


@pytest.mark.parametrize("query", SIGNED, ids=lambda query: query.partition("=")[0])
def test_a_presigned_address_is_asked_for_as_it_is_and_printed_without_its_signature(web, query, tmp_path):
    limits = InputLimits(allow=(f"{web}/img",), presigned=True)
    cache = InputCache(Storage(str(tmp_path)))
    found = InputStore(limits, cache=cache).examine(f"{web}/img/signed.png?{query}", "image")
    assert found == inspect(Web.picture, limits)
    assert Web.asked == f"/img/signed.png?{query}"
    assert len(cache) == 0
    for name in ("late.png", "gone.png", "moved"):
        with pytest.raises(RowError) as refused:
            InputStore(limits).fetch(f"{web}/img/{name}?{query}")
        assert "hunter2" not in str(refused.value)


def test_bytes_must_have_the_recorded_digest(tmp_path):
    path, data = tmp_path / "x.png", encode(noise(), "PNG")
    path.write_bytes(data)
    store = InputStore(LIMITS)
    recorded = hashlib.sha256(data).hexdigest()
    assert store.read(f"file://{path}", sha256=recorded, remedy="run again") == data
    path.write_bytes(data + b"\0")
    with pytest.raises(RowError, match=r"x.png holds other bytes than those recorded: run again$") as caught:
        store.read(f"file://{path}", sha256=recorded, remedy="run again", column="masks")
    assert (caught.value.code, caught.value.column, caught.value.status) == (
        Code.IMAGE_CHANGED,
        "masks",
        Status.FAILED,
    )
    path.unlink()
    assert code_of(lambda: store.read(f"file://{path}", sha256=recorded, remedy="")) is Code.IMAGE_MISSING


def test_exists_only_what_the_limits_allow_to_read(tmp_path, web):
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    store, elsewhere = InputStore(LIMITS), InputStore(InputLimits(allow=("s3://bucket",)))
    assert store.exists(f"file://{tmp_path}/x.png")
    assert not elsewhere.exists(f"file://{tmp_path}/x.png")
    assert not store.exists(f"file://{tmp_path}/folder")
    assert not store.exists(f"file://{tmp_path}/none.png")
    assert not InputStore(InputLimits(allow=(web,))).exists(f"{web}/img/x.png")
    assert not store.exists("nosuchscheme://bucket/x.png")


def test_name_that_no_disk_can_hold_is_missing():
    with pytest.raises(RowError, match=r"cannot exist \(File name too long\): correct the address") as caught:
        InputStore(LIMITS).fetch(f"file:///{'x' * 5000}.png")
    assert caught.value.code is Code.IMAGE_MISSING


def test_storage_without_its_package_or_with_wrong_options_is_a_row_error():
    with pytest.raises(RowError, match=r"s3.* must be a mapping") as caught:
        InputStore(LIMITS, {"s3": "endpoint"}).fetch("s3://bucket/x.png")
    assert caught.value.code is Code.IMAGE_UNREADABLE


def test_examine_without_a_cache_inspects_each_time(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encode(noise(), "PNG"))
    store = InputStore(LIMITS)
    assert store.examine(f"file://{path}", "image") == inspect(path.read_bytes(), LIMITS)
    path.write_bytes(b"junk")
    assert code_of(lambda: store.examine(f"file://{path}", "image")) is Code.IMAGE_FORMAT
