"""Divides rows into ranges of a sort order, on scratch, so that each range can be joined and sorted in memory.

The bounds of the ranges are quantiles of a sample, weighted by bytes. Sort keys are blobs whose byte order is the sort
order. There is one file per kind of row; a list in memory has the places of each range's rows in it. So the number of
open files does not depend on the number of ranges.
"""

import io
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.database.memory import ScratchFullError, disk_message, is_disk_full

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def bounds_of(sample: Iterable[tuple[bytes, int]], rows: int, piece_bytes: int) -> list[bytes]:
    """The lowest sort key of every range but the first; each range then has about `piece_bytes`.

    Args:
        sample: sort key and bytes of each row of a random sample.
        rows: number of rows that the sample was drawn from.
        piece_bytes: bytes of one range.
    """
    sample = sorted(sample)
    if not sample:
        return []
    scale = rows / len(sample)
    bounds, held = [], 0.0
    for key, size in sample:
        if held >= piece_bytes and (not bounds or key > bounds[-1]):
            bounds.append(key)
            held = 0.0
        held += size * scale
    return bounds


class Pieces:
    """Rows of several kinds on scratch, by range."""

    def __init__(self, folder: Path, bounds: Sequence[bytes], row_bytes: int) -> None:
        """Start with empty files in an existing folder; an average row has `row_bytes`."""
        self.bounds = list(bounds)
        self.row_bytes = row_bytes
        self._folder = folder
        self._files: dict[str, io.BufferedRandom] = {}
        self._places: dict[str, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        self._schemas: dict[str, pa.Schema] = {}

    @property
    def kinds(self) -> list[str]:
        """The kinds of rows that were added."""
        return list(self._schemas)

    def __len__(self) -> int:
        return len(self.bounds) + 1

    def numbers(self, sort_keys: Iterable[bytes]) -> np.ndarray:
        """The number of each row's range, from its sort key."""
        return np.fromiter((bisect_right(self.bounds, key) for key in sort_keys), dtype=np.int32)

    def span(self, prefix: bytes) -> range:
        """The ranges that may have rows whose sort keys begin with `prefix`."""
        return range(bisect_right(self.bounds, prefix), bisect_right(self.bounds, prefix + b"\xff" * 8) + 1)

    def add(self, kind: str, rows: pa.Table, numbers: np.ndarray) -> None:
        """Append rows, each to its range.

        Raises:
            ScratchFullError: the disk is full.
        """
        self._schemas.setdefault(kind, rows.schema)
        if not len(rows):
            return
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        rows = rows.take(order).combine_chunks() if len(starts) > 1 else rows
        try:
            file = self._file(kind)
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
                sink = io.BytesIO()
                with pa.ipc.new_stream(sink, rows.schema, options=_OPTIONS) as writer:
                    writer.write_table(rows.slice(start, stop - start))
                self._places[kind][int(numbers[start])].append((file.tell(), sink.tell()))
                file.write(sink.getbuffer())
        except OSError as error:
            raise self._explained(error) from error

    def read(self, kind: str, number: int) -> pa.Table:
        """The rows of one kind and range, in the order in which they were added.

        Raises:
            ScratchFullError: the disk is full.
        """
        tables = [self._schemas[kind].empty_table()]
        try:
            for start, size in self._places[kind].get(number, ()):
                file = self._file(kind)
                file.seek(start)
                tables.append(pa.ipc.open_stream(file.read(size)).read_all())
        except OSError as error:
            raise self._explained(error) from error
        return pa.concat_tables(tables)

    def close(self) -> None:
        """Delete the files."""
        for name, file in self._files.items():
            file.close()
            (self._folder / f"{name}.rows").unlink()
        self._files.clear()

    def _file(self, kind: str) -> io.BufferedRandom:
        if kind not in self._files:
            self._files[kind] = (self._folder / f"{kind}.rows").open("w+b")
        return self._files[kind]

    def _explained(self, error: OSError) -> Exception:
        return ScratchFullError(disk_message(str(self._folder))) if is_disk_full(error) else error
