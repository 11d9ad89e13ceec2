"""Rows of a CSV manifest in batches: finds the header and the delimiter, and skips what spreadsheets add."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.contract.errors import ManifestError
from pipeline.files.csv_records import Lines, Record, read_record, records
from pipeline.files.rows import Batch, Columns, ListText, Notice, Notices, check_names, check_required, chunked

_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SEP = re.compile(r'"?sep=(.)"?,*', re.IGNORECASE)  # Excel's own first line
_BOM = "\ufeff"

_EMPTY_ROWS = Notice("row", "of nothing but separators skipped", "fill a cell in where a row is meant")
_HEADERS = Notice("repeated header line", "skipped", "files were joined; nothing is lost")
_NAMELESS = Notice(
    "file", "with columns at the end that have neither a name nor a value, left out", "name what should be carried"
)
_COUNTER = Notice(
    "file", "whose first column has no name and only counts its rows, left out", "name the column to carry it through"
)
_BLANKS = Notice("file", "with blanks around column names, removed", "write the names without blanks")


@dataclass(frozen=True)
class _Header:
    """The header line: its delimiter and cells, the column names, and the index of the first named cell."""

    delimiter: str
    line: list[str]
    names: list[str]
    first: int

    @property
    def widths(self) -> range:
        return range(self.first + len(self.names), len(self.line) + 1)


def read_csv(path: Path, name: str, columns: Columns, notices: Notices) -> Iterator[Batch]:
    """The rows of the CSV file at `path`, called `name`.

    Raises:
        ManifestError: there is no header, or a column is missing, unnamed, duplicate or differs from another only by
            case.
        UnicodeDecodeError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = Lines(file)
        header = _read_header(lines, name, columns, notices)
        if header.first and not _counts(path, name, columns):
            raise ManifestError(f"column 1 of {name} has no name and does not count 0, 1, 2, ...: name it or remove it")
        extra = check_names(header.names, columns, name)
        check_required(header.names, columns, name)
        _tell(header, name, columns, notices)
        kinds = {column: {"text"} for column in extra}
        rows = _rows(records(lines, header.delimiter, header.widths), header, name, notices)
        for chunk in chunked(rows, lambda record: record.size):
            cells: list[dict[str, object]] = []
            broken: dict[int, str] = {}
            for index, record in enumerate(chunk):
                if fault := _fault(record, header, name):
                    broken[index] = fault
                row = record.cells[header.first :]
                cells.append({column: cell or None for column, cell in zip(header.names, row, strict=False)})
            table = pa.table({column: pa.array([row.get(column) for row in cells], pa.string()) for column in extra})
            known = [
                {column: _from_text(column, cell, columns) for column, cell in row.items() if column in columns.known}
                for row in cells
            ]
            yield Batch(known, broken, table, kinds)


def _read_header(lines: Lines, name: str, columns: Columns, notices: Notices) -> _Header:
    """The header, split by the delimiter that yields the required columns.

    Raises:
        ManifestError: there is none.
    """
    while taken := lines.take():
        text = taken[1].strip().strip(",;|")
        if text:
            break
    else:
        raise ManifestError(f"{name} is empty: write a header line and rows")
    said = _SEP.fullmatch(taken[1].rstrip("\r\n"))
    order = ("\t", ",", ";", "|") if name.lower().endswith(".tsv") else (",", ";", "\t", "|")
    if said:
        order = (said[1],)
    else:
        lines.give_back([taken])
    tried = []
    for delimiter in order:
        read = read_record(lines, delimiter)
        if read is None:
            raise ManifestError(f"{name} is empty: write a header line and rows")
        record, used = read
        tried.append((record, delimiter))
        if record.fault is None and columns.required <= {cell.strip() for cell in record.cells}:
            break
        lines.give_back(used)
    else:
        record, delimiter = tried[0]
        read_record(lines, delimiter)
    if record.fault:
        raise ManifestError(f"line {record.line} of {name}, the header, {record.fault}")
    if delimiter != order[0] or (said and delimiter != ","):
        words = _DELIMITERS.get(delimiter, repr(delimiter))
        shown = f"read with {words} between cells, as the first line shows"
        notices.add(Notice("file", shown, "correct that line if this is wrong"), name)
    return _named(record.cells, delimiter, columns)


def _named(line: list[str], delimiter: str, columns: Columns) -> _Header:
    """A header without unnamed columns at its ends; blanks around names are removed if required names need it."""
    names = list(line)
    while len(names) > 1 and not names[-1].strip():
        names.pop()
    first = int(len(names) > 1 and not names[0].strip())
    names = names[first:]
    if not columns.required <= set(names):
        names = [column.strip() for column in names]
    return _Header(delimiter, line, names, first)


def _tell(header: _Header, name: str, columns: Columns, notices: Notices) -> None:
    end = header.first + len(header.names)
    if header.first:
        notices.add(_COUNTER, name)
    if len(header.line) > end:
        notices.add(_NAMELESS, name)
    if header.line[header.first : end] != header.names:
        notices.add(_BLANKS, name)
    for column in header.names:
        if column not in columns.known and column.strip() in columns.known:
            what = f"with the column {column!r}, carried through, whose name differs from a known one by blanks"
            notices.add(Notice("file", what, "remove the blanks to have it used"), name)


def _counts(path: Path, name: str, columns: Columns) -> bool:
    """Whether the first cells count from 0, like an index of pandas, or from 1, like row numbers of R."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = Lines(file)
        header = _read_header(lines, name, columns, Notices())
        rows = _rows(records(lines, header.delimiter, header.widths), header, name, Notices())
        firsts = (None if record.fault else record.cells[0] for record in rows)
        fitting = {0, 1}
        for number, first in enumerate(firsts):
            if first is not None:
                fitting = {start for start in fitting if first == str(start + number)}
            if not fitting:
                return False
    return True


def _rows(found: Iterator[Record], header: _Header, name: str, notices: Notices) -> Iterator[Record]:
    """Records that are rows: neither empty nor a repeated header line."""
    for record in found:
        cells = record.cells
        if record.fault is None and not cells:
            continue
        if record.fault is None and len(header.line) > 1 and not any(cell.strip() for cell in cells):
            notices.add(_EMPTY_ROWS, name)
        elif record.fault is None and [cells[0].removeprefix(_BOM), *cells[1:]] == header.line:
            notices.add(_HEADERS, name)
        else:
            yield record


def _fault(record: Record, header: _Header, name: str) -> str | None:
    """Why a record is not a valid row; None if it is one."""
    where = f"line {record.line} of {name}"
    if record.fault:
        left_out = f"; what follows up to line {record.last} belongs to it" if record.last > record.line else ""
        return f"{where} {record.fault}{left_out}"
    width = header.first + len(header.names)
    cells = record.cells
    if len(cells) not in header.widths:
        words = _DELIMITERS.get(header.delimiter, repr(header.delimiter))
        count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        return f"{where} has {count}, the header {width}: quote cells with {words}"
    for number, cell in enumerate(cells[width:], width + 1):
        if cell.strip():
            return f"{where} has a value in column {number}, which has no name: name the column or clear the cell"
    return None


def _from_text(column: str, cell: object, columns: Columns) -> object:
    """The value of a CSV cell by its column; invalid text stays text, which the column's check refuses."""
    if not isinstance(cell, str):
        return cell
    if column in columns.lists:
        return ListText(cell)
    if column in columns.numbers:
        if _INTEGER.fullmatch(cell.strip()):
            return int(cell) if len(cell) < 4000 else cell
        if _REAL.fullmatch(cell.strip()):
            return float(cell)
    return cell
