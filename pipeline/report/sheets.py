"""Contact sheets: which concepts and pictures a report shows, and the pictures themselves as small data URIs.

The sample is deterministic: concepts are drawn in the order of a digest of their id, so that the report of every run
of a catalogue shows the same ones. Pictures are read under a cap on bytes and on pixels and shrunk; one that cannot be
shown becomes a picture without data and with a note that says why. No picture ever raises.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb

from pipeline.contract.errors import Code, RowError, Status
from pipeline.database.query import Row, rows
from pipeline.inputs.colours import to_srgb
from pipeline.inputs.headers import picture_format, picture_size
from pipeline.inputs.masks import eight_bits, is_deep
from pipeline.inputs.opening import load_picture, upright
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.storage.objects import Storage, StorageError, absolute_uri

THUMBNAIL_PX = 256  # longest side of an inlined picture
CRISP_PX = 128  # pictures up to this side are kept pixel for pixel and enlarged without smoothing
TRAINING_PER_CONCEPT = 4
RENDERS_PER_CONCEPT = 8

_MAX_BYTES = 32_000_000
_MAX_PIXELS = 64_000_000
# Pictures on the web are not fetched: whoever opens or writes a report must not cause requests to hosts it names.
_PROTOCOLS = frozenset({"file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_READERS = 8  # pictures read at the same time: an object store answers in tens of milliseconds


@dataclass(frozen=True)
class Picture:
    """A picture ready to be inlined, or the reason why there is none.

    `src` is a data URI (None: `note` says why); `width` and `height` are its pixels; `crisp` asks for enlargement
    without smoothing.
    """

    src: str | None = None
    width: int = 0
    height: int = 0
    crisp: bool = False
    note: str = ""


@dataclass(frozen=True)
class Render:
    """One picture that was asked for: its row of the renders table, the picture, its concepts' first photos."""

    row: Row
    picture: Picture
    references: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Card:
    """One concept's sheet: its row, its carried columns, its training pictures beside its renders."""

    row: Row
    carried: tuple[tuple[str, Any], ...]
    training: tuple[Picture, ...]
    training_total: int
    renders: tuple[Render, ...]
    renders_total: int


class PictureReader:
    """Reads renders from a root, and photos from anywhere with the root's storage options."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._photos = InputStore(InputLimits(max_bytes=_MAX_BYTES), storage.options)

    def read(self, uri: str) -> Picture:
        """The picture at `uri`, shrunk; never raises."""
        try:
            return thumbnail(self._fetch(uri))
        except FileNotFoundError:
            return Picture(note="The picture is not there any more.")
        except (_NotShownError, StorageError) as reason:
            return Picture(note=str(reason))
        except RowError as error:
            missing = error.code == Code.IMAGE_MISSING
            return Picture(note="The picture is not there any more." if missing else str(error))
        except Exception as error:  # noqa: BLE001 - whatever a storage driver or a decoder raises, the page says it
            return Picture(note=f"The picture cannot be read ({type(error).__name__}).")

    def read_all(self, uris: Iterable[str]) -> list[Picture]:
        """The pictures at `uris`, in order, several at a time."""
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
    """A picture that exists but is deliberately not shown."""


def thumbnail(data: bytes) -> Picture:
    """Shrink an encoded picture to THUMBNAIL_PX and encode it as WebP without any metadata.

    Args:
        data: bytes of a PNG, JPEG or WebP file.

    Returns:
        The picture as a data URI; lossless when no side is longer than CRISP_PX.

    Raises:
        _NotShownError: no picture, or one of more pixels than a report decodes.
        OSError: a damaged picture (Pillow has other errors for this, too).
    """
    kind = picture_format(data)
    if kind is None:
        raise _NotShownError("The picture is no JPEG, PNG or WebP.")
    width, height = picture_size(data, kind)
    if width * height > _MAX_PIXELS:
        raise _NotShownError(f"The picture has {width} x {height} pixels and is not shown.")
    picture = upright(load_picture(data, kind, THUMBNAIL_PX * 2))
    picture = eight_bits(picture) if is_deep(picture) else to_srgb(picture) or picture
    small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    crisp = max(small.size) <= CRISP_PX
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=crisp, quality=80, exif=b"", icc_profile=b"")
    src = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(src, small.width, small.height, crisp)


def sample_concepts(connection: duckdb.DuckDBPyConnection, limit: int) -> list[Row]:
    """Rows of the table `concepts`, one per concept id, drawn by a digest of the id.

    Where several rows bear one id, the one that went well stands for it, else the first.
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
    """Sheets of `concepts`, in their order; pictures are read only when a card is asked for.

    Args:
        connection: has the table `renders`.
        concepts: rows of the concepts table.
        carried: names of the manifest's own columns, shown with each concept.
        inputs: training pictures' URIs by concept id; may lack any of them.
        reader: where pictures come from.
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
            renders=tuple(Render(row, next(made) if _has_picture(row) else Picture()) for row in renders),
            renders_total=renders[0]["_perfusion_total"] if renders else 0,
        )


def combined_renders(
    connection: duckdb.DuckDBPyConnection, limit: int, inputs: Mapping[str, Sequence[str]], reader: PictureReader
) -> Iterator[Render]:
    """Pictures of two or more concepts, drawn by a digest of their key, each with its concepts' first photos."""
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
        yield Render(row, pictures[-1] if _has_picture(row) else Picture(), tuple(pictures[: len(photos)]))


def _has_picture(row: Row) -> bool:
    return row["status"] == Status.OK and bool(row["uri"])


def _renders_of(connection: duckdb.DuckDBPyConnection, concept_ids: Sequence[str]) -> list[Row]:
    """Up to RENDERS_PER_CONCEPT single-concept rows each: good ones first, and every prompt before a second seed."""
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
