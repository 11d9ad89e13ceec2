"""JSON values without loss: a number that a double would round keeps all its digits, as text.

JSON's numbers have no size limit, but almost every reader turns those with a point or an exponent into doubles. So 1.10
may become 1.1, while 1e400 and 0.1234567890123456789 have no equal double and stay text.
"""

import json
from decimal import Decimal, InvalidOperation

from pipeline.contract.messages import storable

_INT_DIGITS = 4_000  # Python refuses to read longer whole numbers


class _Spelt(float):
    """A number that keeps its characters in the file."""

    text: str


def json_value(text: str) -> object:
    """The value of a JSON text, or None if it is no JSON; its numbers keep their characters."""
    try:
        return json.loads(text, parse_float=_spelt, parse_int=_whole)
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
    try:
        return storable(_dumped(value))
    except RecursionError:
        # The library allows deeper nesting than `_dumped`, but rounds the numbers of such a value.
        return storable(json.dumps(value, ensure_ascii=False))


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


def _dumped(value: object) -> str:
    if isinstance(value, _Spelt):
        return value.text
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key, ensure_ascii=False)}: {_dumped(inner)}" for key, inner in value.items()]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([_dumped(inner) for inner in value]) + "]"
    return json.dumps(value, ensure_ascii=False)
