"""The one reader of photos and masks: fetched within limits, inspected, and remembered where a cache is given.

Nothing is trusted: an address is checked before anything is opened, bytes are capped while they are read, and pixels
are counted before they are decoded. Every failure is a `RowError`. A network or disk error has the code STORAGE and
the status `failed`, because the same row may succeed in the next run.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.keys import digest
from pipeline.inputs.cache import InputCache, Sighting
from pipeline.inputs.pictures import InputLimits, Inspected, Role, check_size, inspect
from pipeline.inputs.uris import check_allowed, is_signed, is_web, redact, resolve
from pipeline.storage.objects import StorageError, explain, open_location, options_for

_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")  # best first


class InputStore:
    """Reads photos and masks by absolute URI, as `resolve` makes it; threads may share one."""

    def __init__(
        self, limits: InputLimits, options: Mapping[str, object] | None = None, cache: InputCache | None = None
    ) -> None:
        """Bind what all reads share; nothing is contacted yet.

        Args:
            limits: allowed prefixes and sizes.
            options: fsspec options, for one filesystem or grouped by scheme.
            cache: earlier inspections; `examine` reads and extends it.
        """
        self.limits = limits
        self._options = options
        self._cache = cache

    def fetch(self, uri: str) -> bytes:
        """All bytes of a photo, at most `limits.max_bytes` of them.

        Raises:
            RowError: URI_NOT_ALLOWED, IMAGE_MISSING, IMAGE_UNREADABLE, IMAGE_TOO_LARGE, IMAGE_EMPTY or STORAGE.
        """
        return self._fetch(uri)[0]

    def read(self, uri: str, *, sha256: str, remedy: str, column: str | None = None) -> bytes:
        """The bytes of a photo that must not have changed since its digest was recorded.

        Args:
            uri: where the photo lies.
            sha256: the recorded digest, hex.
            remedy: what the user can do if the bytes are different; the end of the message.
            column: the manifest's column, for the error.

        Raises:
            RowError: IMAGE_CHANGED, or as `fetch` raises.
        """
        data = self.fetch(uri)
        if digest(data) != sha256:
            message = f"{redact(uri)} holds other bytes than those recorded: {remedy}"
            raise RowError(Code.IMAGE_CHANGED, message, column=column, status=Status.FAILED)
        return data

    def examine(self, uri: str, role: Role) -> Inspected:
        """Fetch and inspect a photo or mask, or recall it when the storage reports the version in the cache.

        Raises:
            RowError: as `fetch` and `inspect` raise.
        """
        if self._cache is not None and not is_web(uri):
            check_allowed(uri, self.limits.allow)
            known = self._cache.get(role, self._look(uri))
            if known is not None:
                check_size(known.width, known.height, self.limits)
                return known
        data, seen = self._fetch(uri)
        found = inspect(data, self.limits, role)
        if self._cache is not None and seen is not None:
            self._cache.put(role, seen, found)
        return found

    def exists(self, uri: str) -> bool:
        """Whether there is a file; False where the limits forbid to read it, behind http, and after any error."""
        try:
            check_allowed(uri, self.limits.allow)
            if is_web(uri):
                return False
            filesystem, path = open_location(uri, self._options)
            return bool(filesystem.isfile(path))
        except (RowError, StorageError, OSError, ValueError):
            return False

    def _fetch(self, uri: str) -> tuple[bytes, Sighting | None]:
        uri = resolve(uri, "file:///", presigned=self.limits.presigned)
        check_allowed(uri, self.limits.allow)
        most = self.limits.max_bytes
        if is_web(uri):
            data, seen = self._stream(uri, most + 1), None
        else:
            seen = self._look(uri)
            with _row_errors(uri):
                filesystem, path = open_location(uri, self._options)
                # One ranged request; the size may have grown since, and a range of nothing is an error on S3.
                data = bytes(filesystem.cat_file(path, start=0, end=most + 1)) if seen.size else b""
        if not data:
            raise RowError(Code.IMAGE_EMPTY, f"{redact(uri)} has no bytes: upload it again")
        if len(data) > most:
            raise self._too_large(uri)
        return data, seen

    def _look(self, uri: str) -> Sighting:
        with _row_errors(uri):
            filesystem, path = open_location(uri, self._options)
            info = filesystem.info(path)
        if info["type"] != "file":
            kind = "a folder" if info["type"] == "directory" else "a device, a pipe or a broken link"
            raise RowError(Code.IMAGE_UNREADABLE, f"{redact(uri)} is {kind}: give the path of a picture")
        if info["size"] > self.limits.max_bytes:
            raise self._too_large(uri)
        name = next((name for name in _VERSIONS if info.get(name)), None)
        version = str(info[name]) if name else None
        return Sighting(uri, int(info["size"]), version, float(info[name]) if name == "mtime" else None)

    def _stream(self, uri: str, count: int) -> bytes:
        """Up to `count` bytes from a web server, which may ignore ranges and sizes; redirects are not followed."""
        options = self._options
        if is_signed(uri):
            # The signature is of these very bytes: the client must not normalise the address.
            options = options_for(uri.partition("://")[0], options) | {"encoded": True}
        with _row_errors(uri):
            filesystem, path = open_location(uri, options)
            with filesystem.open(path, block_size=0, size=1, allow_redirects=False) as file:
                if 300 <= file.r.status < 400:
                    raise RowError(
                        Code.URI_NOT_ALLOWED,
                        f"{redact(uri)} redirects elsewhere: give the address of the picture itself",
                    )
                chunks = bytearray()
                while len(chunks) < count and (chunk := file.read(count - len(chunks))):
                    chunks += chunk
        return bytes(chunks)

    def _too_large(self, uri: str) -> RowError:
        return RowError(
            Code.IMAGE_TOO_LARGE,
            f"{redact(uri)} has more than the {self.limits.max_bytes:,} bytes allowed: "
            "save it with stronger compression",
        )


@contextmanager
def _row_errors(uri: str) -> Iterator[None]:
    """Turn every error of a filesystem into the row's error; cloud packages raise types of their own."""
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
            # No disk can hold such a name: a retry would fail alike.
            message = f"{redact(uri)} cannot exist ({error.strerror}): correct the address"
            raise RowError(Code.IMAGE_MISSING, message) from error
        message = explain(error, "read", redact(uri))
        raise RowError(Code.STORAGE, message, status=Status.FAILED) from error
