"""JSON values without loss: a number that a double would round keeps all its digits, as text, at any depth.

JSON's numbers have no size limit, but almost every reader turns those with a point or an exponent into doubles. So 1.10
may become 1.1, while 1e400 and 0.1234567890123456789 have no equal double and stay text.
"""

import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from perfusion_ops.errors import PerfusionError
from pipeline.contract.messages import storable

_INT_DIGITS = 4_000  # Python refuses to read longer whole numbers


class RepeatedKeyError(PerfusionError, ValueError):
    """An object has a key twice; the message is the key."""


class _Spelt(float):
    """A number that keeps its characters in the file."""

    text: str


def json_value(text: str) -> object:
    """The value of a JSON text, or None if it is no JSON; its numbers keep their characters.

    Raises:
        RepeatedKeyError: an object in it has a key twice; taking one of both values would lose the other.
    """
    try:
        return json.loads(text, parse_float=_spelt, parse_int=_whole, object_pairs_hook=_unique)
    except RepeatedKeyError:
        raise
    except (ValueError, RecursionError):
        return None


def json_kind(value: object) -> str:
    """The kind of a value: bool, int, str, json (nested), float, or number if no double equals it."""
    match value:
        case _Spelt():
            return "float" if _exact(value) else "number"
        case float():  # NaN and Infinity, which some writers put into JSON
            return "number"
        case bool() | int() | str():
            return type(value).__name__
        case _:
            return "json"


def json_text(value: object) -> str | None:
    """A value for a text column: text unchanged, anything else as JSON; None for null."""
    if value is None:
        return None
    if isinstance(value, str):
        return storable(value)
    return storable("".join(_pieces(value)))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _spelt(text: str) -> _Spelt:
    number = _Spelt(text)
    number.text = text
    return number


def _whole(text: str) -> int | _Spelt:
    return int(text) if len(text) <= _INT_DIGITS else _spelt(text)


def _exact(number: _Spelt) -> bool:
    try:
        return Decimal(number.text) == Decimal(float.__repr__(number))
    except InvalidOperation:  # an exponent that Decimal refuses
        return False


class _Written(str):
    """Characters of the result, not a value."""

    __slots__ = ()


def _pieces(value: object) -> Iterator[str]:
    """The value as JSON. No recursion: the reader nests deeper than calls go."""
    left = [value]  # a stack: what comes first is last
    while left:
        match left.pop():
            case _Written() as written:
                yield written
            case _Spelt() as number:
                yield number.text
            case dict() as pairs:
                yield "{"
                left.append(_Written("}"))
                for place, (key, inner) in reversed(list(enumerate(pairs.items()))):
                    comma = ", " if place else ""
                    left += [inner, _Written(f"{comma}{json.dumps(key, ensure_ascii=False)}: ")]
            case list() as items:
                yield "["
                left.append(_Written("]"))
                for place, inner in reversed(list(enumerate(items))):
                    left += [inner, _Written(", " if place else "")]
            case other:
                yield json.dumps(other, ensure_ascii=False)
