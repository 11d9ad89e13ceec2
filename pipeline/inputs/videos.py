"""Videos among the files of a root: animated WebP, and MP4 through the optional package av (FFmpeg).

Only files that this program wrote are read. Pixels are counted before a decoder sees the bytes, and frames are decoded
one after the other.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from PIL import Image

from perfusion_ops.errors import UsageError
from pipeline.contract.errors import Code, RowError
from pipeline.inputs.headers import picture_format, picture_size
from pipeline.inputs.opening import open_picture
from pipeline.inputs.pictures import InputLimits, check_size, decode

_ANIMATED = 0x02  # flag of the chunk VP8X


class VideoError(UsageError):
    """This machine cannot write or read MP4 files."""


def ensure_mp4() -> None:
    """Check that MP4 files can be written and read here.

    Raises:
        VideoError: the package av is missing.
    """
    if find_spec("av") is None:
        raise VideoError(
            "MP4 needs the package av: pip install 'perfusion-pipeline[video]', or set render.format to webp"
        )


def is_mp4(data: bytes) -> bool:
    """Whether bytes begin as an MP4 file does."""
    return data[4:8] == b"ftyp"


def is_video(data: bytes) -> bool:
    """Whether bytes begin as an MP4 file or an animated WebP file does."""
    animated = picture_format(data) == "WEBP" and data[12:16] == b"VP8X" and len(data) > 20 and data[20] & _ANIMATED
    return is_mp4(data) or bool(animated)


def poster(data: bytes, limits: InputLimits) -> Image.Image:
    """The first frame of a video as RGB.

    Raises:
        RowError, VideoError: as `frames_of`.
    """
    with _checked():
        return next(_frames(data, limits, {0}))


def frames_of(data: bytes, limits: InputLimits, most: int) -> list[Image.Image]:
    """Frames of a video as RGB, evenly spaced with the first and the last one; of a picture, the picture alone.

    Args:
        data: the file.
        limits: of each frame.
        most: frames at most, two or more.

    Raises:
        RowError: as `pipeline.inputs.pictures.decode`; of a video IMAGE_TOO_MANY_PIXELS, IMAGE_TOO_SMALL or
            IMAGE_CORRUPT.
        VideoError: it is MP4, and the package av is missing.
    """
    if not is_video(data):
        return [decode(data, limits)]
    with _checked():
        return list(_frames(data, limits, set(spaced(_count(data), most))))


def spaced(count: int, most: int) -> list[int]:
    """Up to `most` evenly spaced numbers of 0 ... count - 1, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _count(data: bytes) -> int:
    if is_mp4(data):
        with _opened(data) as (_, stream):
            return stream.frames
    return int(getattr(open_picture(data, "WEBP"), "n_frames", 1))


def _frames(data: bytes, limits: InputLimits, wanted: set[int]) -> Iterator[Image.Image]:
    """The frames of these numbers, from 0.

    Raises:
        ValueError, EOFError: the video is shorter, or damaged. Decoders raise other errors as well.
    """
    if is_mp4(data):
        with _opened(data) as (container, stream):
            check_size(stream.codec_context.width, stream.codec_context.height, limits)
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    yield frame.to_image()
                    if number == max(wanted):
                        return
        raise ValueError("the video ends early")
    check_size(*picture_size(data, "WEBP"), limits)
    picture = open_picture(data, "WEBP")
    for number in sorted(wanted):
        picture.seek(number)
        yield picture.convert("RGB")


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    """An MP4 file with its H.264 stream; no other format or codec is tried."""
    ensure_mp4()
    import av

    with av.open(io.BytesIO(data), format="mp4") as container:
        [stream] = container.streams.video
        if stream.codec_context.name != "h264":
            raise ValueError("no stream of H.264")
        yield container, stream


@contextmanager
def _checked() -> Iterator[None]:
    """Turn what decoders raise into the row's error; their messages change with their versions."""
    try:
        yield
    except (RowError, VideoError):
        raise
    except Exception as error:  # on damaged bytes, decoders raise errors of any type
        raise RowError(Code.IMAGE_CORRUPT, "the video is damaged and does not decode: render it again") from error
