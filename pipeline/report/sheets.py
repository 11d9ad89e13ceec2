"""Contact sheets: which concepts, photos and renders a report shows, with the images as small data URIs.

The sample is deterministic: concepts are taken in the order of a digest of their id, so reports of one catalogue show
the same concepts. Images are read with a limit on bytes and pixels, and shrunk. An image that cannot be shown has no
data and a note that says why; it never raises.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
from PIL import Image

from pipeline.contract.errors import Code, RowError, Status
from pipeline.database.query import Row, rows
from pipeline.inputs.colours import to_srgb
from pipeline.inputs.headers import picture_format, picture_size
from pipeline.inputs.masks import eight_bits, is_deep
from pipeline.inputs.opening import load_picture, upright
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.inputs.videos import VideoError, is_mp4, poster
from pipeline.storage.objects import Storage, StorageError, absolute_uri

THUMBNAIL_PX = 256  # longest side of an inlined image
CRISP_PX = 128  # images up to this side keep their pixels and are enlarged without smoothing
TRAINING_PER_CONCEPT = 4
RENDERS_PER_CONCEPT = 8

_MAX_BYTES = 32_000_000
_MAX_PIXELS = 64_000_000
_FRAMES = InputLimits(max_pixels=_MAX_PIXELS, min_side=1)
# Photos on the web are not fetched: writing or opening a report must not send requests to hosts in a manifest.
_PROTOCOLS = frozenset({"file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_READERS = 8  # images read at the same time: an object store responds in tens of milliseconds


@dataclass(frozen=True)
class Thumbnail:
    """An image ready to be inlined, or the reason why there is none.

    `src` is a data URI; if it is None, `note` says why. `width` and `height` are in pixels. `crisp` images are enlarged
    without smoothing.
    """

    src: str | None = None
    width: int = 0
    height: int = 0
    crisp: bool = False
    note: str = ""


@dataclass(frozen=True)
class RenderTile:
    """A render: its row of the renders table, its image, and the first photo of each of its concepts."""

    row: Row
    picture: Thumbnail
    references: tuple[Thumbnail, ...] = ()


@dataclass(frozen=True)
class Card:
    """The sheet of one concept: its row, its carried columns, its photos and its renders."""

    row: Row
    carried: tuple[tuple[str, Any], ...]
    training: tuple[Thumbnail, ...]
    training_total: int
    renders: tuple[RenderTile, ...]
    renders_total: int


class PictureReader:
    """Reads renders from a root, and photos from anywhere with the root's storage options."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._photos = InputStore(InputLimits(max_bytes=_MAX_BYTES), storage.options)

    def read(self, uri: str) -> Thumbnail:
        """The image at `uri`, shrunk; never raises."""
        try:
            return thumbnail(self._fetch(uri))
        except FileNotFoundError:
            return Thumbnail(note="The picture is not there any more.")
        except (_NotShownError, StorageError, VideoError) as reason:
            return Thumbnail(note=str(reason))
        except RowError as error:
            missing = error.code == Code.IMAGE_MISSING
            return Thumbnail(note="The picture is not there any more." if missing else str(error))
        except Exception as error:  # noqa: BLE001 - storage drivers and decoders raise anything; the page reports it
            return Thumbnail(note=f"The picture cannot be read ({type(error).__name__}).")

    def read_all(self, uris: Iterable[str]) -> list[Thumbnail]:
        """The images at `uris`, in order, several at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.read, uris))

    def _fetch(self, uri: str) -> bytes:
        uri = absolute_uri(uri)
        protocol = uri.partition("://")[0]
        if protocol not in _PROTOCOLS:
            raise _NotShownError(f"Pictures behind {protocol[:20]}:// are not fetched for a report.")
        path = uri.removeprefix(f"{self._storage.root}/")
        return self._photos.fetch(uri) if path == uri else self._storage.read(path, max_bytes=_MAX_BYTES)


class _NotShownError(Exception):
    """An image that exists but must not be shown."""


def thumbnail(data: bytes) -> Thumbnail:
    """Shrink an encoded image to THUMBNAIL_PX and encode it as WebP without metadata.

    Args:
        data: bytes of a PNG, JPEG or WebP file, or of an MP4 file; of videos the first frame is shown.

    Returns:
        The image as a data URI; lossless if no side is longer than CRISP_PX.

    Raises:
        _NotShownError: no image, or more pixels than a report decodes.
        RowError, VideoError: an MP4 file that cannot be shown.
        OSError: a damaged image; Pillow may raise other errors for it.
    """
    small = poster(data, _FRAMES) if is_mp4(data) else _loaded(data)
    crisp = max(small.size) <= CRISP_PX
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=crisp, quality=80, exif=b"", icc_profile=b"")
    src = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(src, small.width, small.height, crisp)


def _loaded(data: bytes) -> Image.Image:
    """A picture, or the first frame of an animated WebP file, upright and in sRGB; not smaller than a thumbnail."""
    kind = picture_format(data)
    if kind is None:
        raise _NotShownError("The picture is no JPEG, PNG or WebP.")
    width, height = picture_size(data, kind)
    if width * height > _MAX_PIXELS:
        raise _NotShownError(f"The picture has {width} x {height} pixels and is not shown.")
    picture = upright(load_picture(data, kind, THUMBNAIL_PX * 2))
    picture = eight_bits(picture) if is_deep(picture) else to_srgb(picture) or picture
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def sample_concepts(connection: duckdb.DuckDBPyConnection, limit: int) -> list[Row]:
    """Rows of the table `concepts`, one per concept id, in the order of a digest of the id.

    If several rows share an id, the first ok row represents it, else the first row.
    """
    return rows(
        connection,
        """
        SELECT * FROM concepts WHERE concept_id IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY concept_id ORDER BY status <> 'ok', manifest_row) = 1
        ORDER BY md5(concept_id), concept_id LIMIT ?
        """,
        [limit],
    )


def concept_cards(
    connection: duckdb.DuckDBPyConnection,
    concepts: Sequence[Row],
    carried: Sequence[str],
    inputs: Mapping[str, Sequence[str]],
    reader: PictureReader,
) -> Iterator[Card]:
    """Sheets of `concepts`, in order; images are read one sheet at a time as the iterator advances.

    Args:
        connection: has the table `renders`.
        concepts: rows of the concepts table.
        carried: names of carried columns, shown with each concept.
        inputs: addresses of photos by concept id; any concept may be missing.
        reader: reads the images.
    """
    by_concept: dict[str, list[Row]] = {}
    for row in _renders_of(connection, [concept["concept_id"] for concept in concepts]):
        by_concept.setdefault(row["concept_id"], []).append(row)
    for concept in concepts:
        renders = by_concept.get(concept["concept_id"], [])
        photos = inputs.get(concept["concept_id"], [])
        shown = photos[:TRAINING_PER_CONCEPT]
        pictures = reader.read_all([*shown, *(row["uri"] for row in renders if _has_picture(row))])
        made = iter(pictures[len(shown) :])
        yield Card(
            row=concept,
            carried=tuple((name, concept[name]) for name in carried if concept[name] is not None),
            training=tuple(pictures[: len(shown)]),
            training_total=concept["images"] or len(photos),
            renders=tuple(RenderTile(row, next(made) if _has_picture(row) else Thumbnail()) for row in renders),
            renders_total=renders[0]["_perfusion_total"] if renders else 0,
        )


def combined_renders(
    connection: duckdb.DuckDBPyConnection, limit: int, inputs: Mapping[str, Sequence[str]], reader: PictureReader
) -> Iterator[RenderTile]:
    """Renders of two or more concepts, in the order of a digest of their key, with the concepts' first photos."""
    for row in rows(
        connection,
        """
        SELECT * FROM renders WHERE len(concept_ids) > 1
        ORDER BY md5(render_key), manifest_row, image_index LIMIT ?
        """,
        [limit],
    ):
        photos = [inputs[concept][0] for concept in row["concept_ids"] if inputs.get(concept)]
        pictures = reader.read_all([*photos, *([row["uri"]] if _has_picture(row) else [])])
        yield RenderTile(row, pictures[-1] if _has_picture(row) else Thumbnail(), tuple(pictures[: len(photos)]))


def _has_picture(row: Row) -> bool:
    return row["status"] == Status.OK and bool(row["uri"])


def _renders_of(connection: duckdb.DuckDBPyConnection, concept_ids: Sequence[str]) -> list[Row]:
    """Up to RENDERS_PER_CONCEPT rows per concept: ok rows first, and each prompt once before a second seed."""
    return rows(
        connection,
        """
        WITH numbered AS (
            SELECT *, row_number() OVER (PARTITION BY concept_id, manifest_row ORDER BY image_index) AS _perfusion_place
            FROM renders WHERE concept_id IN (SELECT unnest(?::VARCHAR[])) AND len(concept_ids) = 1
        )
        SELECT *, count(*) OVER (PARTITION BY concept_id) AS _perfusion_total FROM numbered
        QUALIFY row_number() OVER (
            PARTITION BY concept_id ORDER BY status <> 'ok', _perfusion_place, manifest_row, image_index
        ) <= ?
        ORDER BY concept_id, status <> 'ok', _perfusion_place, manifest_row, image_index
        """,
        [list(concept_ids), RENDERS_PER_CONCEPT],
    )
