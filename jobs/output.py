"""What commands print: results on stdout, as text for people or one JSON object; exit codes; errors as sentences."""

import dataclasses
import enum
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pipeline.storage import Storage

OK, CRASH, USAGE, FAILED_ROWS, STOPPED = 0, 1, 2, 3, 4


def say(text: str = "") -> None:
    """One line for people on stdout."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")


def complain(text: str) -> None:
    """A sentence on stderr."""
    sys.stderr.write(f"perfusion: {text}\n")


def plain(value: Any) -> Any:
    """Dataclasses, enumerations, times and paths as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    match value:
        case enum.Enum():
            return value.value
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case datetime() | date():
            return value.isoformat()
        case bytes():
            return value.hex()
        case _:
            return str(value) if isinstance(value, Path) else value


def table(title: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people on stdout; on a pipe it is as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(*names, title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for row in rows:
        grid.add_row(*["" if cell is None else str(cell) for cell in row])
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=max(console.measure(grid).maximum, 80))
    console.print(grid)


def storage_of(target: str) -> Storage:
    """The storage that a root or a spec file names."""
    from jobs.spec import SUFFIXES, load_spec

    if target.endswith(SUFFIXES) and Path(target).is_file():
        settings = load_spec(target)
        return Storage(settings.root, settings.storage_options or None)
    return Storage(target)
