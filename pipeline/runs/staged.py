"""How the tasks of an unfinished run have ended so far, for a caller that asks repeatedly.

Parts never change, so each is read once. A key is remembered as a number of 64 bits. Among ten million tasks, two have
the same number, and are counted as one, with a probability of 1 in 300,000.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from pipeline.contract.errors import Status
from pipeline.contract.kinds import RESULTS
from pipeline.contract.layout import part_lease
from pipeline.contract.schemas import PART
from pipeline.database.memory import in_memory
from pipeline.database.parquet import read_tables
from pipeline.storage.objects import Storage

_COLUMNS = pa.schema([PART.field(name) for name in ("kind", "key", "status")])
_STATUSES = (*(status.value for status in Status if status is not Status.OK), Status.OK.value)  # the best one last
_CODES = len(_STATUSES)
_ROWS_PER_MERGE = 1_000_000  # sorted at once, some 50 MB
_NUMBERED = f"""
SELECT hash(kind, key) AS number, list_position($kinds, kind) AS kind,
    coalesce(list_position({list(_STATUSES)!r}, status), 1) AS status
FROM rows_read
"""


class StagedCounts:
    """Counts of the staged outcomes of one run. Memory: nine bytes per task that has ended."""

    def __init__(self, storage: Storage) -> None:
        """Count nothing yet.

        Args:
            storage: the root of the run.
        """
        self._storage = storage
        self._seen: set[str] = set()
        self._numbers = np.empty(0, np.uint64)  # ascending
        self._codes = np.empty(0, np.uint8)  # kind and status of each
        self._rows: Counter[tuple[int, str]] = Counter()

    def add(self, parts: Iterable[str]) -> None:
        """Read the parts among these paths that were not read before.

        As in `read_parts`, a key counts once: ok wins, then the later part. Of two outcomes that are not ok, the one
        that was read later wins.

        Raises:
            StorageError: a part cannot be read; the counts are then unusable.
        """
        paths = sorted(set(parts) - self._seen)
        numbers: list[np.ndarray] = []
        codes: list[np.ndarray] = []
        with in_memory() as connection:
            for path, rows in read_tables(self._storage, paths, _COLUMNS):
                connection.register("rows_read", rows)
                found = connection.execute(_NUMBERED, {"kinds": [table.kind for table in RESULTS]}).fetchnumpy()
                kinds = np.asarray(found["kind"]) - 1
                numbers.append(np.asarray(found["number"], np.uint64))
                codes.append((kinds * _CODES + np.asarray(found["status"]) - 1).astype(np.uint8))
                for table, count in zip(RESULTS, np.bincount(kinds, minlength=len(RESULTS)).tolist(), strict=True):
                    self._rows[part_lease(path), table.name] += count
                if sum(map(len, numbers)) >= _ROWS_PER_MERGE:
                    self._merge(np.concatenate(numbers), np.concatenate(codes))
                    numbers, codes = [], []
        if numbers:
            self._merge(np.concatenate(numbers), np.concatenate(codes))
        self._seen.update(paths)

    def statuses(self) -> dict[str, dict[str, int]]:
        """Keys by table and status; a status without keys is absent."""
        counts = np.bincount(self._codes, minlength=len(RESULTS) * _CODES).reshape(-1, _CODES).tolist()
        return {
            table.name: {status: count for status, count in zip(_STATUSES, each, strict=True) if count}
            for table, each in zip(RESULTS, counts, strict=True)
        }

    def rows(self, lease: int, table: str) -> int:
        """Tasks of a table that ended under one lease: a driver gives each task one outcome."""
        return self._rows[lease, table]

    def _merge(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        """Take outcomes in the order of their parts."""
        if not len(numbers):
            return
        ok = codes % _CODES == _CODES - 1
        order = np.concatenate([np.flatnonzero(~ok), np.flatnonzero(ok)])
        order = order[np.argsort(numbers[order], kind="stable")]
        numbers, codes, ok = numbers[order], codes[order], ok[order]
        last = np.append(numbers[1:] != numbers[:-1], True)  # of each number, the best outcome
        numbers, codes, ok = numbers[last], codes[last], ok[last]
        places = np.searchsorted(self._numbers, numbers)
        there = np.zeros(len(numbers), bool)
        inside = places < len(self._numbers)
        there[inside] = self._numbers[places[inside]] == numbers[inside]
        known = places[there]
        better = ok[there] | (self._codes[known] % _CODES != _CODES - 1)
        self._codes[known[better]] = codes[there][better]
        self._numbers = np.insert(self._numbers, places[~there], numbers[~there])
        self._codes = np.insert(self._codes, places[~there], codes[~there])
