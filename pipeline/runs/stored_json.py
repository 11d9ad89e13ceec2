"""JSON files that a run writes: checked against their type when they are read."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from perfusion_ops.errors import PerfusionError

T = TypeVar("T")

_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})


class StoredJsonError(PerfusionError, ValueError):
    """The content is not what its type says; the message names the field."""


class NewerJsonError(StoredJsonError):
    """The content has a field that this version does not know."""


def decode(adapter: TypeAdapter[T], data: bytes) -> T:
    """The value that JSON text holds.

    Raises:
        NewerJsonError: the only fault is a field that this version does not know.
        StoredJsonError: the text is no JSON, a field is missing, or a value has the wrong type.
    """
    try:
        return adapter.validate_python(json.loads(data))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        other = [each for each in problems if each["type"] not in _UNKNOWN]
        first = (other or problems)[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        if other:
            raise StoredJsonError(f"{field}: {first['msg']}") from error
        raise NewerJsonError(f"the field {field!r} is unknown") from error
    except ValueError as error:  # JSON and UTF-8
        raise StoredJsonError(f"it is not JSON: {error}") from error
