"""A picture's format and its size in pixels, read from its first bytes without a decoder.

A decoder may allocate as much memory as a header asks for, so the header is read here first. For any bytes, this module
allocates nothing and raises only `ValueError`. JPEG markers are found by the rules of libjpeg: bytes between segments
and fill bytes are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from perfusion_ops.errors import PerfusionError

Format = Literal["JPEG", "PNG", "WEBP"]
# The rule by which a file's pixels differ from those of versions before 0.2; "" if no such rule applies.
Reading = Literal["", "srgb", "alpha", "scaled"]

_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG start-of-frame markers
_OTHERS = (
    (b"BM", "a BMP"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF"),
    (b"PK\3\4", "a zip archive"),
    (b"<", "HTML, XML or SVG text"),
)


class DepthError(PerfusionError, ValueError):
    """The header is valid, but its channels have a depth that common decoders do not read."""


@dataclass(frozen=True)
class Segment:
    """One segment of a JPEG: its marker's second byte, and the range of its payload, which follows the length."""

    marker: int
    start: int
    end: int


def picture_format(data: bytes) -> Format | None:
    """The format by the signature; None for any other format."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def describe(data: bytes) -> str:
    """The kind of bytes that are none of the three formats, for a message: "a BMP", "plain text"."""
    start = data[:512]
    for signature, name in _OTHERS:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(signature):
            return name
    if start[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return "plain text"
    return "an unknown format"


def picture_size(data: bytes, kind: Format) -> tuple[int, int]:
    """(width, height) in pixels as stored.

    Raises:
        DepthError: a JPEG's channels do not have 8 bits.
        ValueError: the header is cut off or invalid.
    """
    read = {"JPEG": _jpeg_size, "PNG": _png_size, "WEBP": _webp_size}[kind]
    try:
        width, height = read(data)
    except IndexError:
        raise ValueError("the header is cut off") from None
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")
    return width, height


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 24:
        raise IndexError
    if data[12:16] != b"IHDR":
        raise ValueError("its first chunk is not the header")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """The segments of a JPEG up to and including its first scan.

    Raises:
        IndexError: the file is cut off.
    """
    position = 2
    while True:
        position = data.find(0xFF, position)
        if position < 0:
            raise IndexError
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker == 0 or marker in _STANDALONE:
            continue
        if marker == _END:
            return
        # Like libjpeg: an impossible length (0 or 1) is read as that of an empty segment.
        length = max(2, (data[position] << 8) + data[position + 1])
        yield Segment(marker, position + 2, position + length)
        if marker == _SCAN:
            return
        position += length


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for segment in jpeg_segments(data):
        if segment.marker == _SCAN:
            break
        if segment.marker in _FRAMES:
            frame = data[segment.start : segment.start + 5]
            if len(frame) < 5:
                raise IndexError
            if frame[0] != 8:
                raise DepthError(f"it has {frame[0]} bits per channel, not 8")
            return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
    raise ValueError("it has no frame header before its pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    if len(data) < 30:
        raise IndexError
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise ValueError("its first chunk is not a picture")
