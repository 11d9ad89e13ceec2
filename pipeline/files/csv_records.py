"""CSV text to records: a record that cannot be read is one bad row and never affects the rest of the file.

A quoted cell may span lines, so one extra quote could swallow every line up to the next quote. A broken record (text
after a closing quote, a quote that never closes, or more characters than a row may have) therefore returns all its
lines except the first. The first line is a bad record. The following lines are read normally, with one exception: while
the first line's quote is open, a line that is no record by itself belongs to the bad record.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TextIO

from pipeline.files.rows import MAX_RECORD

_STRAY = 'has a quote inside a quoted cell: write "" for a quote there'
_OPEN = 'opens a quote that is not closed: close it, or write "" for a quote inside a quoted cell'
_LONG = f"is longer than {MAX_RECORD:,} characters: shorten its cells"
_REST = "may be the rest of the broken line above it: correct that line"


@dataclass(frozen=True)
class Record:
    """The cells of the lines `line` to `last`: none for a blank line; with a `fault`, those that could be read."""

    line: int
    cells: list[str]
    size: int
    fault: str | None
    last: int


class Lines:
    """Lines with their numbers and line ends, which can be returned; a line is cut one character after MAX_RECORD."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._number = 0
        self._returned: list[tuple[int, str]] = []

    def take(self) -> tuple[int, str] | None:
        """The next line, or None at the end."""
        if self._returned:
            return self._returned.pop()
        line = self._file.readline(MAX_RECORD + 1)
        if not line:
            return None
        rest = line
        while len(rest) > MAX_RECORD and not rest.endswith(("\n", "\r")):
            rest = self._file.readline(MAX_RECORD + 1)
        self._number += 1
        return self._number, line

    def give_back(self, lines: list[tuple[int, str]]) -> None:
        """Return lines that were taken; they are taken again in the same order."""
        self._returned.extend(reversed(lines))


def parse(
    line: str, delimiter: str, cells: list[str], inside: list[str] | None, *, lenient: bool = False
) -> tuple[list[str] | None, bool]:
    """Add the cells of one line to `cells`.

    Args:
        line: with its line end.
        delimiter: one character.
        cells: the record's cells so far; extended here.
        inside: pieces of a quoted cell that an earlier line opened.
        lenient: read a quote that ends no cell as a character.

    Returns:
        Pieces of a quoted cell that is still open, and whether text follows a closing quote (never if lenient).
    """
    body = line.rstrip("\r\n")
    if inside is None and '"' not in body:
        cells.extend(body.split(delimiter))
        return None, False
    place, end_of_body = 0, len(body)
    while True:
        if inside is None:
            if body.startswith('"', place):
                inside, place = [], place + 1
                continue
            end = body.find(delimiter, place)
            cells.append(body[place:] if end < 0 else body[place:end])
            if end < 0:
                return None, False
            place = end + 1
            continue
        end = body.find('"', place)
        if end < 0:
            inside.append(line[place:])
            return inside, False
        inside.append(body[place:end])
        place = end + 1
        if place == end_of_body or body.startswith(delimiter, place):
            cells.append("".join(inside))
            if place == end_of_body:
                return None, False
            inside, place = None, place + 1
        elif body[place] == '"' or lenient:
            inside.append('"')
            place += body[place] == '"'
        else:
            return inside, True


def read_record(lines: Lines, delimiter: str) -> tuple[Record, list[tuple[int, str]]] | None:
    """The next record by the plain rules of CSV, and its lines; None at the end."""
    taken = lines.take()
    if taken is None:
        return None
    number, line = taken
    cells: list[str] = []
    used, size = [taken], len(line)
    inside, stray = parse(line, delimiter, cells, None) if line.strip("\r\n") else (None, False)
    while inside is not None and not stray and size <= MAX_RECORD and (taken := lines.take()):
        used.append(taken)
        size += len(taken[1])
        inside, stray = parse(taken[1], delimiter, cells, inside)
    fault = _LONG if size > MAX_RECORD else _STRAY if stray else _OPEN if inside is not None else None
    return Record(number, cells, size, fault, used[-1][0]), used


def records(lines: Lines, delimiter: str, widths: range) -> Iterator[Record]:
    """Records to the end. One of another width than `widths` is no fault unless it swallowed a good line."""
    broken: Record | None = None  # its quote is still open
    while read := read_record(lines, delimiter):
        record, used = read
        first = used[0][1]
        if broken and _only_closes(first, delimiter):
            lines.give_back(used[1:])
            yield replace(broken, last=record.line)
            broken = None
        elif fault := record.fault or _swallowed(record, used, delimiter, widths):
            lines.give_back(used[1:])
            if broken:
                yield broken
            record, still_open = _first_line(replace(record, fault=fault, last=record.line), first, delimiter)
            broken = record if still_open else None
            if not still_open:
                yield record
        elif broken is None:
            yield record
        elif len(record.cells) in widths:
            yield broken
            broken = None
            yield replace(record, fault=_REST) if len(used) == 1 and _closes(first, delimiter) else record
        else:
            broken = replace(broken, last=record.last)
            if _closes(first, delimiter):
                yield broken
                broken = None
    if broken:
        yield broken


def _swallowed(record: Record, used: list[tuple[int, str]], delimiter: str, widths: range) -> str | None:
    """The fault of a record of a wrong width, if one of its later lines is a record by itself."""
    if len(used) == 1 or len(record.cells) in widths or max(widths) == 1:
        return None
    return _OPEN if any(_is_whole(line, delimiter, widths) for _, line in used[1:]) else None


def _first_line(record: Record, line: str, delimiter: str) -> tuple[Record, bool]:
    """A broken record with only the cells of its first line, and whether its quote is open at the end of that line."""
    cells: list[str] = []
    inside, _ = parse(line, delimiter, cells, None, lenient=True)
    if len(line) > MAX_RECORD:
        # The end of the line is unknown, and its last cell is the long one.
        cells = cells if inside is not None else cells[:-1]
        return replace(record, cells=cells, size=sum(map(len, cells))), False
    if inside is not None:
        cells.append("".join(inside).rstrip("\r\n"))
    return replace(record, cells=cells, size=len(line)), inside is not None


def _is_whole(line: str, delimiter: str, widths: range) -> bool:
    """Whether a line is a record of a correct width by itself, without a quote that may end an earlier line's cell."""
    cells: list[str] = []
    inside, stray = parse(line, delimiter, cells, None)
    return inside is None and not stray and len(cells) in widths and not _closes(line, delimiter)


def _closes(line: str, delimiter: str) -> bool:
    """Whether an unquoted cell holds a quote, which may end a cell that an earlier line opened."""
    body = line.rstrip("\r\n")
    if '"' not in body:
        return False
    border = re.escape(delimiter)
    plain = re.sub(rf'(^|{border})"(?:[^"]++|"")*+"(?={border}|$)', r"\1", body)
    return any('"' in cell and not cell.startswith('"') for cell in plain.split(delimiter))


def _only_closes(line: str, delimiter: str) -> bool:
    """Whether a line begins with the quote that ends an earlier line's cell."""
    body = line.rstrip("\r\n")
    return body == '"' or body.startswith(f'"{delimiter}')
