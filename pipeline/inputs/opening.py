"""Bytes to a picture through Pillow: opens everything that libjpeg, libpng or libwebp decode, even with bad metadata.

Only the orientation and the colour profile of the metadata are used, so a JPEG whose metadata Pillow cannot read is
opened without metadata. Callers must check the header first (`pipeline.inputs.headers`): this module counts no pixels.
"""

import io

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.inputs.headers import Format, Segment, jpeg_segments

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"
_END = b"\xff\xd9"
# Bytes that do not change a complete scan. A scan that is cut off decodes them as its own, so its pixels differ.
_PROBES = (b"", b"\x55" * 64, b"\xaa" * 64)


def open_picture(data: bytes, kind: Format) -> Image.Image:
    """Open a picture without decoding it; of a phone's JPEG with several pictures, the first.

    Raises:
        Exception: of any type, if the bytes are no such picture.
    """
    if kind != "JPEG":
        return Image.open(io.BytesIO(data), formats=[kind])
    # Not `Image.open`: it would also read the index of a phone's other pictures, which may be broken.
    try:
        return JpegImageFile(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - hostile metadata raises errors of any type
        picture = JpegImageFile(io.BytesIO(_without_metadata(data)))
    blocks = [data[it.start : it.end] for it in jpeg_segments(data) if it.marker == 0xE1]
    exif = next((block for block in blocks if block.startswith(_EXIF)), None)
    if exif is not None:
        picture.info["exif"] = exif
    return picture


def load_picture(data: bytes, kind: Format, shrink_to: int | None = None) -> Image.Image:
    """Open and decode a picture; a JPEG that lacks only its end marker counts as complete.

    Args:
        data: the file.
        kind: its format.
        shrink_to: pixels that suffice for each side; a JPEG is then decoded at a fraction of its size.

    Raises:
        Exception: of any type; "truncated" in its text means that the bytes end too early.
    """
    picture = _drafted(data, kind, shrink_to)
    try:
        picture.load()
    except OSError as error:
        if kind != "JPEG" or "truncated" not in str(error):
            raise
        ended = _ended(data, shrink_to)
        if ended is None:
            raise
        return ended
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned by its orientation tag (EXIF, else XMP), unturned if the tag cannot be read.

    The EXIF block is never written: Pillow refuses some values that cameras write.
    """
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - Pillow raises a dozen types on broken EXIF
        return picture
    return picture if turn is None else picture.transpose(turn)


def _ended(data: bytes, shrink_to: int | None) -> Image.Image | None:
    """Decode a JPEG without an end marker; None if more than the marker is missing."""
    found = [_drafted(data.rstrip(b"\xff") + probe + _END, "JPEG", shrink_to) for probe in _PROBES]
    try:
        same = len({picture.tobytes() for picture in found}) == 1
    except OSError:
        return None
    return found[0] if same else None


def _drafted(data: bytes, kind: Format, shrink_to: int | None) -> Image.Image:
    picture = open_picture(data, kind)
    if shrink_to is not None:
        picture.draft("RGB", (shrink_to, shrink_to))
    return picture


def _without_metadata(data: bytes) -> bytes:
    """The JPEG with only those segments before its first scan that decide its pixels and colours."""
    kept = [data[:2]]
    last = 2
    for segment in jpeg_segments(data):
        if _decides(segment, data):
            kept.append(bytes((0xFF, segment.marker)) + data[segment.start - 2 : segment.end])
        last = segment.end
    return b"".join([*kept, data[last:]])


def _decides(segment: Segment, data: bytes) -> bool:
    size = segment.end - segment.start
    if segment.marker == 0xE0:
        return size >= 14
    if segment.marker == 0xEE:
        return size >= 12
    if segment.marker == 0xE2:
        return size > 14 and data.startswith(_PROFILE, segment.start)
    return not (0xE0 <= segment.marker <= 0xEF or segment.marker == 0xFE)
