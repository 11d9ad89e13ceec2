"""A cache of photo inspections, so that a nightly plan does not read every photo again.

An entry is found by (role, URI, bytes, version). The version comes from the storage: an etag or a modification time.
Only good photos are cached; a bad one is inspected in every run. The cache is a set of `cache/inputs-<digest>.parquet`
objects, which are only added, never changed, and all read at the start. So planners on several machines need no lock.
A file that cannot be read is logged and ignored, and its photos are inspected again. A file of an earlier version is
ignored too, because it lacks the column `reading`.
"""

import hashlib
import io
import logging
import struct
import time
from dataclasses import dataclass
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.headers import Format, Reading
from pipeline.inputs.pictures import Inspected
from pipeline.storage.objects import Storage, StorageError

_FOLDER = "cache"
_SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.uint32()),
        ("height", pa.uint32()),
        ("reading", pa.string()),
    ]
)
_FORMATS: tuple[Format, ...] = get_args(Format)
_READINGS: tuple[Reading, ...] = get_args(Reading)
_PACKED = struct.Struct("<32sBIIB")
_SETTLED_S = 2.0  # a younger file may change again within the resolution of its modification time

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """An object's metadata in its storage; `changed_at` (Unix seconds) only if `version` is a modification time."""

    uri: str
    size: int
    version: str | None
    changed_at: float | None = None


class InputCache:
    """Cached inspections, about 250 bytes of memory each; threads may share it, but only one may call `save`."""

    def __init__(self, storage: Storage) -> None:
        """Load all cache files of a root.

        Raises:
            StorageError: the folder cannot be listed.
        """
        self._storage = storage
        self._known: dict[bytes, bytes] = {}
        self._new: dict[bytes, Inspected] = {}
        for path, _ in storage.list(_FOLDER):
            if path.startswith(f"{_FOLDER}/inputs-") and path.endswith(".parquet"):
                self._load(path)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, role: str, seen: Sighting) -> Inspected | None:
        """The inspection of this version of a photo, if it is cached; `role` is "image" or "mask"."""
        packed = self._known.get(_key(role, seen)) if seen.version else None
        if packed is None:
            return None
        sha256, kind, width, height, reading = _PACKED.unpack(packed)
        return Inspected(sha256.hex(), _FORMATS[kind], width, height, _READINGS[reading])

    def put(self, role: str, seen: Sighting, found: Inspected) -> None:
        """Cache a good photo, unless the storage reports no version or the photo is too young to be settled."""
        if not seen.version or (seen.changed_at is not None and time.time() - seen.changed_at < _SETTLED_S):
            return
        key = _key(role, seen)
        self._new[key] = found
        self._known[key] = _pack(found)

    def save(self) -> None:
        """Write the new entries as one more object; a no-op without new entries."""
        if not self._new:
            return
        rows = [{"key": key, **vars(found)} for key, found in self._new.items()]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), buffer, compression="zstd")
        data = buffer.getvalue()
        self._storage.create(f"{_FOLDER}/inputs-{hashlib.sha256(data).hexdigest()}.parquet", data)
        self._new.clear()

    def _load(self, path: str) -> None:
        try:
            file = pq.ParquetFile(io.BytesIO(self._storage.read(path)))
            if file.schema_arrow.names == _SCHEMA.names[:-1]:
                return
            table = file.read().select(_SCHEMA.names).cast(_SCHEMA)
            for batch in table.to_batches(max_chunksize=4096):
                for row in batch.to_pylist():
                    key = row.pop("key")
                    self._known[key] = _pack(Inspected(**row))
        except (StorageError, pa.ArrowException, KeyError, ValueError, struct.error) as error:
            _log.warning("%s is not usable (%s): its photos are read again", path, error)


def _key(role: str, seen: Sighting) -> bytes:
    return hashlib.sha256(repr((role, seen.uri, seen.size, seen.version)).encode(errors="surrogatepass")).digest()[:16]


def _pack(found: Inspected) -> bytes:
    kind, reading = _FORMATS.index(found.format), _READINGS.index(found.reading)
    return _PACKED.pack(bytes.fromhex(found.sha256), kind, found.width, found.height, reading)
