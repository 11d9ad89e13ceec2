"""Detects no-op reruns: a finished run whose inputs and objects are unchanged.

The tables of a run follow from its manifests, its settings, and the key or the error of every concepts row. A finished
run is the answer to the same command if all of these are equal, no row of it failed, and all of its files and objects
exist with the recorded sizes. The check costs one listing and three columns of the run's tables; no render is planned
and nothing is written.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.contract.kinds import CONCEPTS, RENDERS, Counts, PerKind, PlanCounts, ResultTable
from pipeline.contract.schemas import METADATA
from pipeline.database.parquet import gathered, read_tables
from pipeline.database.plandb import PlanDB, Stage
from pipeline.runs.record import Published, RunRecord
from pipeline.storage.objects import Storage

_ROWS_PER_READ = 10_000
_CONCEPTS = """
SELECT c.row, k.concept_key, c.error_code, c.error_column, c.error_message
FROM concepts c LEFT JOIN concept_keys k USING (row) ORDER BY c.row
"""
_SCENES = """
SELECT row, scene, scene_mask, error_code, error_column, error_message FROM prompts
WHERE scene IS NOT NULL OR scene_mask IS NOT NULL OR contains(error_message, 'scene') ORDER BY row
"""
_CONTROLS = """
SELECT row, control_picture, error_code, error_column, error_message FROM prompts
WHERE control_picture IS NOT NULL OR contains(error_message, 'control') ORDER BY row
"""
# The key of a concept does not depend on the order of its photos.
_KEPT = """
SELECT row, images, masks FROM concepts WHERE EXISTS (FROM prompts WHERE keep IS NOT NULL) ORDER BY row
"""


@dataclass(frozen=True)
class Repeat:
    """A finished run that is the answer, and the counts of its plan: nothing is to be done."""

    published: Published
    work: PlanCounts


def content_digest(db: PlanDB, digest: str) -> str:
    """Hex sha256 of everything that the tables of a run follow from.

    Args:
        db: with `concepts` and `concept_keys` filled.
        digest: of manifests, base model and settings.

    Photos of prompts count if a row names one, so that manifests without them keep their digest.
    """
    db.require(Stage.CONCEPT_KEYS)
    content = hashlib.sha256(repr((digest, sorted(METADATA.items()))).encode())
    for sql in (_CONCEPTS, _SCENES, _CONTROLS, _KEPT):
        rows = db.connection.execute(sql)
        while page := rows.fetchmany(_ROWS_PER_READ):
            content.update(repr(page).encode())
    return content.hexdigest()


def find_repeat(db: PlanDB, storage: Storage, run_ids: Sequence[str], content: str) -> Repeat | None:
    """The newest of some finished runs that has this content and nothing to do again; None if there is none.

    Args:
        db: with `objects` filled.
        storage: the root of the runs.
        run_ids: finished runs, newest first.
        content: see `content_digest`.

    Raises:
        StorageError: storage cannot be read.
    """
    db.require(Stage.OBJECTS)
    for run_id in run_ids:
        published = RunRecord(storage, run_id).published()
        if published.content != content or any(storage.size(file.path) != file.bytes for file in published.files):
            continue
        concepts, renders = (_reused(db, storage, published, table) for table in (CONCEPTS, RENDERS))
        if concepts and renders:
            return Repeat(published, PerKind(concepts, renders))
    return None


def _reused(db: PlanDB, storage: Storage, published: Published, table: ResultTable) -> Counts | None:
    """Counts of a table; None if a row failed, or if its object is missing or has another size."""
    key = table.key_column
    schema = pa.schema([(key, pa.string()), ("status", pa.string()), ("bytes", pa.int64())])
    connection = db.connection
    connection.execute("CREATE OR REPLACE TEMP TABLE recorded (key VARCHAR, bytes BIGINT)")
    paths = [file.path for file in published.files if file.table == table.name]
    for rows in gathered(rows for _, rows in read_tables(storage, paths, schema)):
        connection.register("rows_read", rows)
        # A row without a key is invalid, and stays so until the manifest changes.
        size = "CASE status WHEN 'ok' THEN bytes END"
        connection.execute(f"INSERT INTO recorded SELECT {key}, {size} FROM rows_read WHERE {key} IS NOT NULL")
        connection.unregister("rows_read")
    [(rows, keys, missing)] = connection.execute(
        "SELECT count(*), count(DISTINCT md5_number(r.key)), count(*) FILTER (o.key IS NULL) "
        "FROM recorded r LEFT JOIN (FROM objects WHERE kind = ?) o USING (key, bytes)",
        [table.kind],
    ).fetchall()
    connection.execute("DROP TABLE recorded")
    if missing:
        return None
    total = published.rows(table.name)
    return Counts(rows=total, invalid=total - rows, reused=rows, to_do=0, keys=keys, keys_to_do=0)
