"""Frames as animated WebP or as MP4; equal frames give equal bytes.

The files have no metadata: `pipeline.worker.provenance` adds it.
"""

import io
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.videos import ensure_mp4

WEBP_HEADER = 12  # bytes before the first chunk
_WHOLE_FRAME = 0b10  # flags of a frame: it replaces the one before and is not blended with it
_BLACK, _FOREVER = bytes(4), bytes(2)  # background and number of loops of the chunk ANIM
# Without a macroblock tree and B-frames: with both, x264 165 reads memory that it has not set, and equal frames give
# other bytes. Without B-frames a frame is also shown at once where it is decoded, and no edit list shifts the times.
_X264 = {"crf": "17", "preset": "medium", "bf": "0", "x264-params": "mbtree=0", "threads": "1"}
_BT709, _LIMITED = 1, 1  # the numbers of H.264 for colours and their range
_MOOV, _MOOV_FRAME = 2048, 32  # bytes kept free before the pixels, for what a player reads first; and for each frame


def durations_ms(frames: int, fps: int) -> list[int]:
    """Whole milliseconds of each frame; their sums are never more than half a millisecond from the true times."""
    ends = [round(Fraction(1000 * number, fps)) for number in range(frames + 1)]
    return [end - start for start, end in pairwise(ends)]


def webp_chunks(pixels: NDArray[np.uint8], fps: int, options: Mapping[str, Any]) -> bytes:
    """The chunks of an animated WebP file behind its header, without metadata; it repeats for ever.

    Each frame is a whole picture. libwebp's own animations would join equal frames into one.

    Args:
        pixels: (F, H, W, 3) RGB.
        fps: frames a second, up to 1000.
        options: of Pillow, for each frame.
    """
    _, height, width, _ = pixels.shape
    place = bytes(6) + b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    chunks = [webp_chunk(b"ANIM", _BLACK + _FOREVER)]
    for frame, duration in zip(pixels, durations_ms(len(pixels), fps), strict=True):
        header = place + duration.to_bytes(3, "little") + bytes([_WHOLE_FRAME])
        chunks.append(webp_chunk(b"ANMF", header + webp_still(frame, options)))
    return b"".join(chunks)


def webp_still(pixels: NDArray[np.uint8], options: Mapping[str, Any]) -> bytes:
    """The one chunk of a WebP file of (H, W, 3) RGB pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", **options)
    return stream.getvalue()[WEBP_HEADER:]  # without metadata, the file is its header and one chunk


def webp_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a WebP file."""
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)


def mp4(pixels: NDArray[np.uint8], fps: int) -> bytes:
    """An MP4 file: H.264, 4:2:0, BT.709 with limited range; a player can begin before it has read all of it.

    Args:
        pixels: (F, H, W, 3) RGB; H and W are even.
        fps: frames a second.

    Raises:
        VideoError: the package av is missing.
    """
    ensure_mp4()
    import av
    from av.codec.context import Flags
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    frames, height, width, _ = pixels.shape
    stream, exact = io.BytesIO(), Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    options = {"moov_size": str(_MOOV + _MOOV_FRAME * frames), "fflags": "+bitexact"}
    with av.open(stream, "w", format="mp4", options=options) as container:
        track = container.add_stream("libx264", rate=Fraction(fps), options=_X264)
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        context = track.codec_context
        context.flags |= Flags.bitexact
        context.color_range, context.colorspace = _LIMITED, _BT709
        context.color_primaries, context.color_trc = _BT709, _BT709
        for number, frame in enumerate(pixels):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=exact,
                threads=1,
            )
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(track.encode(picture))
        container.mux(track.encode(None))
    return stream.getvalue()
