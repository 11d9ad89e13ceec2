"""Streams manifests into the plan's database: every row is stored, good or bad.

A good row has its cells and no code. A bad row has the code and the column of its first problem, and the messages of
all its problems. A problem of the manifest as a whole is a `ManifestError`, and nothing starts.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from perfusion_ops.config import SamplingConfig
from pipeline.contract.errors import Code, ManifestError, RowProblem, verdict
from pipeline.contract.messages import storable
from pipeline.contract.schemas import check_extra_columns
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import ManifestFiles, find_manifest, local_copy, read_batches
from pipeline.files.rows import Columns, ListText, Notices
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.manifest import controls, scenes, starts
from pipeline.manifest.cells import (
    Check,
    RowReader,
    identifier,
    negative_prompt,
    optional,
    overrides,
    prompt,
    required,
    scheduler,
    setting,
    superclass,
    text,
    whole,
)
from pipeline.manifest.extra_columns import ExtraColumns
from pipeline.manifest.images import ImageReader, picture_content
from pipeline.manifest.list_cells import split_list
from pipeline.storage.objects import Storage

In = TypeVar("In")
Out = TypeVar("Out")

_CHUNK_ROWS = 2048

_CONCEPTS = Columns(
    known=frozenset({"concept_id", "superclass", "images", "masks", "train", starts.COLUMN}),
    required=frozenset({"concept_id", "superclass", "images"}),
    numbers=frozenset(),
    lists=frozenset({"images", "masks"}),
)
_PROMPT_NUMBERS = frozenset(
    {
        *("seed", "num_images", "bias", "temperature", "width", "height", "steps", "guidance"),
        *("guidance_rescale", "frames", "fps"),
    }
)
_PROMPTS = Columns(
    known=frozenset({"prompt", "where", "negative_prompt", "lock", "scheduler"})
    | _PROMPT_NUMBERS
    | scenes.COLUMNS
    | controls.COLUMNS,
    required=frozenset({"prompt"}),
    numbers=_PROMPT_NUMBERS | scenes.NUMBERS | controls.NUMBERS,
    lists=frozenset(),
)

_PICTURE = pa.struct([("uri", pa.string()), ("sha256", pa.string()), ("reading", pa.string())])
_PICTURES = pa.list_(_PICTURE)
_VERDICT = [("error_code", pa.string()), ("error_column", pa.string()), ("error_message", pa.string())]
_CONCEPT_ROW = pa.schema(
    [
        ("row", pa.int64()),
        ("concept_id", pa.string()),
        ("superclass", pa.string()),
        ("images", _PICTURES),
        ("masks", _PICTURES),
        ("train", pa.string()),
        ("start", pa.struct([("uri", pa.string()), ("sha256", pa.string())])),
        *_VERDICT,
    ]
)
_PROMPT_ROW = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt", pa.string()),
        ("where_expr", pa.string()),
        ("seed", pa.int64()),
        ("num_images", pa.int32()),
        ("negative_prompt", pa.string()),
        ("bias", pa.float64()),
        ("temperature", pa.float64()),
        ("lock", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("scheduler", pa.string()),
        ("scene", _PICTURE),
        ("scene_mask", _PICTURE),
        ("scene_box", pa.list_(pa.float64())),
        ("scene_strength", pa.float64()),
        ("keep", pa.string()),
        ("keep_photo", pa.int32()),
        ("control", pa.string()),
        ("control_picture", _PICTURE),
        ("control_strength", pa.float64()),
        ("guidance_rescale", pa.float64()),
        ("frames", pa.int32()),
        ("fps", pa.int32()),
        *_VERDICT,
    ]
)

_CONCEPT_FILES = ("images", "masks", starts.COLUMN)
_PROMPT_PHOTOS = (*scenes.PHOTOS, *controls.PHOTOS)

# Column of the manifest, column of the table, check; problems are reported in this order.
_PROMPT_CHECKS = (
    ("prompt", "prompt", required(prompt)),
    ("where", "where_expr", optional(text())),
    ("seed", "seed", optional(whole(0, 2**63 - 1))),
    ("num_images", "num_images", optional(whole(1, 1000))),
    ("negative_prompt", "negative_prompt", optional(negative_prompt)),
    ("bias", "bias", optional(setting(SamplingConfig, "bias"))),
    ("temperature", "temperature", optional(setting(SamplingConfig, "temperature"))),
    ("lock", "lock", optional(setting(SamplingConfig, "lock"))),
    ("width", "width", optional(setting(SamplingConfig, "width", multiple=8))),
    ("height", "height", optional(setting(SamplingConfig, "height", multiple=8))),
    ("steps", "steps", optional(setting(SamplingConfig, "steps"))),
    ("guidance", "guidance", optional(setting(SamplingConfig, "guidance"))),
    ("scheduler", "scheduler", optional(scheduler)),
    ("guidance_rescale", "guidance_rescale", optional(setting(SamplingConfig, "guidance_rescale"))),
    ("frames", "frames", optional(setting(SamplingConfig, "frames"))),
    ("fps", "fps", optional(setting(SamplingConfig, "fps"))),
)


@dataclass(frozen=True)
class ManifestSummary:
    """The result of checking a manifest.

    Attributes:
        uri: of the manifest.
        digest: hex sha256 over the sorted digests of its files.
        files: number of files.
        rows: number of rows.
        good: rows without a problem.
        bad: rows with a problem, by code.
        notices: messages about what was skipped or assumed.
        extra: names of the extra columns.
    """

    uri: str
    digest: str
    files: int
    rows: int
    good: int
    bad: Mapping[str, int]
    notices: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """A row as read: its number from 1, its known cells, and why it could not be read, or None."""

    number: int
    cells: Mapping[str, object]
    broken: str | None


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
        start_check: raises `RowError` for a file that a training on the base model cannot start from
            (`pipeline.bases.starts`); by default only its size is checked.

    Raises:
        ManifestError: the manifest as a whole cannot be used.
        StorageError: the root cannot be written.
    """
    manifest = find_manifest(uri, storage_options)
    images = ImageReader(manifest.folder, storage, InputStore(limits, storage_options, cache))
    reading = _Reading(db, "concepts", manifest, _CONCEPTS)
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        check = superclass if superclass_check is None else _superclass_of_base(superclass_check)
        begun = starts.StartReader(manifest.folder, limits, storage_options, start_check or (lambda _: None))
        checked = partial(_concept, images=images, begun=begun, superclass_check=check)
        rows = bounded_map(pool, checked, reading.rows(), 4 * threads)
        _insert(db, "concepts", _CONCEPT_ROW, rows)
    _mark_duplicates(db)
    cache.save()
    return reading.summary()


def load_prompts(
    db: PlanDB,
    uri: str,
    *,
    storage: Storage | None = None,
    limits: InputLimits | None = None,
    cache: InputCache | None = None,
    storage_options: Mapping[str, object] | None = None,
    threads: int = 8,
) -> ManifestSummary:
    """Check a prompts manifest with its scenes, and fill the tables `prompts` and `prompts_extra`.

    Args:
        db: the plan's database.
        uri: see `load_concepts`.
        storage: see `load_concepts`; None if no row has a scene.
        limits: see `load_concepts`.
        cache: see `load_concepts`.
        storage_options: see `load_concepts`.
        threads: scenes inspected at the same time.

    Raises:
        ManifestError, StorageError: see `load_concepts`.
        ValueError: a row has a scene, and `storage` is None.
    """
    manifest = find_manifest(uri, storage_options)
    images = None
    if storage is not None:
        images = ImageReader(manifest.folder, storage, InputStore(limits or InputLimits(), storage_options, cache))
    reading = _Reading(db, "prompts", manifest, _PROMPTS)
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        checked = partial(_prompt, images=images)
        rows = bounded_map(pool, checked, reading.rows(), 4 * threads, only=lambda row: _has_photo(row.cells))
        _insert(db, "prompts", _PROMPT_ROW, rows)
    if cache is not None:
        cache.save()
    return reading.summary()


def bounded_map(
    pool: ThreadPoolExecutor,
    function: Callable[[In], Out],
    items: Iterable[In],
    window: int,
    *,
    only: Callable[[In], bool] = lambda _: True,
) -> Iterator[Out]:
    """Like `pool.map`, but takes at most `window` items ahead of the result that the caller waits for.

    Items that are not among the `only` ones are quick: the caller's own thread takes them.
    """
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            if only(item):
                waiting.append(pool.submit(function, item))
            elif waiting:
                done: Future[Out] = Future()
                done.set_result(function(item))
                waiting.append(done)
            else:
                yield function(item)
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class _Reading:
    """One pass over a manifest: yields its rows once and writes the extra columns to their table."""

    def __init__(self, db: PlanDB, table: str, manifest: ManifestFiles, columns: Columns) -> None:
        self._db = db
        self._table = table
        self._manifest = manifest
        self._columns = columns
        self._extra = ExtraColumns(db.connection, f"{table}_extra")
        self._digests: list[str] = []
        self._rows = 0

    def rows(self) -> Iterator[_Row]:
        """Every row, in the order of the files.

        Raises:
            ManifestError: a file cannot be used, or, at the end, there was no row.
        """
        for file in self._manifest.files:
            with local_copy(self._manifest, file.name) as (path, digest):
                self._digests.append(digest)
                for batch in read_batches(path, file, self._columns, self._manifest.notices):
                    first = self._rows + 1
                    self._rows += len(batch.cells)
                    self._extra.append(first, len(batch.cells), batch.extra, batch.kinds)
                    self._check_extra()
                    for index, cells in enumerate(batch.cells):
                        yield _Row(first + index, cells, batch.broken.get(index))
        if not self._rows:
            raise ManifestError(f"the manifest {self._manifest.uri} holds no rows: add at least one")
        self._extra.finish()

    def summary(self) -> ManifestSummary:
        """Counts, from the table itself."""
        counts = self._db.connection.execute(
            f"SELECT error_code, count(*) FROM {self._table} GROUP BY error_code"
        ).fetchall()
        by_code: dict[str | None, int] = dict(counts)
        good = by_code.pop(None, 0)
        if good + sum(by_code.values()) != self._rows:
            raise AssertionError(f"{self._rows} rows were read and {by_code} with {good} good ones were kept")
        return ManifestSummary(
            uri=self._manifest.uri,
            digest=hashlib.sha256("\n".join(sorted(self._digests)).encode()).hexdigest(),
            files=len(self._manifest.files),
            rows=self._rows,
            good=good,
            bad={code: by_code[code] for code in sorted(filter(None, by_code))},
            notices=(*self._manifest.notices.messages(self._manifest.uri), *self._extra.notices),
            extra=tuple(self._extra.names),
        )

    def _check_extra(self) -> None:
        names = self._extra.names
        check_extra_columns(names, []) if self._table == "concepts" else check_extra_columns([], names)


def _superclass_of_base(check: Callable[[str], None]) -> Check:
    def checked(column: str, value: object) -> str:
        words: str = superclass(column, value)
        check(words)
        return words

    return checked


def _concept(row: _Row, images: ImageReader, begun: starts.StartReader, superclass_check: Check) -> dict[str, Any]:
    if row.broken:
        return {"row": row.number, "concept_id": _raw(row.cells.get("concept_id")), **_broken(row.broken)}
    reader = RowReader(row.cells)
    values: dict[str, Any] = {
        "row": row.number,
        "concept_id": reader.read("concept_id", required(identifier)),
        "superclass": reader.read("superclass", required(superclass_check)),
        "train": reader.read("train", optional(overrides)),
    }
    problems = reader.problems
    photos, drawn = (_listed(row.cells.get(column), images.exists) for column in ("images", "masks"))
    values["images"], values["masks"] = images.read(photos, drawn, problems)
    values["start"] = begun.read(row.cells.get(starts.COLUMN), problems)
    for column in ("concept_id", "superclass"):
        values[column] = values[column] or _raw(row.cells.get(column))
    return values | verdict(problems)


def _listed(cell: object, exists: Callable[[str], bool]) -> object:
    """A cell of photos; text that lists photos is split into a list."""
    if isinstance(cell, ListText):
        return split_list(cell.text, exists, csv=True)
    return split_list(cell, exists, csv=False) if isinstance(cell, str) else cell


def _prompt(row: _Row, images: ImageReader | None) -> dict[str, Any]:
    if row.broken:
        return {"row": row.number, "prompt": _raw(row.cells.get("prompt")), "num_images": 1, **_broken(row.broken)}
    reader = RowReader(row.cells)
    values = {target: reader.read(column, check) for column, target, check in _PROMPT_CHECKS}
    values["num_images"] = values["num_images"] or 1
    if values["seed"] is not None and values["num_images"] > 1:
        reader.problems.append(
            RowProblem(
                Code.SEED_CONFLICT,
                "seed",
                f"the row has seed {values['seed']} and num_images {values['num_images']}: one seed makes one picture; "
                "write one row a seed or leave seed out",
            )
        )
    scene, problems = scenes.read_scene(row.cells, images)
    control, more = controls.read_control(row.cells, images)
    values["prompt"] = values["prompt"] or _raw(row.cells.get("prompt"))
    return {"row": row.number, **values, **scene, **control, **verdict([*reader.problems, *problems, *more])}


def _has_photo(cells: Mapping[str, object]) -> bool:
    """Whether a row of prompts names a photo of its own."""
    return any(cells.get(column) is not None for column in _PROMPT_PHOTOS)


def _broken(message: str) -> dict[str, str | None]:
    return verdict([RowProblem(Code.WRONG_TYPE, None, message)])


def _raw(cell: object) -> str | None:
    """The text of a bad row's cell, which helps to find the row; None if it is no text."""
    return storable(cell) if isinstance(cell, str) else None


def _insert(db: PlanDB, table: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        db.connection.register("row_batch", pa.Table.from_pylist(chunk, schema))
        try:
            db.connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM row_batch")
        finally:
            db.connection.unregister("row_batch")


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


def first_local_picture(manifest: ManifestFiles, *, prompts: bool = False) -> tuple[int, str] | None:
    """Row and address of the first photo or mask that a manifest names on this machine's disk; else None.

    Relative paths count if the manifest itself lies there. Neither photos nor the rest of the rows are checked.

    Args:
        manifest: of concepts.
        prompts: it is one of prompts instead, whose scenes are meant.

    Raises:
        ManifestError: a file cannot be read.
    """
    row = 0
    relative_is_local = manifest.folder.startswith("file://")
    for file in manifest.files:
        with local_copy(manifest, file.name) as (path, _):
            for batch in read_batches(path, file, _PROMPTS if prompts else _CONCEPTS, Notices("")):
                for cells in batch.cells:
                    row += 1
                    for address in _addresses(cells, _PROMPT_PHOTOS if prompts else _CONCEPT_FILES):
                        if address.lower().startswith(("/", "file://")) or (relative_is_local and "://" not in address):
                            return row, address
    return None


def _addresses(cells: Mapping[str, object], columns: Iterable[str]) -> Iterator[str]:
    """The photos and masks of a row that are text, blank ones left out; a struct may hold one as `path`."""
    for column in columns:
        cell = _listed(cells.get(column), lambda _: False)
        for item in cell if isinstance(cell, list) else [cell]:
            content = picture_content(item)
            if isinstance(content, str) and content.strip():
                yield content
