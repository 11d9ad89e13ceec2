"""Renders as PNG files that state their provenance.

The metadata of each file says that a model made it (IPTC digital source type trainedAlgorithmicMedia), and holds its
render key and the digests of its weights and base model.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

_KEY = "perfusion:render_key"
_END = b"IEND\xaeB`\x82"  # the last chunk of a PNG; Pillow also opens files that are cut off
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def encode_render(pixels: NDArray[np.uint8], *, render_key: str, weights: Sequence[str], base_digest: str) -> bytes:
    """PNG bytes of (H, W, 3) uint8 pixels with provenance; equal arguments give equal bytes.

    Args:
        pixels: RGB.
        render_key: content key of the render.
        weights: sha256 of each concept file, in the order of the task's concepts.
        base_digest: digest of the base model.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text(_KEY, render_key)
    text.add_text("perfusion:weights_sha256", ",".join(weights))
    text.add_text("perfusion:base_sha256", base_digest)
    text.add_itxt("XML:com.adobe.xmp", _XMP)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=text, compress_level=6)
    return stream.getvalue()


def answers(data: bytes, render_key: str) -> bool:
    """Whether bytes are a complete file that `encode_render` made for this key."""
    if not data.endswith(_END):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as render:
            render.load()
            return isinstance(render, PngImagePlugin.PngImageFile) and render.text.get(_KEY) == render_key
    except (OSError, ValueError, SyntaxError):
        return False
