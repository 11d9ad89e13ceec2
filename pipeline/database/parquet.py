"""Rows of Parquet objects, read in batches of bounded size."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.schemas import conform
from pipeline.storage.objects import Storage, StorageError

_ROWS_PER_READ = 65_536
_ROWS_PER_INSERT = 400_000


def read_tables(storage: Storage, paths: Sequence[str], schema: pa.Schema) -> Iterator[tuple[str, pa.Table]]:
    """The rows of Parquet objects, some tens of thousands at a time, with exactly the columns of `schema`.

    Raises:
        StorageError: an object is not whole Parquet.
    """
    for path in paths:
        try:
            with storage.filesystem.open(storage.full(path), "rb") as source, pq.ParquetFile(source) as file:
                names = [name for name in schema.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(_ROWS_PER_READ, columns=names):
                    yield path, conform(pa.Table.from_batches([batch]), schema)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"{storage.uri(path)} cannot be read ({error}): restore it, or delete it to have its rows done again"
            ) from error


def gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer tables: DuckDB takes in many rows at once in half the time."""
    waiting: list[pa.Table] = []
    for table in chain(tables, [None]):
        if table is not None:
            waiting.append(table)
        if waiting and (table is None or sum(map(len, waiting)) >= _ROWS_PER_INSERT):
            yield pa.concat_tables(waiting)
            waiting = []
