"""Objects on a local disk: written whole or not at all, and listed at the speed of the disk.

fsspec's own listing asks for a dozen facts of each file one by one; of a million files that is half a minute.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow.fs import FileSelector, FileType, LocalFileSystem

from perfusion_ops.errors import PerfusionError

_THREADS = 4
_FOLDERS_AT_ONCE = 32  # read ahead of who asks


class NoHardLinksError(PerfusionError, OSError):
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


def files_below(folder: str) -> Iterator[tuple[list[str], list[int]]]:
    """Every file in a folder and below it as paths and their bytes, folder by folder; of one that is not there, none.

    Temporary files are left out, links to folders are not followed, and what disappears in between is not there.

    Raises:
        OSError: some folder could not be read to its end.
    """
    below = [folder]
    with ThreadPoolExecutor(_THREADS) as pool:
        while below:
            now, below = below[:_FOLDERS_AT_ONCE], below[_FOLDERS_AT_ONCE:]
            for paths, sizes, folders in pool.map(_read_folder, now):
                yield paths, sizes
                below += folders


def _read_folder(folder: str) -> tuple[list[str], list[int], list[str]]:
    """Its files, their sizes, and the folders in it."""
    try:
        # pyarrow asks for sizes outside of Python's lock, several threads at a time.
        found = LocalFileSystem().get_file_info(FileSelector(folder))
    except (FileNotFoundError, NotADirectoryError):
        return [], [], []
    # Only a file has a size; asking for the type takes longer than all the rest.
    folders = [info.path for info in found if info.size is None and info.type == FileType.Directory]
    files = [info for info in found if info.size is not None and not info.path.endswith(".tmp")]
    # Two lists, not a list of pairs: Python's garbage collector looks at a million pairs again and again.
    paths, sizes = [info.path for info in files], [info.size for info in files]
    return paths, sizes, [path for path in folders if not Path(path).is_symlink()]
