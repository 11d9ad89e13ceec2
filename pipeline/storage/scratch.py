"""Local scratch that no process leaves behind for good: the next one to need some removes what the dead have left.

A process that is killed cannot tidy up, and a plan of ten million rows spills gigabytes. Every folder holds a file that
its owner keeps locked while it lives; a lock that can be had belongs to nobody.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "perfusion-"
_LOCK = "owner.lock"


@contextmanager
def scratch_folder(purpose: str, parent: str | None = None) -> Iterator[Path]:
    """A new folder on local disk that goes away in the end; removes those of dead processes beside it first.

    Args:
        purpose: a word for its name.
        parent: where; the system's temporary folder (`TMPDIR`) when absent.

    Raises:
        OSError: there is no place for it.
    """
    parent = parent or tempfile.gettempdir()
    for lock in Path(parent).glob(f"{_PREFIX}*/{_LOCK}"):
        _remove_if_dead(lock)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=parent))
    handle = os.open(folder / ".new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Only now under its name: nobody finds it before it is locked.
        (folder / ".new").rename(folder / _LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_if_dead(lock: Path) -> None:
    # Another user's, or gone in the meantime: not ours to remove.
    with suppress(OSError):
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(handle)
