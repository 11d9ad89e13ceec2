"""Renders as PNG or WebP files that state their provenance.

The metadata of each file says that a model made it (IPTC digital source type trainedAlgorithmicMedia, or
compositeWithTrainedAlgorithmicMedia if a part is of a photo), and holds its render key and the digests of its weights,
base model and photo: as text chunks of a PNG, as XMP properties of a WebP file.
"""

import hashlib
import io
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from perfusion_ops.config import ImageFormat
from pipeline.worker.settings import Encoding

_PNG = Encoding()
_NAMES: tuple[str, ...] = ("render_key", "weights_sha256", "base_sha256")
_KEY = f"perfusion:{_NAMES[0]}"
_END = b"IEND\xaeB`\x82"  # the last chunk of a PNG; Pillow also opens files that are cut off
_SCENE = "scene_sha256"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# Lossless WebP of method 0 is smaller than PNG and takes no longer; method 1 takes four times as long for 8 % fewer
# bytes. Lossy WebP has libwebp's default method, which is part of what a render key means.
_LOSSLESS, _LOSSY = {"lossless": True, "quality": 0, "method": 0}, {"method": 4}
_WEBP_HEADER, _VP8X, _HAS_XMP = 12, 18, 0x04  # bytes before the first chunk; of the chunk VP8X; its flag


def encode_render(
    pixels: NDArray[np.uint8],
    *,
    render_key: str,
    weights: Sequence[str],
    base_digest: str,
    scene: str | None = None,
    encoding: Encoding = _PNG,
) -> bytes:
    """Bytes of a file of (H, W, 3) uint8 pixels with provenance; equal arguments give equal bytes.

    Args:
        pixels: RGB.
        render_key: content key of the render.
        weights: sha256 of each concept file, in the order of the task's concepts.
        base_digest: digest of the base model.
        scene: sha256 of the photo of which a part stays; None if all pixels are drawn.
        encoding: format of the file.
    """
    facts: dict[str, str] = dict(zip(_NAMES, (render_key, ",".join(weights), base_digest), strict=True))
    facts |= {_SCENE: scene} if scene else {}
    return _webp(pixels, facts, encoding) if encoding.format == "webp" else _png(pixels, facts, encoding.png_level)


def answers(data: bytes, render_key: str, image_format: ImageFormat = "png") -> bool:
    """Whether bytes are a complete file of a format that `encode_render` made for this key."""
    return _webp_answers(data, render_key) if image_format == "webp" else _png_answers(data, render_key)


def _xmp(facts: dict[str, str], attributes: str = "") -> str:
    """An XMP packet with the source type that follows from the facts, and more XML attributes of its description."""
    kind = "compositeWithTrainedAlgorithmicMedia" if _SCENE in facts else "trainedAlgorithmicMedia"
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"{attributes}>'
        f"<Iptc4xmpExt:DigitalSourceType>{_SOURCE_TYPES}{kind}</Iptc4xmpExt:DigitalSourceType>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def _png(pixels: NDArray[np.uint8], facts: dict[str, str], level: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    for name, value in facts.items():
        text.add_text(f"perfusion:{name}", value)
    text.add_itxt("XML:com.adobe.xmp", _xmp(facts))
    stream = io.BytesIO()
    # The rows of a photo have few repeats to look for: of equal speed, runs alone give fewer bytes than level 1.
    strategy = zlib.Z_RLE if level == 1 else zlib.Z_DEFAULT_STRATEGY
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=text, compress_level=level, compress_type=strategy)
    return stream.getvalue()


def _png_answers(data: bytes, render_key: str) -> bool:
    if not data.endswith(_END):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as render:
            render.load()
            return isinstance(render, PngImagePlugin.PngImageFile) and render.text.get(_KEY) == render_key
    except (OSError, ValueError, SyntaxError):
        return False


def _webp(pixels: NDArray[np.uint8], facts: dict[str, str], encoding: Encoding) -> bytes:
    stream = io.BytesIO()
    lossy = {**_LOSSY, "quality": encoding.webp_quality}
    Image.fromarray(pixels).save(stream, "WEBP", **(_LOSSLESS if encoding.webp_quality is None else lossy))
    image = stream.getvalue()[_WEBP_HEADER:]  # without metadata, the file is its header and one chunk
    # WebP has no checksum, so the metadata has a digest of the image's chunk.
    facts = {**facts, "image_sha256": hashlib.sha256(image).hexdigest()}
    attributes = "".join(f' perfusion:{name}="{value}"' for name, value in facts.items())
    height, width, _ = pixels.shape
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    chunks = (
        _chunk(b"VP8X", bytes([_HAS_XMP, 0, 0, 0]) + canvas)
        + image
        + _chunk(b"XMP ", _xmp(facts, f' xmlns:perfusion="urn:perfusion:render"{attributes}').encode())
    )
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)


def _webp_answers(data: bytes, render_key: str) -> bool:
    first = _WEBP_HEADER + _VP8X
    if data[:4] != b"RIFF" or int.from_bytes(data[4:8], "little") != len(data) - 8 or data[8:16] != b"WEBPVP8X":
        return False
    end = _end_of_chunk(data, first)
    if data[end : end + 4] != b"XMP " or _end_of_chunk(data, end) != len(data):
        return False
    packet, image_digest = data[end:], hashlib.sha256(data[first:end]).hexdigest()
    expected = (f'{_KEY}="{render_key}"', f'perfusion:image_sha256="{image_digest}"')
    return all(packet.count(fact.encode()) == 1 for fact in expected)


def _end_of_chunk(data: bytes, start: int) -> int:
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    return start + 8 + length + length % 2
