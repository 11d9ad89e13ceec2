"""Publishes the tables of a run: every manifest row exactly once, then the commit marker.

A crash between any two of these steps is harmless:

1. The files of the tables are staged in the run's folder, each named by the digest of its bytes.
2. An intent names them. It is created exclusively; from then on the tables of the run are fixed.
3. The staged bytes are copied to tables/; each file is created exclusively.
4. The bytes of the intent become published.json, the commit marker. Then all staged files are deleted.

Two drivers that publish the same run end with the same tables.
"""

import io
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perfusion_ops.errors import PerfusionError
from pipeline.contract.keys import digest
from pipeline.contract.kinds import RESULTS, ResultTable
from pipeline.contract.layout import staged_table_path, staged_tables_folder, table_path
from pipeline.contract.schemas import METADATA, PUBLISHED, RUN_ID, conform
from pipeline.database.memory import retried
from pipeline.database.plandb import PlanDB, Stage
from pipeline.runs.parts import read_parts
from pipeline.runs.record import Published, PublishedFile, RunRecord
from pipeline.storage.objects import Storage, StorageError
from pipeline.tables.columns import agree
from pipeline.tables.rows import table_rows

_ROWS_PER_GROUP = (
    65_536  # a lookup of one concept reads one group: larger groups make it slower, smaller ones no faster
)
_GROUPS_PER_FILE = 16  # 1,048,576 rows: a run of a million appears at once
_FILE_BYTES = 2**28  # a file is in memory until it is whole
_NAMED_KEYS = 5


class UnaccountedError(PerfusionError, RuntimeError):
    """Some rows have no outcome: the run is not finished, and publishing it would lose them."""


def publish(
    db: PlanDB,
    storage: Storage,
    *,
    run_id: str,
    run_date: str,
    base: str,
    base_digest: str,
    drawing: tuple[str, str] | None = None,
    content: str = "",
    parts: Iterable[str] = (),
    clock: Callable[[], float] = time.time,
    rows_per_group: int = _ROWS_PER_GROUP,
) -> Published:
    """Publish a run whose work is over; a run that is published already is only read back.

    Args:
        db: with `requests` filled, and `done` as it was when the work began.
        storage: the root of the run.
        run_id: the run.
        run_date: YYYY-MM-DD, the partition.
        base: name of the base model.
        base_digest: its digest.
        drawing: name and digest of the base model that rendered, if it is another one.
        content: see `pipeline.plan.repeat.content_digest`.
        parts: paths of parts that a stale listing may lack.
        clock: seconds since 1970.
        rows_per_group: rows per Parquet row group.

    Raises:
        UnaccountedError: a row has no outcome.
        StorageError: storage failed; call again.
    """
    record = RunRecord(storage, run_id)
    if record.is_published():
        _remove_staged(storage, run_id)
        return record.published()
    if not record.is_decided():
        db.require(Stage.REQUESTS, Stage.DONE)
        read_parts(db.connection, storage, run_id, parts)
        common = {"now_us": int(clock() * 1e6)}
        statuses, codes, files = {}, {}, []
        for table in RESULTS:
            drawn = drawing if drawing and table.name == "renders" else (base, base_digest)
            values = {**common, "base": drawn[0], "base_digest": drawn[1]}
            account, staged = _stage(
                db, storage, table, values, run_id=run_id, run_date=run_date, rows_per_group=rows_per_group
            )
            statuses[table.name] = dict(sorted(account.statuses.items()))
            codes[table.name] = dict(sorted(account.codes.items()))
            files += staged
        db.connection.execute("DROP TABLE outcomes; DROP TABLE repeats")
        record.decide(
            Published(
                run_id=run_id,
                run_date=run_date,
                base=base,
                base_digest=base_digest,
                statuses=statuses,
                codes=codes,
                files=tuple(files),
                content=content,
            )
        )
    # Read back even by its author: another driver may have been first.
    published = record.decided()
    for file in published.files:
        _place(storage, run_id, file)
    record.commit()
    _remove_staged(storage, run_id)
    return published


def _remove_staged(storage: Storage, run_id: str) -> None:
    """Delete the staged tables of a published run, also those of attempts that were refused or broke off."""
    for path, _ in list(storage.list(staged_tables_folder(run_id))):
        if path.endswith(".parquet"):
            storage.delete(path)


@dataclass
class _Account:
    """Counts of the rows that go into a table; `seen[i]` is whether manifest row i, counted from 1, has a row."""

    table: ResultTable
    planned: int
    manifest: int
    seen: np.ndarray
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    lost_keys: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, db: PlanDB, table: ResultTable) -> "_Account":
        [(last, manifest_rows, planned_rows)] = db.connection.execute(
            f"SELECT max(row), count(*), (SELECT count(*) FROM {table.planned}) FROM {table.manifest}"
        ).fetchall()
        return cls(table, planned_rows, manifest_rows, np.zeros((last or 0) + 1, dtype=bool))

    def add(self, rows: pa.Table) -> None:
        self.rows += len(rows)
        self.seen[rows["manifest_row"].to_numpy()] = True
        self.statuses.update(_counted(rows["status"]))
        self.codes.update(_counted(rows["error_code"]))
        if rows["status"].null_count:
            lost = rows.filter(rows["status"].is_null())
            self.lost += len(lost)
            self.lost_keys = sorted({*self.lost_keys, *lost[self.table.key_column].to_pylist()})[:_NAMED_KEYS]

    def check(self) -> None:
        """Raise `UnaccountedError` unless each planned row came with an outcome, and each manifest row has a row."""
        if self.lost:
            raise UnaccountedError(
                f"{self.lost} rows of {self.table.name} have no outcome, among them keys {', '.join(self.lost_keys)}: "
                "the run is not finished; run the same command again to finish it"
            )
        found = int(self.seen.sum())
        if self.rows != self.planned or found != self.manifest:
            raise UnaccountedError(
                f"{self.table.name} would have {self.rows} rows for {self.planned} planned and "
                f"{found} manifest rows for {self.manifest}"
            )


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    counts = values.drop_null().value_counts()
    return {each["values"]: each["counts"] for each in counts.to_pylist()}


@retried
def _stage(
    db: PlanDB,
    storage: Storage,
    table: ResultTable,
    common: dict[str, Any],
    *,
    run_id: str,
    run_date: str,
    rows_per_group: int,
) -> tuple[_Account, list[PublishedFile]]:
    """Write the rows of a table in order to files named by their digest, and count each row."""
    account = _Account.open(db, table)
    carried = agree(db, storage, table)
    groups = table_rows(db, table, common, rows_per_group, carried)
    schema = pa.schema(
        [*PUBLISHED[table.name], *(each.field for each in carried)], metadata=METADATA | {RUN_ID: run_id.encode()}
    )
    sorting = [
        pq.SortingColumn(schema.get_field_index(name), nulls_first=False) for name in ("concept_id", table.key_column)
    ]
    files = []
    for first in groups:
        rows, sink = 0, io.BytesIO()
        with pq.ParquetWriter(
            sink, schema, compression="zstd", write_page_index=True, sorting_columns=sorting
        ) as writer:
            for group in chain([first], groups):
                account.add(group)
                writer.write_table(conform(group, schema), rows_per_group)
                rows += len(group)
                if rows >= rows_per_group * _GROUPS_PER_FILE or sink.tell() >= _FILE_BYTES:
                    break
        data = sink.getvalue()
        path = table_path(table.name, run_date, run_id, len(files))
        file = PublishedFile(table=table.name, path=path, rows=rows, bytes=len(data), sha256=digest(data))
        storage.write(staged_table_path(run_id, file.sha256), data)
        files.append(file)
    account.check()
    return account, files


def _place(storage: Storage, run_id: str, file: PublishedFile) -> None:
    """Copy a staged file to where readers look; no-op if the file is there, and then its staged copy is not needed."""
    if storage.size(file.path) == file.bytes and digest(storage.read(file.path)) == file.sha256:
        return
    staged = staged_table_path(run_id, file.sha256)
    data = storage.read(staged)
    if digest(data) != file.sha256:
        raise StorageError(f"{storage.uri(staged)} is damaged: restore it and run the same command again")
    if not storage.create(file.path, data) and storage.read(file.path) != data:
        raise StorageError(
            f"{storage.uri(file.path)} exists with other content, and published tables are never overwritten: "
            "move it out of the tables and run the same command again"
        )
