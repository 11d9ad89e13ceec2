"""Staged outcomes: what a run has finished so far, in small Parquet objects that only ever get added.

Each object is created exclusively under the number of the lease that its writer holds, so an attempt that lost its
lease can add but never overwrite. A row counts once its part is written; an object without a row is made again.
Where a key stands in several parts, ok wins over anything else, then the later lease, then the later part.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.layout import is_part, part_path, parts_folder
from pipeline.contract.schemas import PART
from pipeline.contract.units import Outcome
from pipeline.database.parquet import gathered, read_tables
from pipeline.storage.objects import Storage, StorageError

_ROWS_PER_SHARE = 250_000  # keys compared at once, some 30 MB


class PartWriter:
    """Collects outcomes and writes them in parts; one per attempt, used from one thread.

    A failed flush loses nothing: the part is kept and written first at the next flush. `written` are the paths so far.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        lease: int,
        *,
        rows_per_part: int = 50_000,
        seconds_per_part: float = 60.0,
        clock: Callable[[], float],
    ) -> None:
        """Start with part 0 of this lease.

        Args:
            storage: where the run lies.
            run_id: the run.
            lease: number of the lease that the caller holds.
            rows_per_part: a part is written when this many rows wait.
            seconds_per_part: a part is written when the first waiting row is this old.
            clock: seconds that never go back.
        """
        self._storage, self._run_id, self._lease = storage, run_id, lease
        self._rows_per_part, self._seconds_per_part, self._clock = rows_per_part, seconds_per_part, clock
        self._rows: list[Outcome] = []
        self._oldest = 0.0
        self._encoded: bytes | None = None
        self.written: list[str] = []

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Take outcomes and write a part when one is due; call it with none now and then to keep the clock honoured.

        Raises:
            StorageError: as `flush`.
        """
        if not self._rows:
            self._oldest = self._clock()
        self._rows.extend(outcomes)
        waited = self._clock() - self._oldest
        if len(self._rows) >= self._rows_per_part or (self._rows and waited >= self._seconds_per_part):
            self.flush()

    def flush(self) -> None:
        """Write everything that waits; returns when it is in storage.

        Raises:
            StorageError: storage could not be written, or another attempt writes under the same lease.
        """
        self._write_encoded()
        if self._rows:
            self._encoded, self._rows = _encode(self._rows), []
            self._write_encoded()

    def _write_encoded(self) -> None:
        if self._encoded is None:
            return
        path = part_path(self._run_id, self._lease, len(self.written))
        # A lost answer makes our own part look like another's: its bytes tell.
        if not self._storage.create(path, self._encoded) and self._storage.read(path) != self._encoded:
            raise StorageError(
                f"{self._storage.uri(path)} was written by another attempt of run {self._run_id} under the same lease "
                f"({self._lease}): stop one of the two and run the command again"
            )
        self._encoded = None
        self.written.append(path)


def read_parts(connection: duckdb.DuckDBPyConnection, storage: Storage, run_id: str, known: Iterable[str] = ()) -> None:
    """Fill the table `outcomes`: one row per key that the run has finished, columns as in `schemas.PART`.

    Args:
        connection: where.
        storage: where the run lies.
        run_id: the run.
        known: parts that are there, whether a listing that lags behind shows them or not.

    Raises:
        StorageError: a part cannot be read.
    """
    # Zero-padded lease and sequence numbers make the order of paths theirs.
    listed = (path for path, _ in storage.list(parts_folder(run_id)) if is_part(path))
    paths = sorted({*listed, *known})
    age = {path: number for number, path in enumerate(paths)}
    aged = (
        rows.append_column("age", pa.repeat(age[path], len(rows))) for path, rows in read_tables(storage, paths, PART)
    )
    connection.register("rows_read", PART.append(pa.field("age", pa.int32())).empty_table())
    connection.execute("CREATE OR REPLACE TABLE outcomes AS FROM rows_read")
    for rows in gathered(aged):
        connection.register("rows_read", rows)
        connection.execute("INSERT INTO outcomes FROM rows_read")
    connection.unregister("rows_read")
    _keep_the_best(connection)
    connection.execute("ALTER TABLE outcomes DROP COLUMN age")


def _keep_the_best(connection: duckdb.DuckDBPyConnection) -> None:
    """Delete all rows of a key but one. Only numbers are compared, one bounded share of the keys at a time."""
    connection.execute(_RANKED)
    [(rows,)] = connection.execute("SELECT count(*) FROM ranked").fetchall()
    shares = rows // _ROWS_PER_SHARE + 1
    for share in range(shares):
        connection.execute(_DELETE_OTHERS.format(some=f"(FROM ranked WHERE hash(number) % {shares} = {share})"))
    connection.execute("DROP TABLE ranked")


def _encode(outcomes: Sequence[Outcome]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema=PART)
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


_RANKED = """
CREATE OR REPLACE TEMP TABLE ranked AS
SELECT md5_number(kind || ' ' || key) AS number, CASE status WHEN 'ok' THEN 1000000000 ELSE 0 END + age AS rank,
    rowid AS nth
FROM outcomes
"""

_DELETE_OTHERS = """
DELETE FROM outcomes WHERE rowid IN (
    SELECT nth FROM (
        SELECT nth, row_number() OVER (PARTITION BY number ORDER BY rank DESC, nth) AS place
        FROM {some} WHERE number IN (SELECT number FROM {some} GROUP BY number HAVING count(*) > 1)
    ) WHERE place > 1
)
"""
