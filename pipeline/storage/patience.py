"""Retries of transient storage errors.

Only an error that may pass by itself is retried: a missing object or a denied permission is an answer. The last
attempt's error is raised as it is.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from pipeline.contract.errors import Code, RowError
from pipeline.storage.objects import Storage, StorageError

T = TypeVar("T")

# An object store that throttles or fails over answers again within seconds. Half a minute in all is short compared
# with the work that an error would lose.
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# For one unit of work: when the storage is down, a large batch fails within two minutes, not after a wait for each row.
UNIT_S = 120.0

_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class Patience:
    """Waits between attempts, at most `budget_s` seconds in all between two calls of `renew`. Threads may share it.

    Attributes:
        retries: attempts that were repeated so far.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep, *, budget_s: float = UNIT_S) -> None:
        self._sleep = sleep
        self._budget_s = self._left_s = budget_s
        self._lock = threading.Lock()
        self.retries = 0

    def renew(self) -> None:
        """Begin another unit of work with the full budget."""
        with self._lock:
            self._left_s = self._budget_s

    def __call__(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, with retries as far as the budget allows; `call` must be idempotent.

        Raises:
            StorageError, RowError: of the last attempt; at once if a retry cannot help.
        """
        for wait_s in WAITS_S:
            try:
                return call()
            except (StorageError, RowError) as error:
                if not _is_transient(error) or not self._take(wait_s):
                    raise
            self._sleep(wait_s)
        return call()

    def _take(self, wait_s: float) -> bool:
        """Take a wait from the budget, if it has that much."""
        with self._lock:
            if wait_s > self._left_s:
                return False
            self._left_s -= wait_s
            self.retries += 1
            return True


class PatientStorage(Storage):
    """The same objects under the same root; each operation except `list` retries transient errors."""

    def __init__(self, root: str, options: Mapping[str, object] | None, patience: Patience) -> None:
        super().__init__(root, options)
        self._patience = patience

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """See `Storage.read`."""
        return self._patience(lambda: super(PatientStorage, self).read(path, max_bytes))

    def write(self, path: str, data: bytes) -> None:
        """See `Storage.write`."""
        self._patience(lambda: super(PatientStorage, self).write(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """See `Storage.create`; a retry after a lost response turns the winner's True into False as well."""
        return self._patience(lambda: super(PatientStorage, self).create(path, data))

    def size(self, path: str) -> int | None:
        """See `Storage.size`."""
        return self._patience(lambda: super(PatientStorage, self).size(path))

    def delete(self, path: str) -> None:
        """See `Storage.delete`."""
        self._patience(lambda: super(PatientStorage, self).delete(path))


def _is_transient(error: StorageError | RowError) -> bool:
    if isinstance(error, RowError):
        return error.code == Code.STORAGE
    return error.__cause__ is not None and not isinstance(error.__cause__, _ANSWERS)
