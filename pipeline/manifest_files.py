"""The files of a manifest, and their rows in batches: Parquet, CSV and JSON lines, a file, a folder or a glob.

Rows are streamed: memory does not grow with a file. CSV and JSON lines are read here, row by row, rather than by
Arrow's readers, because those give up a whole file for one bad line; here that line is one bad row. Whatever concerns
the manifest as a whole is a `ManifestError`.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cells import show, storable
from pipeline.errors import ManifestError
from pipeline.scratch import scratch_folder
from pipeline.storage import Storage, StorageError, absolute_uri, explain, open_filesystem

_EXTENSIONS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_BATCH_ROWS = 4096
_BATCH_BYTES = 16 * 2**20
_MAX_LINE = 16 * 2**20  # characters of one JSON line
_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """What a manifest's columns mean here: names known, those of them that must be there, numbers and lists in CSV."""

    known: frozenset[str]
    required: frozenset[str]
    numbers: frozenset[str]
    lists: frozenset[str]


@dataclass(frozen=True)
class Batch:
    """Some rows: known cells by name, sentences for rows that could not be read, and the other columns.

    `kinds` names the kinds of JSON value met in each text column of `extra` ("text" for CSV); columns of Parquet are
    not in it, as they have types of their own.
    """

    cells: list[dict[str, object]]
    broken: dict[int, str]
    extra: pa.Table
    kinds: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestFile:
    """One file: its name in the file system, its format, and the columns that folders named `season=SS26` give it."""

    name: str
    kind: str
    partitions: Mapping[str, str | None]


@dataclass(frozen=True)
class ManifestFiles:
    """A manifest's files, and the URI of the folder that picture paths are relative to."""

    uri: str
    folder: str
    files: tuple[ManifestFile, ...]
    filesystem: Any


def find_manifest(uri: str, options: Mapping[str, object] | None = None) -> ManifestFiles:
    """The files that `uri` (a path or URI of a file, folder or glob) stands for, sorted by name.

    Raises:
        ManifestError: nothing there, a format that is not read, several formats, or a storage that refuses.
    """
    try:
        uri = absolute_uri(uri)
        filesystem: Any = open_filesystem(uri, options)
    except StorageError as error:
        raise ManifestError(f"the manifest {uri!r} cannot be opened: {error}") from error
    with _sentences(uri):
        path = str(filesystem._strip_protocol(uri))
        kind = _kind_of(filesystem, path)
        if kind == "directory":
            # Storage lists or fails; the file systems' own search leaves out folders that they may not read.
            names, folder = [f"{path}/{name}" for name, _ in Storage(uri, options).list()], uri
        elif kind == "file":
            names, folder = [path], uri.rpartition("/")[0]
        else:
            names = [str(name) for name in filesystem.glob(path)] if re.search(r"[*?\[]", path) else []
            names = [name for name in names if _kind_of(filesystem, name) == "file"]
            folder = re.split(r"[*?\[]", uri, maxsplit=1)[0].rpartition("/")[0]
    single = kind == "file"
    names = sorted(name for name in names if single or not name.rpartition("/")[2].startswith((".", "_")))
    if not names:
        raise ManifestError(
            f"there is no manifest at {uri}: give a .parquet, .csv or .jsonl file, a folder or a glob of them"
        )
    top = str(filesystem._strip_protocol(folder))
    kinds = _formats(uri, names)
    files = tuple(
        ManifestFile(name, kind, _partitions(name.removeprefix(top))) for name, kind in zip(names, kinds, strict=True)
    )
    return ManifestFiles(uri, folder, files, filesystem)


def _partitions(path: str) -> dict[str, str | None]:
    """What the folders in a path below the manifest's own say, as Hive, Spark and DuckDB write it."""
    pairs = (segment.partition("=") for segment in path.split("/")[:-1])
    return {
        unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, separator, value in pairs
        if separator and name
    }


def _kind_of(filesystem: Any, path: str) -> str | None:
    """What is there: file, directory or None; `exists` would call a refusal nothing."""
    try:
        return str(filesystem.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def _formats(uri: str, names: list[str]) -> list[str]:
    kinds = [_EXTENSIONS.get(Path(name).suffix.lower(), "") for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if not kind:
            raise ManifestError(
                f"{name} is no manifest by its name: convert it to .parquet, .csv or .jsonl, or choose files by a glob"
            )
    if len(set(kinds)) > 1:
        raise ManifestError(f"{uri} holds files of several formats: choose those of one format by a glob")
    return kinds


@contextmanager
def local_copy(manifest: ManifestFiles, name: str) -> Iterator[tuple[Path, str]]:
    """One file as (local path, sha256 of its bytes): in place when it is local, else on scratch until the end.

    Raises:
        ManifestError: it cannot be read, or a local file changed meanwhile.
    """
    with scratch_folder("manifest") as scratch:
        local = manifest.uri.startswith("file://")
        path = Path(name) if local else scratch / "manifest"
        with _sentences(name):
            if not local:
                manifest.filesystem.get_file(name, str(path))
            before = path.stat()
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield path, digest
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ManifestError(f"{name} changed while it was read: run again when it is complete")


def read_batches(path: Path, file: ManifestFile, columns: Columns) -> Iterator[Batch]:
    """The rows of one file, whose bytes lie at `path`, in batches.

    Raises:
        ManifestError: an unreadable file, or columns missing, unnamed, twice there or differing by case only.
    """
    name = file.name
    read = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines}[file.kind]
    try:
        for batch in read(path, name, columns):
            yield _with_partitions(batch, file, columns) if file.partitions else batch
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{name} cannot be read ({error}): write it again") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name} is not UTF-8 ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise ManifestError(f"{name} cannot be read as CSV ({error}): look for a quote that is not closed") from error


def _with_partitions(batch: Batch, file: ManifestFile, columns: Columns) -> Batch:
    extra, kinds = batch.extra, dict(batch.kinds)
    check_names([*extra.column_names, *columns.known, *file.partitions], columns, file.name)
    values = {column: pa.array([value] * len(batch.cells), pa.string()) for column, value in file.partitions.items()}
    kinds.update({column: {"text"} for column in values})
    return replace(
        batch, extra=pa.table(dict(zip(extra.column_names, extra.columns, strict=True)) | values), kinds=kinds
    )


def check_names(names: list[str], columns: Columns, name: str) -> list[str]:
    """The extra ones of a file's column names.

    Raises:
        ManifestError: a name that is empty, twice there or equal to another but for its case.
    """
    seen = {known.lower(): known for known in columns.known}
    extra = []
    for number, column in enumerate(names, 1):
        if not column.strip() or storable(column) != column or any(ord(character) < 32 for character in column):
            raise ManifestError(f"column {number} of {name} has the name {column!r}: give it a plain name")
        if names.count(column) > 1:
            raise ManifestError(f"column {column!r} stands in {name} more than once: rename or remove one")
        if seen.setdefault(column.lower(), column) != column:
            raise ManifestError(
                f"column {column!r} of {name} differs from {seen[column.lower()]!r} only by case: rename it"
            )
        if column not in columns.known:
            extra.append(column)
    return extra


def check_required(names: list[str], columns: Columns, name: str) -> None:
    """Refuse a file that lacks a column.

    Raises:
        ManifestError: naming what is missing and what is there.
    """
    if missing := sorted(columns.required.difference(names)):
        raise ManifestError(
            f"{name} has no column {', '.join(map(repr, missing))} (it has {', '.join(map(repr, names[:20]))}): "
            "add it or rename one"
        )


def _parquet(path: Path, name: str, columns: Columns) -> Iterator[Batch]:
    with pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=2**20) as file:
        names = list(file.schema_arrow.names)
        extra = check_names(names, columns, name)
        check_required(names, columns, name)
        total = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        row_bytes = max(1, total // max(1, file.metadata.num_rows))
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        for batch in file.iter_batches(batch_size=rows, use_threads=False):
            known = {column: _values(batch.column(column)) for column in names if column in columns.known}
            cells = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
            yield Batch(cells, {}, pa.Table.from_batches([batch]).select(extra))


def _values(column: pa.Array) -> list[object]:
    """Cells as Python values; text that is not UTF-8 stays bytes, which no check of text accepts."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pa.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _csv(path: Path, name: str, columns: Columns) -> Iterator[Batch]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, None)
        if names is None:
            raise ManifestError(f"{name} is empty: write a header line and rows")
        extra = check_names(names, columns, name)
        check_required(names, columns, name)
        kinds = {column: {"text"} for column in extra}
        lines = ((reader.line_num, row) for row in reader if row)
        while chunk := list(islice(lines, _BATCH_ROWS)):
            cells: list[dict[str, object]] = []
            broken: dict[int, str] = {}
            for index, (line, row) in enumerate(chunk):
                if len(row) != len(names):
                    broken[index] = (
                        f"line {line} of {name} has {len(row)} cells, the header {len(names)}: quote cells with commas"
                    )
                    row = row[: len(names)]  # noqa: PLW2901 (what is there is kept beside the message)
                cells.append({column: cell or None for column, cell in zip(names, row, strict=False)})
            table = pa.table({column: pa.array([row.get(column) for row in cells], pa.string()) for column in extra})
            known = [
                {column: _from_text(column, cell, columns) for column, cell in row.items() if column in columns.known}
                for row in cells
            ]
            yield Batch(known, broken, table, kinds)


def _from_text(column: str, cell: object, columns: Columns) -> object:
    """A CSV cell as the value it spells; what spells none stays text for the check to refuse."""
    if not isinstance(cell, str):
        return cell
    if column in columns.lists:
        return [item.strip() for item in cell.split(";")]
    if column in columns.numbers:
        if _INTEGER.fullmatch(cell.strip()):
            return int(cell) if len(cell) < 4000 else cell
        if _REAL.fullmatch(cell.strip()):
            return float(cell)
    return cell


def _json_lines(path: Path, name: str, columns: Columns) -> Iterator[Batch]:
    met: dict[str, None] = {}
    with path.open(encoding="utf-8-sig") as file:
        lines = _lines(file, name)
        while chunk := list(islice(lines, _BATCH_ROWS)):
            rows: list[dict[str, object]] = []
            broken: dict[int, str] = {}
            for index, (number, line) in enumerate(chunk):
                row = _json_object(line)
                if row is None:
                    broken[index] = f"line {number} of {name} is no JSON object ({show(line[:60])}): correct it"
                rows.append(row or {})
            met.update(dict.fromkeys(column for row in rows for column in row))
            extra = check_names(list(met), columns, name)
            kinds = {column: {_kind(row[column]) for row in rows if row.get(column) is not None} for column in extra}
            text = {column: pa.array([_as_text(row.get(column)) for row in rows], pa.string()) for column in extra}
            known = [{column: cell for column, cell in row.items() if column in columns.known} for row in rows]
            yield Batch(known, broken, pa.table(text), kinds)
    check_required(list(met), columns, name)


def _lines(file: TextIO, name: str) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise ManifestError(f"line {number} of {name} is longer than {_MAX_LINE:,} characters: one object a line")
        if line.strip():
            yield number, line


def _json_object(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _kind(value: object) -> str:
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value), "json")


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Turn whatever a file system raises into a ManifestError; cloud packages raise types of their own."""
    try:
        yield
    except ManifestError:
        raise
    except FileNotFoundError as error:
        raise ManifestError(f"there is no manifest at {name}: correct the address") from error
    except StorageError as error:
        raise ManifestError(f"the manifest {name} cannot be read: {error}") from error
    except Exception as error:
        raise ManifestError(explain(error, "read the manifest", name)) from error
