"""The captions file of a metric: its digest, and every error as a message."""

import hashlib

import fsspec
import pytest

from perfusion_ops.config import MetricConfig
from pipeline.bases.captions import captions_digest, open_captions
from pipeline.storage.objects import StorageError

TEXT = "a mug\r\n\na bag für Tee\n".encode()


def test_digest_is_of_the_bytes_wherever_they_lie(tmp_path):
    (tmp_path / "captions.txt").write_bytes(TEXT)
    fsspec.filesystem("memory").pipe_file("/captions/own.txt", TEXT)
    found = {
        captions_digest(MetricConfig(captions_uri=uri), None)
        for uri in (str(tmp_path / "captions.txt"), f"file://{tmp_path}/captions.txt", "memory://captions/own.txt")
    }
    assert found == {hashlib.sha256(TEXT).hexdigest()}
    assert captions_digest(MetricConfig(), None) is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/gone/captions.txt", r"the captions file /gone/captions.txt \(metric.captions_uri\) cannot be read: it does"),
        ("/", "cannot read the captions file / .*: a folder and an object|Is a directory"),
        ("s3:/bucket/captions.txt", r"\(metric.captions_uri\) cannot be read: .* lacks the '://' of a URI"),
        ("nosuchscheme://x/y", r"\(metric.captions_uri\) cannot be read: nosuchscheme:// cannot be opened"),
    ],
)
def test_file_that_cannot_be_opened_is_a_message(uri, message):
    with pytest.raises(StorageError, match=message) as caught:
        captions_digest(MetricConfig(captions_uri=uri), None)
    assert "\n" not in str(caught.value)


def test_error_while_reading_is_a_message(tmp_path):
    (tmp_path / "captions.txt").write_bytes(TEXT)
    with (
        pytest.raises(StorageError, match="TimeoutError: no answer; check the address and the network"),
        open_captions(str(tmp_path / "captions.txt"), None),
    ):
        raise TimeoutError("no answer")
