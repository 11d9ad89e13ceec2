"""One pass over a manifest: its rows are checked in threads and stored in the plan's database, good or bad.

A good row has its cells and no code. A bad row has the code and the column of its first problem, and the messages of
all its problems. A problem of the manifest as a whole is a `ManifestError`, and nothing starts.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.contract.errors import Code, ManifestError, RowProblem, verdict
from pipeline.contract.messages import storable
from pipeline.contract.schemas import check_extra_columns
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import ManifestFiles, local_copy, read_batches
from pipeline.files.rows import Columns
from pipeline.manifest.extra_columns import ExtraColumns

In = TypeVar("In")
Out = TypeVar("Out")

PICTURE = pa.struct([("uri", pa.string()), ("sha256", pa.string()), ("reading", pa.string())])
VERDICT = (("error_code", pa.string()), ("error_column", pa.string()), ("error_message", pa.string()))

_CHUNK_ROWS = 2048


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
class Row:
    """A row as read: its number from 1, its known cells, and why it could not be read, or None."""

    number: int
    cells: Mapping[str, object]
    broken: str | None


class Reading:
    """One pass over a manifest: yields its rows once and writes the extra columns to their table."""

    def __init__(self, db: PlanDB, table: str, manifest: ManifestFiles, columns: Columns) -> None:
        self._db = db
        self._table = table
        self._manifest = manifest
        self._columns = columns
        self._extra = ExtraColumns(db.connection, f"{table}_extra")
        self._digests: list[str] = []
        self._rows = 0

    def rows(self) -> Iterator[Row]:
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
                        yield Row(first + index, cells, batch.broken.get(index))
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


def insert(db: PlanDB, table: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """Store checked rows, a bounded number at a time."""
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        db.connection.register("row_batch", pa.Table.from_pylist(chunk, schema))
        try:
            db.connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM row_batch")
        finally:
            db.connection.unregister("row_batch")


def broken(message: str) -> dict[str, str | None]:
    """The verdict of a row that could not be read."""
    return verdict([RowProblem(Code.WRONG_TYPE, None, message)])


def raw_text(cell: object) -> str | None:
    """The text of a bad row's cell, which helps to find the row; None if it is no text."""
    return storable(cell) if isinstance(cell, str) else None
