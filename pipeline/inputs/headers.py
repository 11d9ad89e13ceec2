"""What a picture's first bytes say, read without any decoder: its format and its size in pixels.

A decoder may allocate what a header asks for, so the header is read here first. Nothing is allocated and nothing but
`ValueError` is raised, whatever the bytes are. JPEG markers are found by the rules of libjpeg: bytes between segments
and fill bytes are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from perfusion_ops.errors import PerfusionError

Format = Literal["JPEG", "PNG", "WEBP"]
# A rule by which a file's pixels are another than versions before 0.2 took them for; "" when none of them applied.
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
    """The header is sound, but its channels have more bits than any common decoder reads."""


@dataclass(frozen=True)
class Segment:
    """One segment of a JPEG: its marker's second byte, and where its payload (after the length) starts and ends."""

    marker: int
    start: int
    end: int


def picture_format(data: bytes) -> Format | None:
    """Which of the three formats the signature stands for; None for everything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def describe(data: bytes) -> str:
    """What bytes that are none of the three formats look like, for a sentence: "a BMP", "plain text"."""
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
        DepthError: when a JPEG's channels have another depth than 8 bits.
        ValueError: when the header is cut off or makes no sense.
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
        raise ValueError("the header chunk is not where it must be")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """The segments of a JPEG up to its first scan, that one included; a cut-off file ends with an IndexError."""
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
        # libjpeg takes an impossible length (0 or 1) for that of an empty segment.
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
                raise DepthError(f"it has {frame[0]} bits per channel, and 8 are read")
            return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
    raise ValueError("there is no frame header before the picture's data")


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
    raise ValueError("the first chunk is not a picture's")
