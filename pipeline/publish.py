"""From requests and outcomes to the published tables: every manifest row exactly once, then the word that it is so.

The order makes a crash between any two steps harmless. Finished files are first staged under runs/ by their digest;
an intent created exclusively names them, and from then on the run's tables are fixed: publishing again copies exactly
those bytes to tables/, each created exclusively, and at last puts the intent's own bytes as published.json. Whoever
comes second ends with the same tables.

Every row of a run has `finished_at`: when its work ended, or when it was published if no work was done for it.
`accelerator_s` is what this run spent: zero where an object was reused, also from an equal row of the same run.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout import TABLES, run_path, table_path
from pipeline.parts import read_parts
from pipeline.plandb import PlanDB, extra_columns, quoted
from pipeline.schemas import METADATA, PUBLISHED, RUN_ID, conform
from pipeline.storage import Storage, StorageError

_ROWS_PER_GROUP = (
    65_536  # a lookup of one concept reads one group: larger groups make it slower, smaller ones no faster
)
_GROUPS_PER_FILE = 15  # 983,040 rows
_NAMED_KEYS = 5
_KEYS = {"concepts": "concept_key", "renders": "render_key"}
_SCRATCH = ("outcomes", "results", "placed", "final", "file")


class UnaccountedError(RuntimeError):
    """Some rows have no outcome: the run is not over, and publishing it would lose them."""


@dataclass(frozen=True)
class PublishedFile:
    """One file of a published table; `path` is relative to the root."""

    table: str
    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """What was published: rows by status and by error code per table, and the files; `content` as in `repeat`."""

    run_id: str
    run_date: str
    base: str
    base_digest: str
    statuses: dict[str, dict[str, int]]
    codes: dict[str, dict[str, int]]
    files: tuple[PublishedFile, ...]
    content: str = ""

    def rows(self, table: str) -> int:
        """Rows of one table."""
        return sum(self.statuses[table].values())

    def uris(self, storage: Storage) -> list[str]:
        """Where the files are."""
        return [storage.uri(file.path) for file in self.files]

    def to_json(self) -> bytes:
        """The content of published.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Published":
        """The inverse of `to_json`."""
        values = json.loads(data)
        return cls(**{**values, "files": tuple(PublishedFile(**file) for file in values["files"])})


def publish(
    db: PlanDB,
    storage: Storage,
    *,
    run_id: str,
    run_date: str,
    base: str,
    base_digest: str,
    content: str = "",
    parts: Iterable[str] = (),
    clock: Callable[[], float] = time.time,
    rows_per_group: int = _ROWS_PER_GROUP,
) -> Published:
    """Publish a run whose work is over; a run that is published already is only read back.

    Args:
        db: planned, with the `done` that the run started from.
        storage: where the run's parts lie and the tables go.
        run_id: the run.
        run_date: YYYY-MM-DD, the partition.
        base: name of the base model.
        base_digest: its digest.
        content: digest of what the tables follow from; empty when nobody will ask.
        parts: of the run, that a listing may not show yet.
        clock: seconds since 1970.
        rows_per_group: rows per Parquet row group.

    Raises:
        UnaccountedError: a row has no outcome.
        StorageError: storage failed; call again.
    """
    done = run_path(run_id, "published.json")
    if storage.exists(done):
        return Published.from_json(storage.read(done))
    intent = run_path(run_id, "publish/intent.json")
    if not storage.exists(intent):
        read_parts(db.connection, storage, run_id, parts)
        db.connection.execute(_RESULTS)
        common = {"base": base, "base_digest": base_digest, "now_us": int(clock() * 1e6)}
        statuses, codes, files = {}, {}, []
        for table in TABLES:
            _prepare(db, table, common)
            statuses[table], codes[table] = _counts(db)
            files += _stage(db, storage, table, run_id=run_id, run_date=run_date, rows_per_group=rows_per_group)
        for name in _SCRATCH:
            db.connection.execute(f"DROP TABLE IF EXISTS {name}")
        published = Published(run_id, run_date, base, base_digest, statuses, codes, tuple(files), content)
        storage.create(intent, published.to_json())
    # Read back even by its author: another attempt may have been first.
    decided = storage.read(intent)
    published = Published.from_json(decided)
    for file in published.files:
        _place(storage, run_id, file)
    storage.create(done, decided)
    for file in published.files:
        storage.delete(_staged(run_id, file.sha256))
    return published


def _prepare(db: PlanDB, table: str, common: dict[str, Any]) -> None:
    """Fill the table `final` with the rows of `table`, their `_place` in it, and account for every one of them."""
    connection = db.connection
    concepts, prompts = extra_columns(connection, "concepts"), extra_columns(connection, "prompts")
    select = _CONCEPTS if table == "concepts" else _RENDERS
    columns, joins = "", ""
    if concepts:
        columns += "".join(f", ce.{quoted(name)}" for name in concepts)
        joins += " LEFT JOIN concepts_extra ce ON ce.row = t.extras_row"
    if prompts and table == "renders":
        columns += "".join(f", pe.{quoted(name)}" for name in prompts)
        joins += " LEFT JOIN prompts_extra pe ON pe.row = t.manifest_row"
    connection.execute(_PLACED.format(keyed=_KEYED[table]))
    connection.execute(
        f"CREATE OR REPLACE TABLE final AS SELECT t.* EXCLUDE (extras_row){columns} FROM ({select}) t{joins}", common
    )
    _account(db, table)


def _account(db: PlanDB, table: str) -> None:
    key, connection = _KEYS[table], db.connection
    lost = connection.execute(
        f"SELECT DISTINCT {key} FROM final WHERE status IS NULL ORDER BY 1 LIMIT {_NAMED_KEYS}"
    ).fetchall()
    if lost:
        [(count,)] = connection.execute("SELECT count(*) FROM final WHERE status IS NULL").fetchall()
        raise UnaccountedError(
            f"{count} rows of {table} have no outcome, among them keys {', '.join(name for (name,) in lost)}: "
            "the run is not over; run the same command again to finish it"
        )
    manifest, planned = ("concepts", "concepts") if table == "concepts" else ("prompts", "requests")
    [counts] = connection.execute(f"""
        SELECT (SELECT count(*) FROM final), (SELECT count(*) FROM {planned}),
            (SELECT count(DISTINCT manifest_row) FROM final), (SELECT count(*) FROM {manifest})
    """).fetchall()
    if counts[0] != counts[1] or counts[2] != counts[3]:
        raise UnaccountedError(
            f"{table} would have {counts[0]} rows for {counts[1]} planned and {counts[2]} manifest rows for {counts[3]}"
        )


def _counts(db: PlanDB) -> tuple[dict[str, int], dict[str, int]]:
    statuses = db.connection.execute("SELECT status, count(*) FROM final GROUP BY 1 ORDER BY 1").fetchall()
    codes = db.connection.execute(
        "SELECT error_code, count(*) FROM final WHERE error_code IS NOT NULL GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return dict(statuses), dict(codes)


def _stage(
    db: PlanDB, storage: Storage, table: str, *, run_id: str, run_date: str, rows_per_group: int
) -> list[PublishedFile]:
    """Write the rows of `final` in order to files named by their digest.

    Wide rows are never sorted: their places are known, so one file's rows are picked out, then one row group's.
    """
    connection, key = db.connection, _KEYS[table]
    [(total,)] = connection.execute("SELECT count(*) FROM final").fetchall()
    own = connection.sql("SELECT * EXCLUDE (_place) FROM final LIMIT 0").to_arrow_table().schema
    carried = list(own)[len(PUBLISHED[table]) :]
    schema = pa.schema([*PUBLISHED[table], *carried], metadata=METADATA | {RUN_ID: run_id.encode()})
    sorting = [pq.SortingColumn(schema.get_field_index(name), nulls_first=False) for name in ("concept_id", key)]
    rows_per_file = rows_per_group * _GROUPS_PER_FILE
    files = []
    for first in range(0, total, rows_per_file):
        end = min(first + rows_per_file, total)
        connection.execute(
            "CREATE OR REPLACE TABLE file AS SELECT * FROM final WHERE _place >= ? AND _place < ?", [first, end]
        )
        sink = io.BytesIO()
        with pq.ParquetWriter(
            sink, schema, compression="zstd", write_page_index=True, sorting_columns=sorting
        ) as writer:
            for start in range(first, end, rows_per_group):
                group = connection.sql(
                    "SELECT * EXCLUDE (_place) FROM file WHERE _place >= ? AND _place < ? ORDER BY _place",
                    params=[start, start + rows_per_group],
                ).to_arrow_table()
                writer.write_table(conform(group, schema), rows_per_group)
        data = sink.getvalue()
        path = table_path(table, run_date, run_id, len(files))
        file = PublishedFile(table, path, end - first, len(data), hashlib.sha256(data).hexdigest())
        storage.write(_staged(run_id, file.sha256), data)
        files.append(file)
    return files


def _place(storage: Storage, run_id: str, file: PublishedFile) -> None:
    """Put a staged file where readers look."""
    if storage.size(file.path) == file.bytes:
        return
    data = storage.read(_staged(run_id, file.sha256))
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise StorageError(f"{storage.uri(_staged(run_id, file.sha256))} is damaged: restore it and run again")
    if not storage.create(file.path, data) and storage.read(file.path) != data:
        raise StorageError(f"{storage.uri(file.path)} holds something else: published tables are never overwritten")


def _staged(run_id: str, sha256: str) -> str:
    return run_path(run_id, f"publish/{sha256}.parquet")


# One row per key: what this run made, else what was there before, else how it failed.
_RESULTS = """
CREATE OR REPLACE TABLE results AS
SELECT * FROM outcomes WHERE status = 'ok'
UNION ALL BY NAME
SELECT kind, key, 'ok' AS status, 0 AS attempts, 'reused' AS origin, uri, sha256, bytes, 0.0 AS accelerator_s, loss
FROM done ANTI JOIN (SELECT kind, key FROM outcomes WHERE status = 'ok') USING (kind, key)
UNION ALL BY NAME
SELECT * FROM outcomes ANTI JOIN done USING (kind, key) WHERE status <> 'ok'
"""

# Where each row goes, and whether an equal row comes before it in the manifest.
_PLACED = """
CREATE OR REPLACE TABLE placed AS
SELECT rid, row_number() OVER (PARTITION BY key ORDER BY row, image_index) > 1 AS repeated,
    row_number() OVER (ORDER BY concept_id NULLS LAST, key NULLS LAST, row, image_index) - 1 AS _place
FROM ({keyed})
"""
_KEYED = {
    "concepts": """
        SELECT c.rowid AS rid, c.concept_id, k.concept_key AS key, c.row, 0 AS image_index
        FROM concepts c LEFT JOIN concept_keys k USING (row)
    """,
    "renders": """
        SELECT rowid AS rid, concept_ids[1] AS concept_id, render_key AS key, prompt_row AS row, image_index
        FROM requests
    """,
}

# Of equal rows the first is the one that was worked for.
_RESULT_COLUMNS = """
    CASE WHEN {bad}.code IS NOT NULL THEN 'invalid' ELSE r.status END AS status,
    coalesce({bad}.code, r.code) AS error_code, coalesce({bad}.column_name, r.column_name) AS error_column,
    coalesce({bad}.message, r.message) AS error_message,
    CASE WHEN repeated AND r.status = 'ok' THEN 0 ELSE coalesce(r.attempts, 0) END AS attempts,
    CASE WHEN repeated AND r.status = 'ok' THEN 'reused' ELSE r.origin END AS origin, r.uri, r.sha256, r.bytes,
    CASE WHEN repeated THEN 0.0 ELSE coalesce(r.accelerator_s, 0.0) END AS accelerator_s
"""
_WORK_COLUMNS = """
    r.batch, r.worker,
    make_timestamp(coalesce(CAST(nullif(r.finished_at, 0.0) * 1e6 AS BIGINT), $now_us)) AS finished_at,
    $base AS base, $base_digest AS base_digest
"""

_CONCEPTS = f"""
SELECT c.row AS manifest_row, c.concept_id, k.concept_key, c.superclass,
    CAST(len(c.images) AS INTEGER) AS images, {_RESULT_COLUMNS.format(bad="c")}, r.loss, {_WORK_COLUMNS},
    p._place, c.row AS extras_row
FROM concepts c JOIN placed p ON p.rid = c.rowid
LEFT JOIN concept_keys k ON k.row = c.row
LEFT JOIN results r ON r.kind = 'concept' AND r.key = k.concept_key
"""

_RENDERS = f"""
SELECT q.prompt_row AS manifest_row, q.image_index, q.concept_ids[1] AS concept_id,
    q.concept_ids, q.concept_keys, q.render_key, q.prompt, q.negative_prompt, q.seed, q.bias, q.temperature, q.lock,
    q.width, q.height, q.steps, q.guidance, q.scheduler, {_RESULT_COLUMNS.format(bad="q")}, {_WORK_COLUMNS},
    p._place, k.row AS extras_row
FROM requests q JOIN placed p ON p.rid = q.rowid
LEFT JOIN concept_keys k ON k.concept_id = q.concept_ids[1]
LEFT JOIN results r ON r.kind = 'render' AND r.key = q.render_key
"""
