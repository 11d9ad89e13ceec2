"""Encoded pictures to inspect, addresses with signatures, and the code that a refusal has."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.contract.errors import RowError


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed=0, size=(40, 32), mode="RGB"):
    shape = (size[1], size[0]) + ((len(mode),) if len(mode) > 1 else ())
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8), mode=None)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *, body=b"", ihdr=b"\x08\x02\0\0\0"):
    header = chunk(b"IHDR", struct.pack(">II", width, height) + ihdr)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def code_of(act, *arguments):
    with pytest.raises(RowError) as caught:
        act(*arguments)
    assert len(str(caught.value)) > 20
    return caught.value.code


SIGNED = [
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261126&X-Amz-Expires=60&X-Amz-Signature=hunter2",
    "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=a%40b&X-Goog-Signature=hunter2",
    "AWSAccessKeyId=AKIA&Expires=1&Signature=hunter2%2B%3D",
    "GoogleAccessId=a%40b&Expires=1&Signature=hunter2",
    "sv=2024-01-01&sr=b&sp=r&sig=hunter2%2Fa%2B%3D",
    "Expires=1&Signature=hunter2~_&Key-Pair-Id=K1",
    "alt=media&token=hunter2",
]
