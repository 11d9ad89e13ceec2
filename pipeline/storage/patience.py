"""Patience with storage: what it refuses for a moment is asked for again, before it becomes anyone's failure.

Only trouble that may pass by itself is waited for: an object that is not there, or a permission that is not given, is
an answer. What is still refused in the end raises as if it had been asked once.
"""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from pipeline.contract.errors import Code, RowError
from pipeline.storage.objects import Storage, StorageError

T = TypeVar("T")

# An object store that is told to slow down, or that fails over, answers again within seconds; half a minute in all
# is short beside the work that would otherwise be lost.
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Of one unit: a storage that is down fails a large batch within two minutes, not once per row until the deadline.
UNIT_S = 120.0

_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class Patience:
    """Waits between attempts, and no longer in all than `budget_s` until it is renewed."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep, *, budget_s: float = UNIT_S) -> None:
        self._sleep = sleep
        self._budget_s = self._left_s = budget_s

    def renew(self) -> None:
        """Begin another unit, with all of the budget."""
        self._left_s = self._budget_s

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns, after as many attempts as it takes and the budget allows; `call` must be repeatable.

        Raises:
            StorageError, RowError: the last attempt's own, or at once one that another attempt would not change.
        """
        for wait_s in WAITS_S:
            try:
                return call()
            except (StorageError, RowError) as error:
                if not _may_pass(error) or wait_s > self._left_s:
                    raise
            self._left_s -= wait_s
            self._sleep(wait_s)
        return call()


class PatientStorage(Storage):
    """The same objects under the same root; each operation but `list` is tried again while its trouble may pass."""

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
        """See `Storage.create`; here, too, a lost answer can turn the winner's True into False."""
        return self._patience(lambda: super(PatientStorage, self).create(path, data))

    def size(self, path: str) -> int | None:
        """See `Storage.size`."""
        return self._patience(lambda: super(PatientStorage, self).size(path))

    def delete(self, path: str) -> None:
        """See `Storage.delete`."""
        self._patience(lambda: super(PatientStorage, self).delete(path))


def _may_pass(error: StorageError | RowError) -> bool:
    if isinstance(error, RowError):
        return error.code == Code.STORAGE
    return error.__cause__ is not None and not isinstance(error.__cause__, _ANSWERS)
