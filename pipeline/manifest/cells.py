"""Checks of manifest cells, one per column: a value of the right type and range, or a `RowError` with the remedy.

A check takes the column's name and a cell and returns the value to keep; it never changes a cell's meaning. `RowReader`
runs the checks of one row and collects all problems in the order of the checks.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from perfusion_ops.config import TrainingConfig, scheduler_name
from pipeline.contract.errors import Code, RowError, RowProblem
from pipeline.contract.messages import show
from pipeline.contract.placeholders import COLUMN_PREFIX, PLACEHOLDER

Check = Callable[[str, object], Any]

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_TEXT = 2_000  # characters of a prompt, a negative prompt or a where expression
MAX_SUPERCLASS = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_BRACES = re.compile(PLACEHOLDER)


# What a setting must be, by the type of pydantic's error, whose own message changes with its version.
_WANTED = {
    "extra_forbidden": "there is no such setting",
    "int_type": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be true or false",
    "string_type": "it must be text",
    "finite_number": "it must be a finite number",
    "literal_error": "it must be {expected}",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
}


class RowReader:
    """Runs checks over one row's cells; a cell that fails becomes a problem and reads as None."""

    def __init__(self, cells: Mapping[str, object]) -> None:
        self._cells = cells
        self.problems: list[RowProblem] = []

    def read(self, column: str, check: Check) -> Any:
        """The checked value of a cell; a missing column reads as a null cell."""
        try:
            return check(column, self._cells.get(column))
        except RowError as error:
            self.problems.append(RowProblem(error.code, column, str(error)))
            return None


def optional(check: Check) -> Check:
    """The same check, but a null cell is None."""
    return lambda column, value: None if value is None else check(column, value)


def required(check: Check) -> Check:
    """The same check, but a null cell is MISSING_VALUE."""

    def checked(column: str, value: object) -> Any:
        if value is None:
            raise RowError(Code.MISSING_VALUE, f"{column} has no value: fill it in")
        return check(column, value)

    return checked


def text(limit: int = MAX_TEXT) -> Check:
    """Text without control characters, at most `limit` characters."""

    def checked(column: str, value: object) -> str:
        if not isinstance(value, str):
            raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: it must be text (UTF-8)")
        if found := _CONTROL.search(value):
            raise RowError(
                Code.BAD_CHARACTER,
                f"{column} holds the control character U+{ord(found[0]):04X} at position {found.start() + 1}: "
                "remove it",
            )
        if len(value) > limit:
            raise RowError(Code.TEXT_TOO_LONG, f"{column} has {len(value):,} characters: shorten it to {limit:,}")
        return value

    return checked


def identifier(column: str, value: object) -> str:
    """A concept id: matches `ID` and is not 'product'."""
    if not isinstance(value, str):
        raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: it must be text")
    if not ID.fullmatch(value):
        raise RowError(
            Code.BAD_ID,
            f"{column} is {show(value)}: use 1 to 128 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
    if value == "product":
        raise RowError(Code.BAD_ID, "concept_id is 'product', but {product} in a prompt means every product: rename it")
    return value


def superclass(column: str, value: object) -> str:
    """One or more words, normalised to single blanks between them."""
    words = text(MAX_SUPERCLASS)(column, value)
    if not words.strip():
        raise RowError(
            Code.EMPTY_SUPERCLASS, f"{column} is empty: name the kind of thing in a word or two, such as 'mug'"
        )
    if "{" in words or "}" in words:
        raise RowError(Code.BAD_CHARACTER, f"{column} is {show(words)}: braces mark placeholders; remove them")
    return " ".join(words.split())


def placeholders(template: str) -> tuple[str, ...]:
    """Names in braces, in order and with repetitions.

    Raises:
        RowError: BAD_PLACEHOLDER for a lone brace or a name that is neither `product`, `product.` and the name of a
            column, nor an id.
    """
    for name in _BRACES.findall(template):
        if not ID.fullmatch(name) and not name.startswith(COLUMN_PREFIX):
            raise RowError(
                Code.BAD_PLACEHOLDER,
                f"the placeholder {show('{' + name + '}')} is neither {{product}} nor {{product.column}} nor an id: "
                "correct it",
            )
    rest = _BRACES.sub("", template)
    if "{" in rest or "}" in rest:
        raise RowError(
            Code.BAD_PLACEHOLDER,
            f"{show(template)} has an unpaired brace: write {{product}} or {{concept-id}}",
        )
    return tuple(_BRACES.findall(template))


def prompt(column: str, value: object) -> str:
    """A prompt with at least one placeholder."""
    words = text()(column, value)
    if not words.strip():
        raise RowError(Code.EMPTY_PROMPT, f"{column} is empty: write what to show, such as 'a photo of a {{product}}'")
    if not placeholders(words):
        raise RowError(Code.NO_PLACEHOLDER, f"{column} is {show(words)}: put {{product}} or a {{concept-id}} into it")
    return words


def negative_prompt(column: str, value: object) -> str:
    """A negative prompt: may be empty, and may have placeholders."""
    words = text()(column, value)
    placeholders(words)
    return words


def whole(low: int, high: int, multiple: int = 1) -> Check:
    """A whole number in [low, high] and a multiple of `multiple`; a float without a fraction counts as whole."""

    def checked(column: str, value: object) -> int:
        number = _number(column, value)
        if number != int(number):
            raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: it must be a whole number")
        if not low <= number <= high or int(number) % multiple:
            steps = f" and be a multiple of {multiple}" if multiple > 1 else ""
            raise RowError(Code.OUT_OF_RANGE, f"{column} is {show(value)}: it must lie between {low} and {high}{steps}")
        return int(number)

    return checked


def real(low: float, high: float, *, above: bool = False) -> Check:
    """A finite number in [low, high]; in (low, high] with `above`."""

    def checked(column: str, value: object) -> float:
        number = _number(column, value)
        if not low <= number <= high or (above and number == low):
            between = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
            raise RowError(Code.OUT_OF_RANGE, f"{column} is {show(value)}: it must lie {between}")
        return float(number)

    return checked


def setting(model: type[BaseModel], field: str, *, multiple: int = 1) -> Check:
    """The check of one field of a settings model, by the bounds or choices of the model."""
    info = model.model_fields[field]
    low, high = _bound(info, "ge", "gt"), _bound(info, "le")
    if low is None or high is None:
        return choice(get_args(info.annotation))
    if info.annotation is float:
        return real(low, high, above=_bound(info, "gt") is not None)
    return whole(low, high, multiple)


def _bound(info: FieldInfo, *names: str) -> Any:
    return next((getattr(mark, name) for mark in info.metadata for name in names if hasattr(mark, name)), None)


def scheduler(column: str, value: object) -> str:
    """A scheduler in any spelling, as `perfusion_ops.config.scheduler_name` reads it."""
    if not isinstance(value, str):
        raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: it must be text")
    try:
        return scheduler_name(value)
    except ValueError as error:
        raise RowError(Code.OUT_OF_RANGE, f"{column}: {error}") from None


def choice(options: tuple[str, ...]) -> Check:
    """One of a few words."""

    def checked(column: str, value: object) -> str:
        if not isinstance(value, str):
            raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: it must be one of {', '.join(options)}")
        if value not in options:
            raise RowError(Code.OUT_OF_RANGE, f"{column} is {show(value)}: it must be one of {', '.join(options)}")
        return value

    return checked


def overrides(column: str, value: object) -> str | None:
    """A row's overrides of TrainingConfig (a mapping or JSON) as canonical JSON without nulls; None without any."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(
                Code.BAD_TRAIN_OVERRIDE,
                f'{column} is {show(value)}: it is not a JSON object; write {{"steps": 400}}',
            ) from None
    if not isinstance(value, Mapping):
        raise RowError(Code.BAD_TRAIN_OVERRIDE, f"{column} is {show(value)}: it must be a struct or a JSON object")
    given = {str(key): item for key, item in value.items() if item is not None}
    try:
        checked = TrainingConfig.model_validate(given, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        remedy = (
            f"the settings are {', '.join(TrainingConfig.model_fields)}"
            if first["type"] == "extra_forbidden"
            else "correct it"
        )
        wanted = _WANTED.get(first["type"], "not a value of this setting").format(**first.get("ctx", {}))
        raise RowError(
            Code.BAD_TRAIN_OVERRIDE, f"{column}.{name} is {show(first['input'])}: {wanted}; {remedy}"
        ) from None
    return json.dumps(checked.model_dump(include=set(given)), sort_keys=True) if given else None


def _number(column: str, value: object) -> int | float | Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: it must be a number")
    if not isinstance(value, int) and not math.isfinite(value):
        raise RowError(Code.NOT_FINITE, f"{column} is {show(value)}: give a finite number or leave the cell null")
    return value
