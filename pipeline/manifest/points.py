"""Reads a file of points: sampling settings of single concepts, as `perfusion sweep` chooses them.

It is a settings file and no manifest of work: if one of its rows is wrong, nothing starts.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from perfusion_ops.config import SamplingConfig
from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import find_manifest, local_copy, read_batches
from pipeline.files.rows import Columns
from pipeline.manifest.cells import RowReader, identifier, optional, required, setting

DIALS = ("guidance", "strength", "bias", "temperature", "lock")
EVIDENCE = ("text_similarity", "image_similarity", "renders", "select", "scorer", "run_id")
"""Columns that say how a point was chosen; they change nothing."""

_COLUMNS = Columns(
    known=frozenset({"concept_id", *DIALS, *EVIDENCE}),
    required=frozenset({"concept_id"}),
    numbers=frozenset({*DIALS} - {"lock"}),
    lists=frozenset(),
)
_ROW = pa.schema(
    [("concept_id", pa.string()), *((name, pa.string() if name == "lock" else pa.float64()) for name in DIALS)]
)


@dataclass(frozen=True)
class PointsSummary:
    """What was read: hex sha256 over the sorted digests of the files, number of concepts, and notices."""

    digest: str
    rows: int
    notices: tuple[str, ...] = ()


def load_points(db: PlanDB, uri: str, *, storage_options: Mapping[str, object] | None = None) -> PointsSummary:
    """Fill the table `points` from a file of points.

    Args:
        db: with `concepts` filled.
        uri: path or URI of a file, folder or glob of Parquet, CSV or JSON lines. Columns: `concept_id`, any of
            `DIALS` (a null cell leaves the setting to the spec), and any of `EVIDENCE`, which are not read.
        storage_options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        ManifestError: the file cannot be read, has a column of another name, a cell out of range, or a concept twice.
    """
    files = find_manifest(uri, storage_options)
    digests: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    rows = 0
    for file in files.files:
        with local_copy(files, file.name) as (path, digest):
            digests.append(digest)
            for batch in read_batches(path, file, _COLUMNS, files.notices):
                if others := batch.extra.column_names:
                    raise ManifestError(
                        f"{file.name} has the column {others[0]!r}: a file of points has concept_id and any of "
                        f"{', '.join(DIALS)}; remove or rename it"
                    )
                for index, cells in enumerate(batch.cells):
                    rows += 1
                    where = f"row {rows} of {uri}"
                    if index in batch.broken:
                        raise ManifestError(f"{where} cannot be read: {batch.broken[index]}")
                    point = _checked(cells, where)
                    if point["concept_id"] in found:
                        raise ManifestError(f"{where} is a second point of {point['concept_id']!r}: remove one of them")
                    found[point["concept_id"]] = point
    if not found:
        raise ManifestError(f"{uri} holds no points: add at least one row, or leave `points` out of the spec")
    db.connection.register("points_read", pa.Table.from_pylist(list(found.values()), _ROW))
    db.connection.execute("DELETE FROM points")
    db.connection.execute("INSERT INTO points BY NAME SELECT * FROM points_read")
    db.connection.unregister("points_read")
    digest = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    return PointsSummary(digest, rows, (*files.notices.messages(uri), *_unused(db, uri)))


def _checked(cells: Mapping[str, object], where: str) -> dict[str, Any]:
    reader = RowReader(cells)
    point = {"concept_id": reader.read("concept_id", required(identifier))}
    point |= {name: reader.read(name, optional(setting(SamplingConfig, name))) for name in DIALS}
    if reader.problems:
        raise ManifestError(f"{where}: {'; also: '.join(each.error_message for each in reader.problems)}")
    return point


def _unused(db: PlanDB, uri: str) -> tuple[str, ...]:
    """A notice about points of concepts that the manifest does not have."""
    [(count, example)] = db.connection.execute(
        "SELECT count(*), min(concept_id) FROM points ANTI JOIN concepts USING (concept_id)"
    ).fetchall()
    if not count:
        return ()
    many = f"{count:,} points are of concepts" if count > 1 else "1 point is of a concept"
    return (f"{uri}: {many} that the concepts manifest does not have, such as {example!r}: they change nothing",)
