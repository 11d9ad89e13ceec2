"""What commands print: results on stdout, as text or JSON; messages on stderr; exit codes."""

import dataclasses
import enum
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import typer

from jobs.logs.json_log import installed
from perfusion_ops.errors import PerfusionError

OK, CRASH, USAGE, FAILED_ROWS, STOPPED, INTERRUPTED = 0, 1, 2, 3, 4, 130
_NUMBER = re.compile(r"-?[0-9][0-9,]*(\.[0-9]+)?(e[+-]?[0-9]+)?")


def say(text: str = "") -> None:
    """Print one line of text on stdout."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json_text(value) + "\n")


def complain(text: str) -> None:
    """Print a message on stderr."""
    if log := installed():
        log.tell("message", text)
    else:
        sys.stderr.write(f"perfusion: {text}\n")


def fail(error: PerfusionError) -> NoReturn:
    """End the command with an error's message on stderr and its exit code."""
    if log := installed():
        log.tell("error", str(error), logging.ERROR, type=type(error).__name__, exit_code=error.exit_code)
    else:
        for line in str(error).splitlines():
            complain(line)
    raise SystemExit(error.exit_code)


def tell_notices(notices: Iterable[str]) -> None:
    """Print on stderr what was skipped or assumed in the manifests."""
    for notice in notices:
        complain(notice)


def refuse(text: str) -> NoReturn:
    """End the command with a message on stderr and the exit code for wrong usage."""
    if log := installed():
        log.tell("error", text, logging.ERROR, type="UsageError", exit_code=USAGE)
    else:
        complain(text)
    raise typer.Exit(USAGE)


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """In this block, a folder that cannot be written to ends the command with a message."""
    try:
        yield
    except OSError as error:
        refuse(f"{folder} cannot be written to: {error.strerror or error}; choose another folder")


def plain(value: Any) -> Any:
    """The value in the types of JSON. A Decimal is a number; a value that JSON has no type for becomes text."""
    match value:
        case None | bool() | int() | str() if not isinstance(value, enum.Enum):
            known = value
        case float() if math.isfinite(value):
            known = value
        case Decimal() if value.is_finite():
            known = value  # a number of JSON has any number of digits
        case enum.Enum():
            known = value.value
        case dict():
            known = {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            known = [plain(inner) for inner in value]
        case datetime() | date() | time():
            known = value.isoformat()
        case bytes():
            known = value.hex()
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            known = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            known = str(value)
    return known


def _dumped(value: Any) -> str:
    """A result of `plain` as JSON text; the library would round a Decimal."""
    match value:
        case Decimal():
            text = format(value, "f")
        case dict():
            text = "{" + ", ".join(f"{_dumped(key)}: {_dumped(inner)}" for key, inner in value.items()) + "}"
        case list():
            text = "[" + ", ".join(map(_dumped, value)) + "]"
        case _:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text


def json_text(value: Any) -> str:
    """The value as JSON on one line."""
    return _dumped(plain(value))


def cell(value: Any) -> str:
    """The value as text in a table. A list has `;` between its elements, as in a CSV manifest."""
    match plain(value):
        case None:
            return ""
        case bool() as truth:
            return str(truth).lower()
        case float() as number:
            return f"{number:.6g}"
        case list() as elements if not any(isinstance(element, list | dict) for element in elements):
            return ";".join(map(cell, elements))
        case Decimal() as number:
            return format(number, "f")
        case list() | dict() as nested:
            return _dumped(nested)
        case other:
            return str(other)


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as text with at most two units, such as `2 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def location(uri: str) -> str:
    """A local URI or path, relative to the current folder if it lies below it; any other location unchanged.

    In the root of the filesystem, where services run, a path stays absolute.
    """
    path = uri.removeprefix("file://")
    if not path.startswith("/"):
        return uri
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if here.name and Path(path).is_relative_to(here) else path


def table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows on stdout as a table with right-aligned numbers, or as blocks of lines if the terminal is too narrow.

    Args:
        names: names of the columns.
        rows: cells of any type, printed by `cell`.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    heads = [_printable(name) for name in names]
    texts = [[_printable(cell(value)) for value in row] for row in rows]
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, head in enumerate(heads):
        numeric = bool(texts) and all(_NUMBER.fullmatch(row[index]) for row in texts if row[index])
        grid.add_column(Text(head), justify="right" if numeric else "left", no_wrap=True)
    for row in texts:
        grid.add_row(*map(Text, row))
    console = Console(highlight=False)
    widest = Measurement.get(console, console.options.update(max_width=1_000_000), grid).maximum
    if not console.is_terminal or widest <= console.width:
        Console(highlight=False, width=max(widest, 1)).print(grid)
        return
    width = max(map(len, heads))
    for number, row in enumerate(texts, start=1):
        console.print(Text(f"row {number}", style="bold"))
        for head, text in zip(heads, row, strict=True):
            console.print(Text(f"  {head:{width}}  {text}"), soft_wrap=True)


def _printable(text: str) -> str:
    """Text with its control characters escaped: a line break would break the table, others the terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
