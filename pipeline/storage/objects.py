"""Objects under one root, on any fsspec filesystem: `file://`, `memory://`, `s3://`, `gs://`, `az://`.

The only lock is exclusive creation: a hard link on a local disk, a conditional PUT on an object store, never a rename.
A reader sees a whole object or none: on a local disk the bytes are first written and synced under a hidden name in the
same folder. Every error is a `StorageError` whose message names the remedy. A listing that breaks off is an error,
never a shorter listing.
"""

import errno
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from perfusion_ops.errors import PerfusionError
from pipeline.contract.messages import reason
from pipeline.storage.local_files import NoHardLinksError, files_below, write_file

SCHEMES = ("file", "memory", "s3", "gs", "az", "http", "https")
_OTHER_SCHEMES = ("local", "ftp", "sftp", "ssh", "hf", "hdfs", "webhdfs", "dbfs", "wasb", "wasbs", "adl", "oss")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
# After a lost response, aiohttp may open a new connection and send nothing over it; only a timeout ends that. The
# default of botocore is a minute, and no store is silent for so long, however large the object is.
_TIMEOUTS: dict[str, Any] = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 15}}
_PATIENCE = {"s3": _TIMEOUTS, "s3a": _TIMEOUTS}
_CONFLICT_ATTEMPTS = 5  # S3 answers 409 to two conditional PUTs at the same moment and asks for a retry
# A known scheme, or any word before ':/', as Hadoop prints local paths. A leading `./` makes it a path.
_ALMOST_URI = re.compile(
    rf"({'|'.join(sorted({*SCHEMES, *_EXTRAS, *_OTHER_SCHEMES}, key=len, reverse=True))}):(?!//)"
    r"|(s3a?|gc?s|az|abfss?|https?)//|([A-Za-z][A-Za-z0-9+.-]+):/(?!/)",
    re.IGNORECASE,
)
_UNCLEAN = re.compile(r"[\x00-\x1f\\]")
_MEMORY_LOCK = threading.Lock()  # MemoryFileSystem checks, then writes: without a lock, creation is not exclusive


class StorageError(PerfusionError):
    """An object or a filesystem could not be used; the message names the remedy."""


class MissingObjectError(StorageError, FileNotFoundError):
    """There is no such object."""


def mistyped_uri(path: str) -> str | None:
    """A message for a path that begins like a URI without `://` (`s3:/bucket`, `file:results`, `gs//x`), or None.

    As a path, it would silently name a folder such as `s3:` on the local disk.
    """
    found = _ALMOST_URI.match(path)
    if not found:
        return None
    scheme, rest = (found[1] or found[2] or found[3]).lower(), path[found.end() :].lstrip("/\\")
    if "@" in rest.partition("/")[0]:
        return f"{scheme}: lacks '//', and credentials seem to follow: remove them and write {scheme}://bucket/folder"
    if scheme in ("file", "local"):
        absolute = path[found.end() :].startswith("/")
        meant = f"file:///{rest}" if absolute else f"file:///folder/{rest}, or just {rest or 'a path'}"
    else:
        meant = f"{scheme}://{rest or 'bucket/folder'}"
    return f"{path!r} lacks the '://' of a URI: write {meant}, or ./{path} for a local path of that name"


def absolute_uri(path: str) -> str:
    """`path` as an absolute URI without a trailing slash; a bare or `file://` path is made absolute and normal.

    Raises:
        StorageError: it is empty, holds a control character, lacks the `://` of a URI, or has `..` in an object store's
            path.
    """
    if not path or any(ord(character) < 32 for character in path):
        raise StorageError(f"{path!r} is not a location: give a folder or a URI such as s3://bucket/folder")
    if mistyped := mistyped_uri(path):
        raise StorageError(mistyped)
    scheme, separator, rest = path.partition("://")
    if not separator or scheme in ("file", "local"):
        local = rest if separator else path
        return "file://" + os.path.abspath(Path(local).expanduser())  # noqa: PTH100 (resolve() would follow links)
    rest = rest.strip("/") if scheme == "memory" else rest.rstrip("/")
    if not rest or ".." in rest.split("/"):
        raise StorageError(f"{path!r} is not a location: give {scheme}://bucket/folder, without '..'")
    return f"{scheme}://{rest}"


def options_for(scheme: str, options: Mapping[str, object] | None) -> dict[str, Any]:
    """Options of one filesystem: `options[scheme]` if they are grouped by scheme, else all of them.

    Raises:
        StorageError: the group is not a mapping.
    """
    options = options or {}
    if not any(key in SCHEMES for key in options):
        return dict(options)
    group = options.get(scheme, {})
    if not isinstance(group, Mapping):
        raise StorageError(f"the storage options of {scheme!r} must be a mapping of option names to values")
    return dict(group)


def open_filesystem(uri: str, options: Mapping[str, object] | None = None) -> fsspec.AbstractFileSystem:
    """The filesystem of an absolute URI, without a listing cache, because other machines write there too.

    Raises:
        StorageError: a package is missing (the message names the extra), or the scheme or its options are wrong.
    """
    scheme = uri.partition("://")[0]
    try:
        given = {**_PATIENCE.get(scheme, {}), **options_for(scheme, options)}
        return fsspec.filesystem(scheme, use_listings_cache=False, **given)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'perfusion-pipeline[{extra}]'" if extra else f"install the package ({reason(error)})"
        raise StorageError(f"{scheme}:// needs a package that is not installed: {remedy}") from error
    except (ValueError, TypeError, OSError) as error:
        raise StorageError(
            f"{scheme}:// cannot be opened: {reason(error)}; use one of {', '.join(SCHEMES)}; check the options"
        ) from error


def open_location(uri: str, options: Mapping[str, object] | None = None) -> tuple[Any, str]:
    """The filesystem of an absolute URI (an `fsspec.AbstractFileSystem`), and its own name for what lies there.

    Raises:
        StorageError: as `open_filesystem` raises.
    """
    return open_filesystem(uri, options), str(fsspec.core.strip_protocol(uri))


class Storage:
    """Objects under `root`, addressed by relative paths; pickled as (root, options)."""

    def __init__(self, root: str, options: Mapping[str, object] | None = None) -> None:
        """Bind a root; no request is sent before the first use.

        Args:
            root: folder or URI; see `absolute_uri`.
            options: fsspec options, for one filesystem or grouped by scheme (`{"s3": {...}}`).
        """
        self.root = absolute_uri(root)
        self.options = dict(options or {})

    def __reduce__(self) -> tuple[type["Storage"], tuple[str, dict[str, object]]]:
        return Storage, (self.root, self.options)

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"  # options may hold secrets

    @cached_property
    def filesystem(self) -> Any:
        """The fsspec filesystem of the root (an `fsspec.AbstractFileSystem`)."""
        return open_filesystem(self.root, self.options)

    def uri(self, path: str) -> str:
        """Absolute URI of an object."""
        return f"{self.root}/{_checked(path)}"

    def full(self, path: str) -> str:
        """The name of the object in `filesystem`."""
        return str(fsspec.core.strip_protocol(self.uri(path)))

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """All bytes of an object.

        Raises:
            MissingObjectError: there is no such object.
            StorageError: it cannot be read, or is larger than `max_bytes`; at most one more byte is read.
        """
        with self._errors("read", path):
            if max_bytes is None:
                return bytes(self.filesystem.cat_file(self.full(path)))
            size = self.filesystem.info(self.full(path))["size"]
            # A ranged read of an empty object is an error on S3.
            data = bytes(self.filesystem.cat_file(self.full(path), start=0, end=max_bytes + 1)) if size else b""
        if len(data) > max_bytes:
            raise StorageError(
                f"{self.uri(path)} is larger than the limit of {max_bytes:,} bytes: another program wrote it"
            )
        return data

    def write(self, path: str, data: bytes) -> None:
        """Put an object, or replace it."""
        with self._errors("write", path):
            if isinstance(self.filesystem, LocalFileSystem):
                write_file(self.full(path), data, exclusive=False)
            else:
                self._pipe(path, data, "overwrite")

    def create(self, path: str, data: bytes) -> bool:
        """Put an object unless one exists; of any number of concurrent callers exactly one gets True.

        A lost response of an object store can turn the winner's True into False. A caller that must know reads the
        object back and looks for its own name in it.
        """
        with self._errors("create", path):
            if isinstance(self.filesystem, LocalFileSystem):
                return write_file(self.full(path), data, exclusive=True)
            for attempt in range(_CONFLICT_ATTEMPTS):
                try:
                    self._pipe(path, data, "create")
                except FileExistsError:
                    return False
                except OSError as error:
                    code = _s3_code(error)
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if code not in ("ConditionalRequestConflict", "409") or attempt == _CONFLICT_ATTEMPTS - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
                else:
                    return True
        raise AssertionError("unreachable: the last attempt returns or raises")

    def exists(self, path: str) -> bool:
        """Whether there is such an object; a request that fails is an error, never False."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of an object, or None when there is none."""
        with self._errors("look at", path):
            try:
                info = self.filesystem.info(self.full(path))
            except (FileNotFoundError, NotADirectoryError):
                return None
            return None if info["type"] == "directory" else int(info["size"])

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every object in a folder and below it as (path relative to the root, bytes)."""
        for paths, sizes in self.pages(prefix):
            yield from zip(paths, sizes, strict=True)

    def pages(self, prefix: str = "") -> Iterator[tuple[Sequence[str], Sequence[int]]]:
        """What `list` gives, folder by folder: paths, and the bytes of each."""
        folder = prefix.rstrip("/")
        root = str(fsspec.core.strip_protocol(self.root))
        top = self.full(folder) if folder else root
        start = len(root.rstrip("/")) + 1
        with self._errors("list", folder or "."):
            if isinstance(self.filesystem, LocalFileSystem):
                for names, sizes in files_below(top):
                    yield [name[start:] for name in names], sizes
                return
            for _, _, files in self.filesystem.walk(top, detail=True, on_error=_absent_is_empty):
                infos = [info for info in files.values() if info["type"] == "file"]
                infos = [info for info in infos if not info["name"].endswith(("/", ".tmp"))]
                yield [str(info["name"])[start:] for info in infos], [int(info["size"]) for info in infos]

    def delete(self, path: str) -> None:
        """Remove an object; a no-op if there is none."""
        with self._errors("delete", path):
            try:
                self.filesystem.rm_file(self.full(path))
            except FileNotFoundError:
                return

    def _pipe(self, path: str, data: bytes, mode: str) -> None:
        if isinstance(self.filesystem, MemoryFileSystem):
            with _MEMORY_LOCK:
                self.filesystem.pipe_file(self.full(path), data, mode=mode)
        else:
            # Not open(path, "xb"): for an empty object, s3fs drops the condition there.
            self.filesystem.pipe_file(self.full(path), data, mode=mode)

    @contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        """Turn every error of a filesystem into a StorageError; cloud packages raise types of their own."""
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            if verb in ("write", "create"):
                raise StorageError(
                    f"cannot {verb} {self.root}/{path}: the bucket or folder above it does not exist; "
                    "create it or correct the address"
                ) from error
            raise MissingObjectError(f"there is no {self.root}/{path}") from error
        except Exception as error:
            raise StorageError(explain(error, verb, f"{self.root}/{path}")) from error


def explain(error: Exception, verb: str, uri: str) -> str:
    """A message with the remedy for an error of a filesystem; `verb` and `uri` complete "cannot ..."."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, NoHardLinksError):
        return (
            f"{error} has no hard links, which exclusive creation needs: use a local disk, NFS or "
            "the object store's own URI (s3://, gs://, az://) as root"
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot {verb} {uri}: the disk is full; free space or choose another root, then run again"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return f"cannot {verb} {uri}: permission denied ({reason(error)}); check the folder's owner or the credentials"
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return f"cannot {verb} {uri}: a folder and an object have the same name there; choose another root"
    if "Credential" in type(error).__name__:  # the name that botocore, google-auth and azure-identity share
        return (
            f"cannot {verb} {uri}: no usable credentials ({reason(error)}); set them in the environment "
            "(docs/storage.md), then run again"
        )
    why = f"{type(error).__name__}: {reason(error)}"
    return f"cannot {verb} {uri}: {why}; check the address and the network, then run again"


def _checked(path: str) -> str:
    if _UNCLEAN.search(path):
        raise StorageError(f"{path!r} is not an object's path: it holds a control character or a backslash")
    if any(segment in ("", ".", "..") for segment in path.rstrip("/").split("/")):
        raise StorageError(f"{path!r} is not an object's path: it is empty or leaves the root")
    return path.rstrip("/")


def _absent_is_empty(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _s3_code(error: OSError) -> str | None:
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None
