"""Checks a manifest of concepts with its photos, and fills the table `concepts` of the plan's database."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.contract.errors import Code, verdict
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import find_manifest
from pipeline.files.rows import Columns
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.manifest import starts
from pipeline.manifest.cells import Check, RowReader, identifier, optional, overrides, required, superclass
from pipeline.manifest.images import ImageReader
from pipeline.manifest.list_cells import listed
from pipeline.manifest.reading import (
    PICTURE,
    VERDICT,
    ManifestSummary,
    Reading,
    Row,
    bounded_map,
    broken,
    insert,
    raw_text,
)
from pipeline.storage.objects import Storage

COLUMNS = Columns(
    known=frozenset({"concept_id", "superclass", "images", "masks", "train", starts.COLUMN}),
    required=frozenset({"concept_id", "superclass", "images"}),
    numbers=frozenset(),
    lists=frozenset({"images", "masks"}),
)
FILES = ("images", "masks", starts.COLUMN)  # columns that name files

_PICTURES = pa.list_(PICTURE)
_ROW = pa.schema(
    [
        ("row", pa.int64()),
        ("concept_id", pa.string()),
        ("superclass", pa.string()),
        ("images", _PICTURES),
        ("masks", _PICTURES),
        ("train", pa.string()),
        ("start", pa.struct([("uri", pa.string()), ("sha256", pa.string())])),
        *VERDICT,
    ]
)


def load_concepts(
    db: PlanDB,
    uri: str,
    *,
    storage: Storage,
    limits: InputLimits,
    cache: InputCache,
    storage_options: Mapping[str, object] | None = None,
    threads: int = 8,
    superclass_check: Callable[[str], None] | None = None,
    train_check: Callable[[str], None] | None = None,
    start_check: Callable[[bytes], None] | None = None,
) -> ManifestSummary:
    """Check a concepts manifest with its photos, and fill the tables `concepts` and `concepts_extra`.

    Args:
        db: the plan's database.
        uri: path or URI of a file, folder or glob of Parquet, CSV or JSON lines; relative photo paths start from this
            folder, or from the folder of this file.
        storage: root that keeps photos which the manifest holds as bytes, each once.
        limits: where photos may lie, and how large they may be.
        cache: earlier inspections; new ones are saved in it.
        storage_options: fsspec options for the manifest and the photos, for one filesystem or grouped by scheme.
        threads: photos inspected at the same time.
        superclass_check: raises `RowError` for a superclass that the base model cannot read
            (`pipeline.bases.superclasses`); by default only the text is checked.
        train_check: raises `RowError` for the JSON of a `train` cell that does not work with the base model
            (`pipeline.bases.recipes`).
        start_check: raises `RowError` for a file that a training on the base model cannot start from
            (`pipeline.bases.starts`); by default only its size is checked.

    Raises:
        ManifestError: the manifest as a whole cannot be used.
        StorageError: the root cannot be written.
    """
    manifest = find_manifest(uri, storage_options)
    images = ImageReader(manifest.folder, storage, InputStore(limits, storage_options, cache))
    reading = Reading(db, "concepts", manifest, COLUMNS)
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        check = superclass if superclass_check is None else _superclass_of_base(superclass_check)
        begun = starts.StartReader(manifest.folder, limits, storage_options, start_check or (lambda _: None))
        train = optional(overrides if train_check is None else _train_of_base(train_check))
        checked = partial(_concept, images=images, begun=begun, superclass_check=check, train=train)
        rows = bounded_map(pool, checked, reading.rows(), 4 * threads)
        insert(db, "concepts", _ROW, rows)
    _mark_duplicates(db)
    cache.save()
    return reading.summary()


def _superclass_of_base(check: Callable[[str], None]) -> Check:
    def checked(column: str, value: object) -> str:
        words: str = superclass(column, value)
        check(words)
        return words

    return checked


def _train_of_base(check: Callable[[str], None]) -> Check:
    def checked(column: str, value: object) -> str | None:
        text = overrides(column, value)
        if text is not None:
            check(text)
        return text

    return checked


def _concept(
    row: Row, images: ImageReader, begun: starts.StartReader, superclass_check: Check, train: Check
) -> dict[str, Any]:
    if row.broken:
        return {"row": row.number, "concept_id": raw_text(row.cells.get("concept_id")), **broken(row.broken)}
    reader = RowReader(row.cells)
    values: dict[str, Any] = {
        "row": row.number,
        "concept_id": reader.read("concept_id", required(identifier)),
        "superclass": reader.read("superclass", required(superclass_check)),
        "train": reader.read("train", train),
    }
    problems = reader.problems
    photos, drawn = (listed(row.cells.get(column), images.exists) for column in ("images", "masks"))
    values["images"], values["masks"] = images.read(photos, drawn, problems)
    values["start"] = begun.read(row.cells.get(starts.COLUMN), problems)
    for column in ("concept_id", "superclass"):
        values[column] = values[column] or raw_text(row.cells.get(column))
    return values | verdict(problems)


def _mark_duplicates(db: PlanDB) -> None:
    """Mark every row after the first of an id; the id is checked first, so this problem is named first."""
    db.connection.execute(
        """
        UPDATE concepts SET
            error_code = ?, error_column = 'concept_id',
            error_message = 'concept_id ''' || concepts.concept_id || ''' is already in row ' || first.row
                || ': give each product its own id' || coalesce('; also: ' || concepts.error_message, '')
        FROM (
            SELECT concept_id, min(row) AS row FROM concepts WHERE concept_id IS NOT NULL
            GROUP BY concept_id HAVING count(*) > 1
        ) AS first
        WHERE concepts.concept_id = first.concept_id AND concepts.row > first.row
            AND (concepts.error_code IS NULL OR concepts.error_code <> ?)
        """,
        [Code.DUPLICATE_ID.value, Code.BAD_ID.value],
    )
