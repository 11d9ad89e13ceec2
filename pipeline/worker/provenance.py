"""Renders as PNG, WebP or MP4 files that state their provenance.

The metadata of each file says that a model made it (IPTC digital source type trainedAlgorithmicMedia, or
compositeWithTrainedAlgorithmicMedia if a part is of a photo), and holds its render key and the digests of its weights,
base model, motion adapter and photo: as text chunks of a PNG, as XMP properties of a WebP or MP4 file. In MP4 the
packet is in the box that the XMP specification (part 3) gives it, behind everything else.
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
from pipeline.worker.videos import WEBP_HEADER, mp4, webp_chunk, webp_chunks, webp_still

_PNG = Encoding()
_NAMES: tuple[str, ...] = ("render_key", "weights_sha256", "base_sha256")
_KEY = f"perfusion:{_NAMES[0]}"
_END = b"IEND\xaeB`\x82"  # the last chunk of a PNG; Pillow also opens files that are cut off
_SCENE, _MOTION = "scene_sha256", "motion_sha256"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# Lossless WebP of method 0 is smaller than PNG and takes no longer; method 1 takes four times as long for 8 % fewer
# bytes. Lossy WebP has libwebp's default method, which is part of what a render key means.
_LOSSLESS, _LOSSY = {"lossless": True, "quality": 0, "method": 0}, {"method": 4}
_VP8X, _HAS_XMP, _HAS_FRAMES = 18, 0x04, 0x02  # bytes of the chunk VP8X; its flags
_XMP_BOX = b"uuid" + bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def encode_render(
    pixels: NDArray[np.uint8],
    *,
    render_key: str,
    weights: Sequence[str],
    base_digest: str,
    scene: str | None = None,
    fps: int | None = None,
    motion: str | None = None,
    encoding: Encoding = _PNG,
) -> bytes:
    """Bytes of a file with provenance; equal arguments give equal bytes.

    Args:
        pixels: (H, W, 3) RGB; of a video (F, H, W, 3).
        render_key: content key of the render.
        weights: sha256 of each concept file, in the order of the task's concepts.
        base_digest: digest of the base model.
        scene: sha256 of the photo of which a part stays; None if all pixels are drawn.
        fps: frames a second of a video; None for a picture.
        motion: digest of the motion adapter that drew a video.
        encoding: format of the file; for a video webp or mp4.

    Raises:
        VideoError: MP4 cannot be written here.
    """
    facts: dict[str, str] = dict(zip(_NAMES, (render_key, ",".join(weights), base_digest), strict=True))
    facts |= {_SCENE: scene} if scene else {}
    facts |= {_MOTION: motion} if motion else {}
    if fps is not None:
        facts |= {"frames": str(len(pixels)), "fps": str(fps)}
        return _mp4(pixels, facts, fps) if encoding.format == "mp4" else _animation(pixels, facts, encoding, fps)
    return _webp(pixels, facts, encoding) if encoding.format == "webp" else _png(pixels, facts, encoding.png_level)


def answers(data: bytes, render_key: str, image_format: ImageFormat = "png") -> bool:
    """Whether bytes are a complete file of a format that `encode_render` made for this key."""
    check = {"png": _png_answers, "webp": _webp_answers, "mp4": _mp4_answers}[image_format]
    return check(data, render_key)


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
    height, width, _ = pixels.shape
    return _with_xmp(webp_still(pixels, _webp_options(encoding)), facts, width, height)


def _animation(pixels: NDArray[np.uint8], facts: dict[str, str], encoding: Encoding, fps: int) -> bytes:
    _, height, width, _ = pixels.shape
    return _with_xmp(webp_chunks(pixels, fps, _webp_options(encoding)), facts, width, height, _HAS_FRAMES)


def _webp_options(encoding: Encoding) -> dict[str, object]:
    return dict(_LOSSLESS) if encoding.webp_quality is None else {**_LOSSY, "quality": encoding.webp_quality}


def _with_xmp(image: bytes, facts: dict[str, str], width: int, height: int, flags: int = 0) -> bytes:
    """A WebP file of the chunks of an image and a packet of facts behind them."""
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    chunks = (
        webp_chunk(b"VP8X", bytes([_HAS_XMP | flags, 0, 0, 0]) + canvas)
        + image
        + webp_chunk(b"XMP ", _packet(image, facts))
    )
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


def _packet(image: bytes, facts: dict[str, str]) -> bytes:
    """The facts as XMP. WebP and MP4 have no checksums, so it has a digest of what is before it."""
    facts = {**facts, "image_sha256": hashlib.sha256(image).hexdigest()}
    attributes = "".join(f' perfusion:{name}="{value}"' for name, value in facts.items())
    return _xmp(facts, f' xmlns:perfusion="urn:perfusion:render"{attributes}').encode()


def _packet_answers(packet: bytes, image: bytes, render_key: str) -> bool:
    image_digest = hashlib.sha256(image).hexdigest()
    expected = (f'{_KEY}="{render_key}"', f'perfusion:image_sha256="{image_digest}"')
    return all(packet.count(fact.encode()) == 1 for fact in expected)


def _webp_answers(data: bytes, render_key: str) -> bool:
    first = WEBP_HEADER + _VP8X
    if data[:4] != b"RIFF" or int.from_bytes(data[4:8], "little") != len(data) - 8 or data[8:16] != b"WEBPVP8X":
        return False
    end = first
    while end < len(data) and data[end : end + 4] != b"XMP ":
        end = _end_of_chunk(data, end)
    if end <= first or _end_of_chunk(data, end) != len(data):
        return False
    return _packet_answers(data[end:], data[first:end], render_key)


def _end_of_chunk(data: bytes, start: int) -> int:
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    return start + 8 + length + length % 2


def _mp4(pixels: NDArray[np.uint8], facts: dict[str, str], fps: int) -> bytes:
    video = mp4(pixels, fps)
    packet = _XMP_BOX + _packet(video, facts)
    return video + (4 + len(packet)).to_bytes(4, "big") + packet


def _mp4_answers(data: bytes, render_key: str) -> bool:
    """Whether the last box is our packet; a file that was cut off ends inside a box."""
    start, end = 0, 0
    while end < len(data):
        start, size = end, int.from_bytes(data[end : end + 4], "big")
        if size < 8:  # no box of ours has its length elsewhere
            return False
        end = start + size
    packet = data[start + 4 :]
    return end == len(data) and packet.startswith(_XMP_BOX) and _packet_answers(packet, data[:start], render_key)
