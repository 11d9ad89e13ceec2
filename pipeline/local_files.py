"""Objects on a local disk: written whole or not at all, and listed at the speed of the disk.

fsspec's own listing asks for a dozen facts of each file one by one; of a million files that is half a minute.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


class NoHardLinksError(OSError):
    """The filesystem has no hard links, without which nothing can be created exclusively."""


def write_file(full: str, data: bytes, *, exclusive: bool) -> bool:
    """Write, sync, then link (exclusive) or replace; False when `exclusive` found an object.

    Raises:
        NoHardLinksError: exclusive creation cannot be had there.
        OSError: as the disk says.
    """
    target = Path(full)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"  # hidden, and no *.parquet, *.png or *.safetensors
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise NoHardLinksError(str(target.parent)) from error
                raise
        else:
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files_below(folder: str) -> Iterator[tuple[str, int]]:
    """Every regular file in a folder and below it as (path, bytes); of a folder that is not there, none.

    Temporary files are left out, links are not followed, and what disappears in between is not there.

    Raises:
        OSError: some folder could not be read to its end.
    """
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    below = []
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif entry.is_file(follow_symlinks=False) and not entry.name.endswith(".tmp"):
                try:
                    yield entry.path, entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
    for each in below:
        yield from files_below(each)
