"""Local scratch folders; each new one first removes the leftovers of dead processes.

A killed process cannot clean up, and a plan of ten million rows spills gigabytes. Each folder holds a file that its
owner keeps locked. A lock that another process can take has no living owner.
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
    """A new folder on local disk, removed at the end of the block; first removes those of dead processes beside it.

    Args:
        purpose: a word for its name.
        parent: folder to create it in; default: the system's temporary folder (`TMPDIR`).

    Raises:
        OSError: the folder cannot be created.
    """
    parent = parent or tempfile.gettempdir()
    for lock in Path(parent).glob(f"{_PREFIX}*/{_LOCK}"):
        _remove_if_dead(lock)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=parent))
    handle = os.open(folder / ".new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Renamed only after it is locked, so that no other process finds it unlocked.
        (folder / ".new").rename(folder / _LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_if_dead(lock: Path) -> None:
    # An error means that it belongs to another user, is locked, or is gone: leave it.
    with suppress(OSError):
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(handle)
