"""Input pictures: found, fetched within limits, inspected, remembered. The one module others import for them.

Nothing is trusted: an address is checked before anything is opened, bytes are capped while they are read, pixels are
counted before they are decoded. Every failure is a `RowError`; trouble with the network or a disk has the code STORAGE
and the status `failed`, because the same row may be good tomorrow.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.contract.errors import Code, RowError, Status
from pipeline.inputs.cache import InputCache, Sighting
from pipeline.inputs.pictures import InputLimits, Inspected, Role, check_size, decode, decode_mask, inspect
from pipeline.inputs.uris import check_allowed, is_signed, locate, redact, resolve
from pipeline.storage.objects import StorageError, explain, open_filesystem, options_for

__all__ = [
    "InputCache",
    "InputLimits",
    "Inspected",
    "Role",
    "check_allowed",
    "decode",
    "decode_mask",
    "examine",
    "fetch",
    "inspect",
    "locate",
    "redact",
    "resolve",
]

_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")  # best first
_WEB = ("http", "https")


def fetch(uri: str, limits: InputLimits, storage_options: Mapping[str, object] | None = None) -> bytes:
    """All bytes of a picture, at most `limits.max_bytes` of them.

    Args:
        uri: absolute, as `resolve` makes it.
        limits: allowed prefixes and sizes.
        storage_options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        RowError: URI_NOT_ALLOWED, IMAGE_MISSING, IMAGE_UNREADABLE, IMAGE_TOO_LARGE, IMAGE_EMPTY or STORAGE.
    """
    return _fetch(uri, limits, storage_options)[0]


def examine(
    uri: str,
    role: Role,
    limits: InputLimits,
    cache: InputCache,
    storage_options: Mapping[str, object] | None = None,
) -> Inspected:
    """Fetch and inspect a picture or mask, or recall it when the storage says that it did not change.

    Raises:
        RowError: as `fetch` and `inspect` do.
    """
    if uri.partition("://")[0] not in _WEB:
        check_allowed(uri, limits.allow)
        seen = _look(uri, limits, storage_options)
        known = cache.get(role, seen)
        if known is not None:
            check_size(known.width, known.height, limits)
            return known
    data, seen = _fetch(uri, limits, storage_options)
    found = inspect(data, limits, role)
    if seen is not None:
        cache.put(role, seen, found)
    return found


def _fetch(
    uri: str, limits: InputLimits, storage_options: Mapping[str, object] | None
) -> tuple[bytes, Sighting | None]:
    uri = resolve(uri, "file:///", presigned=limits.presigned)
    check_allowed(uri, limits.allow)
    if uri.partition("://")[0] in _WEB:
        data, seen = _stream(uri, limits.max_bytes + 1, storage_options), None
    else:
        seen = _look(uri, limits, storage_options)
        with _row_errors(uri):
            filesystem: Any = open_filesystem(uri, storage_options)
            # One ranged request; the size may have grown since, and a range of nothing is an error on S3.
            path = filesystem._strip_protocol(uri)
            data = bytes(filesystem.cat_file(path, start=0, end=limits.max_bytes + 1)) if seen.size else b""
    if not data:
        raise RowError(Code.IMAGE_EMPTY, f"{redact(uri)} has no bytes: upload it again")
    if len(data) > limits.max_bytes:
        raise _too_large(uri, limits)
    return data, seen


def _look(uri: str, limits: InputLimits, storage_options: Mapping[str, object] | None) -> Sighting:
    with _row_errors(uri):
        filesystem: Any = open_filesystem(uri, storage_options)
        info = filesystem.info(filesystem._strip_protocol(uri))
    if info["type"] != "file":
        kind = "a folder" if info["type"] == "directory" else "a device, a pipe or a broken link"
        raise RowError(Code.IMAGE_UNREADABLE, f"{redact(uri)} is {kind}: give the path of a picture")
    if info["size"] > limits.max_bytes:
        raise _too_large(uri, limits)
    name = next((name for name in _VERSIONS if info.get(name)), None)
    version = str(info[name]) if name else None
    return Sighting(uri, int(info["size"]), version, float(info[name]) if name == "mtime" else None)


def _stream(uri: str, count: int, storage_options: Mapping[str, object] | None) -> bytes:
    """Up to `count` bytes from a web server, which may ignore ranges and sizes; redirects are not followed."""
    if is_signed(uri):
        # Nothing may be spelt in another way: the signature is of these very bytes.
        storage_options = options_for(uri.partition("://")[0], storage_options) | {"encoded": True}
    with _row_errors(uri):
        filesystem: Any = open_filesystem(uri, storage_options)
        with filesystem.open(uri, block_size=0, size=1, allow_redirects=False) as file:
            if 300 <= file.r.status < 400:
                raise RowError(
                    Code.URI_NOT_ALLOWED, f"{redact(uri)} redirects elsewhere: give the address of the picture itself"
                )
            chunks = bytearray()
            while len(chunks) < count and (chunk := file.read(count - len(chunks))):
                chunks += chunk
    return bytes(chunks)


def _too_large(uri: str, limits: InputLimits) -> RowError:
    return RowError(
        Code.IMAGE_TOO_LARGE,
        f"{redact(uri)} has more than the {limits.max_bytes:,} bytes allowed: save it with stronger compression",
    )


@contextmanager
def _row_errors(uri: str) -> Iterator[None]:
    """Turn whatever a file system raises into the row's error; cloud packages raise types of their own."""
    try:
        yield
    except RowError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RowError(Code.IMAGE_MISSING, f"there is no {redact(uri)}: upload it or correct the address") from error
    except PermissionError as error:
        raise RowError(Code.IMAGE_UNREADABLE, explain(error, "read", redact(uri))) from error
    except StorageError as error:
        raise RowError(Code.IMAGE_UNREADABLE, str(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            # No disk could hold it: another attempt would find as little.
            raise RowError(Code.IMAGE_MISSING, f"there cannot be {redact(uri)}: {error.strerror}") from error
        message = explain(error, "read", redact(uri))
        raise RowError(Code.STORAGE, message, status=Status.FAILED) from error
