"""Shared by all manifest formats: the meaning of columns, batches of rows, and notices.

Rows are streamed in batches of bounded size, so memory does not grow with the size of a file or of its rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from pipeline.contract.errors import ManifestError
from pipeline.contract.messages import storable

T = TypeVar("T")

BATCH_ROWS = 4096
BATCH_BYTES = 16 * 2**20
MAX_RECORD = 16 * 2**20  # characters of one row of CSV or JSON lines
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Columns:
    """What a manifest's columns mean.

    Attributes:
        known: names that this program reads; all others are extra columns.
        required: known names that a file must have.
        numbers: known names whose text in CSV is read as a number.
        lists: known names whose text in CSV is read as a list.
    """

    known: frozenset[str]
    required: frozenset[str]
    numbers: frozenset[str]
    lists: frozenset[str]


@dataclass(frozen=True)
class ListText:
    """A CSV cell of a column of lists, not yet split into its items."""

    text: str


@dataclass(frozen=True)
class Batch:
    """Some rows.

    Attributes:
        cells: known cells by name, one mapping per row.
        broken: messages for rows that could not be read, by index.
        extra: the extra columns.
        kinds: kinds of JSON value in each text column of `extra` ("text" for CSV). Columns of Parquet have their own
            types and are not listed.
    """

    cells: list[dict[str, object]]
    broken: dict[int, str]
    extra: pa.Table
    kinds: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """One kind of notice: what is counted (a noun in the singular), what happened to it, what to do if that is wrong.

    The noun must form its plural with an s.
    """

    noun: str
    happened: str
    remedy: str


class Notices:
    """Collects what was skipped or assumed while a manifest is read; `messages` has one message per kind."""

    def __init__(self, top: str = "") -> None:
        """Start empty; file names are shown relative to the folder `top`."""
        self._top = top
        self._counts: dict[Notice, Counter[str]] = {}

    def add(self, notice: Notice, where: str, count: int = 1) -> None:
        """Count `count` more of a kind in the file named `where`."""
        if count:
            self._counts.setdefault(notice, Counter())[where] += count

    def messages(self, uri: str) -> tuple[str, ...]:
        """One message per kind, beginning with the manifest's `uri`, in the order of first occurrence."""
        found = []
        for notice, counts in self._counts.items():
            total = counts.total()
            names = _listed([name.removeprefix(self._top).lstrip("/") for name in counts])
            found.append(
                f"{uri}: {total:,} {notice.noun}{'' if total == 1 else 's'} {notice.happened} ({names}): "
                f"{notice.remedy}"
            )
        return tuple(found)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return storable(", ".join(names[:_NAMES_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def chunked(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """`items` in lists of at most BATCH_ROWS; a list ends as soon as the sum of its sizes reaches BATCH_BYTES."""
    chunk: list[T] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += size(item)
        if len(chunk) >= BATCH_ROWS or held >= BATCH_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def check_names(names: list[str], columns: Columns, name: str) -> list[str]:
    """Check a file's column names and return those of extra columns.

    Raises:
        ManifestError: a name is empty, duplicate, or differs from another only by case.
    """
    seen = {known.lower(): known for known in columns.known}
    extra = []
    for number, column in enumerate(names, 1):
        if not column.strip() or storable(column) != column or any(ord(character) < 32 for character in column):
            raise ManifestError(f"column {number} of {name} has the name {column!r}: give it a plain name")
        if names.count(column) > 1:
            raise ManifestError(f"{name} has the column {column!r} more than once: rename or remove one")
        if seen.setdefault(column.lower(), column) != column:
            raise ManifestError(
                f"column {column!r} of {name} differs from {seen[column.lower()]!r} only by case: rename it"
            )
        if column not in columns.known:
            extra.append(column)
    return extra


def check_required(names: list[str], columns: Columns, name: str) -> None:
    """Refuse a file that lacks a required column.

    Raises:
        ManifestError: names the missing and the present columns.
    """
    if missing := sorted(columns.required.difference(names)):
        raise ManifestError(
            f"{name} has no column {', '.join(map(repr, missing))} (it has {', '.join(map(repr, names[:20]))}): "
            "add it or rename one"
        )
