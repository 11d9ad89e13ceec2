"""Objects on a local disk: written atomically, and listed at the speed of the disk.

fsspec's own listing reads a dozen attributes of each file one by one, which takes half a minute for a million files.
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
_FOLDERS_AT_ONCE = 32  # read ahead of the caller


class NoHardLinksError(PerfusionError, OSError):
    """The filesystem has no hard links, which exclusive creation needs."""


def write_file(full: str, data: bytes, *, exclusive: bool) -> bool:
    """Write, sync, then link (exclusive) or replace.

    Args:
        full: path of the object.
        data: its bytes.
        exclusive: leave an existing object as it is.

    Returns:
        Whether the object was written; False only if `exclusive` and one exists.

    Raises:
        NoHardLinksError: exclusive creation is unsupported there.
        OSError: from the operating system.
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
    """Paths and sizes in bytes of all files below a folder, folder by folder; nothing if the folder does not exist.

    Temporary files are left out and links to folders are not followed. A file or folder that disappears while the
    listing runs may be missing.

    Raises:
        OSError: a folder could not be read to its end.
    """
    below = [folder]
    with ThreadPoolExecutor(_THREADS) as pool:
        while below:
            now, below = below[:_FOLDERS_AT_ONCE], below[_FOLDERS_AT_ONCE:]
            for paths, sizes, folders in pool.map(_read_folder, now):
                yield paths, sizes
                below += folders


def _read_folder(folder: str) -> tuple[list[str], list[int], list[str]]:
    """The files of a folder, their sizes in bytes, and its folders."""
    try:
        # pyarrow reads sizes without holding Python's lock, so several threads do so at the same time.
        found = LocalFileSystem().get_file_info(FileSelector(folder))
    except (FileNotFoundError, NotADirectoryError):
        return [], [], []
    # Only a file has a size; reading the type takes longer than everything else.
    folders = [info.path for info in found if info.size is None and info.type == FileType.Directory]
    files = [info for info in found if info.size is not None and not info.path.endswith(".tmp")]
    # Two lists, not a list of pairs: Python's garbage collector would traverse a million pairs repeatedly.
    paths, sizes = [info.path for info in files], [info.size for info in files]
    return paths, sizes, [path for path in folders if not Path(path).is_symlink()]
