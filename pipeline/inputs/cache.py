"""What was found out about input pictures before, so that a nightly plan does not read every photo again.

A picture is recognised by (role, address, bytes, version), where the version is what the storage itself says: an etag,
or a time of change. Only good pictures are remembered; a bad one is looked at again each time. What is remembered lies
in `cache/inputs-<digest>.parquet` objects: added, never changed, all read on opening, so that planners on several
machines need no lock. One that cannot be read is logged and left alone; its pictures are read again. So are those of a
file by an earlier version, which does not say how their pixels are read.
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
_SETTLED_S = 2.0  # a file this young may be written again within the resolution of its time of change

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sighting:
    """What a storage says of an object without opening it; `changed_at` (Unix seconds) when `version` is a time."""

    uri: str
    size: int
    version: str | None
    changed_at: float | None = None


class InputCache:
    """Remembered inspections, about 250 bytes of memory each; threads may share it, `save` is for one of them."""

    def __init__(self, storage: Storage) -> None:
        """Load what is remembered under a root.

        Raises:
            StorageError: when the folder cannot be listed.
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
        """What is remembered of this very version of a picture; `role` is "image" or "mask"."""
        packed = self._known.get(_key(role, seen)) if seen.version else None
        if packed is None:
            return None
        sha256, kind, width, height, reading = _PACKED.unpack(packed)
        return Inspected(sha256.hex(), _FORMATS[kind], width, height, _READINGS[reading])

    def put(self, role: str, seen: Sighting, found: Inspected) -> None:
        """Remember a good picture, unless the storage gives no version or it changed so lately that it may again."""
        if not seen.version or (seen.changed_at is not None and time.time() - seen.changed_at < _SETTLED_S):
            return
        key = _key(role, seen)
        self._new[key] = found
        self._known[key] = _pack(found)

    def save(self) -> None:
        """Write what was learnt since loading as one more object; nothing is written when nothing was learnt."""
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
            _log.warning("%s is not usable (%s): the pictures it remembers are read again", path, error)


def _key(role: str, seen: Sighting) -> bytes:
    return hashlib.sha256(repr((role, seen.uri, seen.size, seen.version)).encode(errors="surrogatepass")).digest()[:16]


def _pack(found: Inspected) -> bytes:
    kind, reading = _FORMATS.index(found.format), _READINGS.index(found.reading)
    return _PACKED.pack(bytes.fromhex(found.sha256), kind, found.width, found.height, reading)
