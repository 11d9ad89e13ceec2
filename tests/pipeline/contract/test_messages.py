"""What a library says is stored without what differs from one process or day to the next."""

import io
import tempfile

import pytest
from PIL import Image

from pipeline.contract.messages import clip, plain, reason
from pipeline.storage.objects import Storage, StorageError


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("cannot identify image file <_io.BytesIO object at 0x7f3a5c0d1e90>", "cannot identify image file BytesIO"),
        ("<aiohttp.client.ClientResponse(http://x) [503] at 0x7f00> failed", "ClientResponse failed"),
        ("segfault near 0x7ffdeadbeef0", "segfault near …"),
        ("cannot open /tmp/perfusion-plan-ab12cd/plan.duckdb: no space", "cannot open a temporary file: no space"),
        ("denied: '/srv/images/.a140f9f8684e48ceafeb13dc5b640b4b.tmp'", "denied: 'a temporary file'"),
        ("503 Slow Down (Request ID: 4Y7Q9ZPX, HostId: 9a/bc=)", "503 Slow Down (Request ID: …, HostId: …)"),
        ("RequestId:d17be448-3524-4778-80ed-2f9d0b2e42f2", "RequestId:…"),
        ("expired at 2026-11-26T11:06:34.123Z", "expired at …"),
        ("actor_id: 0123456789abcdef01234567 died", "actor_id: … died"),
        ("403, url='https://x/y.png?X-Amz-Signature=hunter2&v=3'", "403, url='https://x/y.png?X-Amz-Signature=…&v=…'"),
        ("two\n  lines", "two lines"),
        ("column 7 of 0x1 has 12 values", "column 7 of 0x1 has 12 values"),
    ],
)
def test_only_what_stays_the_same_is_kept(text, kept):
    assert plain(text) == kept
    assert plain(kept) == kept


def test_real_errors_say_the_same_twice():
    def unreadable():
        Image.open(io.BytesIO(b"x" * 100))

    def nowhere():
        with tempfile.TemporaryDirectory() as folder:
            open(f"{folder}/none", "rb")  # noqa: PTH123, SIM115

    for act in (unreadable, nowhere):
        said = set()
        for _ in range(2):
            with pytest.raises(OSError, match=r".") as error:
                act()
            said.add(reason(error.value))
        assert len(said) == 1


def test_a_refused_write_does_not_name_its_temporary_file(tmp_path):
    (tmp_path / "images").write_bytes(b"no folder")
    with pytest.raises(StorageError) as refused:
        Storage(str(tmp_path)).write("images/ab/x.png", b"x")
    assert ".tmp" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "short", "x" * 100, "ü" * 50, "€" * 33, "\ud800" * 20, "x" * 101, "😀" * 90])
def test_a_clipped_text_fits_in_bytes_and_shows_that_it_was_cut(text):
    clipped = clip(text, 100)
    whole = text.encode("utf-8", "backslashreplace").decode()
    assert len(clipped.encode()) <= 100
    if len(whole.encode()) <= 100:
        assert clipped == whole
    else:
        assert clipped.endswith(" ...")
        assert whole.startswith(clipped.removesuffix(" ..."))
        assert len(clipped.encode()) > 90
