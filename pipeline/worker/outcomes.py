"""Outcomes of a worker's tasks, before the worker adds who made them, when, and how long it took."""

from pipeline.contract.errors import Code, Origin, RowError, Status
from pipeline.contract.keys import digest
from pipeline.contract.messages import clip
from pipeline.contract.units import MESSAGE_BYTES, Kind, Outcome
from pipeline.storage.objects import StorageError


def ok(kind: Kind, key: str, uri: str, data: bytes, *, loss: float | None = None) -> Outcome:
    """The outcome of a task whose object at `uri` has the bytes `data`."""
    origin = Origin.TRAINED if kind == "concept" else Origin.RENDERED
    return Outcome(kind, key, Status.OK, origin=origin, uri=uri, sha256=digest(data), bytes=len(data), loss=loss)


def failed(kind: Kind, key: str, error: RowError | StorageError) -> Outcome:
    """The outcome of a task that an error ended."""
    message = clip(str(error), MESSAGE_BYTES)
    if isinstance(error, RowError):
        return Outcome(kind, key, error.status, error.code, message, column_name=error.column)
    return Outcome(kind, key, Status.FAILED, Code.STORAGE, message)
