"""The files of a manifest (a file, a folder or a glob), and their rows in batches: Parquet, CSV and JSON lines.

CSV and JSON lines are read by this package instead of Arrow's readers, which reject a whole file for one bad line. Here
such a line is one bad row. A problem of the manifest as a whole is a `ManifestError`.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.contract.errors import ManifestError
from pipeline.files.content import check_content
from pipeline.files.read_csv import read_csv
from pipeline.files.read_json import read_json_lines
from pipeline.files.read_parquet import read_parquet
from pipeline.files.rows import Batch, Columns, Notice, Notices, check_names
from pipeline.files.walk import Found, find_below, find_glob, kind_of
from pipeline.storage.objects import StorageError, absolute_uri, explain, open_location
from pipeline.storage.scratch import scratch_folder

_EXTENSIONS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_WILD = re.compile(r"[*?\[]")
_READERS = {"parquet": read_parquet, "csv": read_csv, "jsonl": read_json_lines}
_PACKED = (".gz", ".zip", ".zst", ".bz2", ".xz")
_SKIPPED = Notice(
    "hidden, private or temporary name",
    "skipped, as Spark and pyarrow do",
    "rename what belongs to the manifest, or give its own path",
)
_REPEATED = Notice(
    "link",
    "skipped, because it leads to what is read already",
    "copy the file instead if its rows should be read twice",
)
_NO_ROWS = Notice("file", "without any row", "write it again if it should have rows")


@dataclass(frozen=True)
class ManifestFile:
    """One file: its name in the filesystem, its format, and its columns from folders such as `season=SS26`."""

    name: str
    kind: str
    partitions: Mapping[str, str | None]


@dataclass(frozen=True)
class ManifestFiles:
    """A manifest's files, the URI of the folder that photo paths are relative to, and notices of what was skipped."""

    uri: str
    folder: str
    files: tuple[ManifestFile, ...]
    filesystem: Any
    notices: Notices


def find_manifest(uri: str, options: Mapping[str, object] | None = None) -> ManifestFiles:
    """Find the files of a manifest, sorted by name.

    Args:
        uri: path or URI of a file, folder or glob.
        options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        ManifestError: there is no file, a link leads nowhere, a format is unknown, there are several formats, or the
            storage fails.
    """
    try:
        uri = absolute_uri(uri)
        filesystem, path = open_location(uri, options)
    except StorageError as error:
        raise ManifestError(f"the manifest {uri!r} cannot be opened: {error}") from error
    with _errors(uri):
        kind = kind_of(filesystem, path)
        if kind == "directory":
            found, folder, top = find_below(filesystem, path.rstrip("/")), uri, path
        elif kind == "file":
            found, folder, top = Found([path]), uri.rpartition("/")[0], path.rpartition("/")[0]
        else:
            found = find_glob(filesystem, path) if _WILD.search(path) else Found()
            folder, top = (_WILD.split(name, maxsplit=1)[0].rpartition("/")[0] for name in (uri, path))
    notices = Notices(top)
    for notice, names in ((_SKIPPED, found.skipped), (_REPEATED, found.repeated)):
        for name in names:
            notices.add(notice, name)
    if not found.files:
        skipped = f" ({'; '.join(notices.messages('there'))})" if found.skipped else ""
        raise ManifestError(
            f"there is no manifest at {uri}{skipped}: give a .parquet, .csv or .jsonl file, a folder or a glob of them"
        )
    kinds = _formats(uri, found.files)
    files = tuple(
        ManifestFile(name, kind, _partitions(name.removeprefix(top)))
        for name, kind in zip(found.files, kinds, strict=True)
    )
    return ManifestFiles(uri, folder, files, filesystem, notices)


def _partitions(path: str) -> dict[str, str | None]:
    """The columns that partition folders below the manifest's own give, as Hive, Spark and DuckDB write them."""
    pairs = (segment.partition("=") for segment in path.split("/")[:-1])
    return {
        unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, separator, value in pairs
        if separator and name
    }


def _formats(uri: str, names: list[str]) -> list[str]:
    kinds = [_EXTENSIONS.get(Path(name).suffix.lower(), "") for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if not kind:
            packed = name.lower().endswith(_PACKED)
            remedy = "unpack it" if packed else "convert it to .parquet, .csv or .jsonl"
            raise ManifestError(f"{name} has no extension of a manifest: {remedy}, or choose files by a glob")
    if len(set(kinds)) > 1:
        raise ManifestError(f"{uri} holds files of several formats: choose those of one format by a glob")
    return kinds


@contextmanager
def local_copy(manifest: ManifestFiles, name: str) -> Iterator[tuple[Path, str]]:
    """One file as (local path, hex sha256 of its bytes): in place if it is local, else a scratch copy for the block.

    Raises:
        ManifestError: it cannot be read, or a local file changed during the block.
    """
    with scratch_folder("manifest") as scratch:
        local = manifest.uri.startswith("file://")
        path = Path(name) if local else scratch / "manifest"
        with _errors(name):
            if not local:
                manifest.filesystem.get_file(name, str(path))
            before = path.stat()
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield path, digest
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ManifestError(f"{name} changed while it was read: run again when it is complete")


def read_batches(path: Path, file: ManifestFile, columns: Columns, notices: Notices) -> Iterator[Batch]:
    """The rows of one file in batches.

    Args:
        path: local path of its bytes.
        file: its name, format and partition columns.
        columns: what the manifest's columns mean.
        notices: collects what is skipped or assumed.

    Raises:
        ManifestError: the file cannot be read, or a column is missing, unnamed, duplicate or differs from another only
            by case.
    """
    name = file.name
    rows = 0
    try:
        check_content(path, file.kind, name)
        for batch in _READERS[file.kind](path, name, columns, notices):
            rows += len(batch.cells)
            yield _with_partitions(batch, file, columns) if file.partitions else batch
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{name} cannot be read ({error}): write it again") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name} is not UTF-8 ({error}): save it as UTF-8") from error
    if not rows:
        notices.add(_NO_ROWS, name)


def _with_partitions(batch: Batch, file: ManifestFile, columns: Columns) -> Batch:
    extra, kinds = batch.extra, dict(batch.kinds)
    check_names([*extra.column_names, *columns.known, *file.partitions], columns, file.name)
    values = {column: pa.array([value] * len(batch.cells), pa.string()) for column, value in file.partitions.items()}
    kinds.update({column: {"text"} for column in values})
    return replace(
        batch, extra=pa.table(dict(zip(extra.column_names, extra.columns, strict=True)) | values), kinds=kinds
    )


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn every error of a filesystem into a ManifestError; cloud packages raise types of their own."""
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
