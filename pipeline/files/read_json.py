"""Rows of JSON lines in batches: a line that is no object is one bad row; another notation is refused."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from pipeline.contract.errors import ManifestError
from pipeline.contract.messages import show
from pipeline.files.json_values import RepeatedKeyError, json_kind, json_text, json_value
from pipeline.files.rows import MAX_RECORD, Batch, Columns, Notices, check_names, check_required, chunked


def read_json_lines(path: Path, name: str, columns: Columns, notices: Notices) -> Iterator[Batch]:  # noqa: ARG001
    """The rows of the file of JSON lines at `path`, called `name`.

    Raises:
        ManifestError: the file is a JSON array or a document of several lines, or a column is missing, unnamed or
            differs from another only by case.
        UnicodeDecodeError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    met: dict[str, None] = {}
    fault: str | None = None
    with path.open(encoding="utf-8-sig") as file:
        lines = _lines(file)
        first = list(islice(lines, 2))
        if not first:
            return
        _check_notation([line for _, line in first], name)
        for chunk in chunked(chain(first, lines), lambda numbered: len(numbered[1])):
            rows: list[dict[str, object]] = []
            broken: dict[int, str] = {}
            for index, (number, line) in enumerate(chunk):
                row = None if len(line) > MAX_RECORD else _json_object(line)
                if row is None:
                    broken[index] = f"line {number} of {name} {_fault(line)}"
                rows.append(row or {})
            met.update(dict.fromkeys(column for row in rows for column in row))
            fault = fault or next(iter(broken.values()), None)
            extra = check_names(list(met), columns, name)
            kinds = {each: {json_kind(row[each]) for row in rows if row.get(each) is not None} for each in extra}
            text = {column: pa.array([json_text(row.get(column)) for row in rows], pa.string()) for column in extra}
            known = [{column: cell for column, cell in row.items() if column in columns.known} for row in rows]
            yield Batch(known, broken, pa.table(text), kinds)
    if fault and not met:
        raise ManifestError(f"{name} holds no JSON object: {fault}")
    check_required(list(met), columns, name)


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; a line is cut one character after MAX_RECORD."""
    number = 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        rest = line
        while len(rest) > MAX_RECORD and not rest.endswith("\n"):
            rest = file.readline(MAX_RECORD + 1)
        if line.strip():
            yield number, line


def _check_notation(first: list[str], name: str) -> None:
    """Refuse a JSON array, or an object over several lines, by the first two lines of the file."""
    start = first[0].strip()
    if start.startswith("[") and _is_array_of_objects(start):
        raise ManifestError(
            f"{name} is a JSON array, not JSON lines: write one object a line, for example with jq -c '.[]'"
        )
    if start == "{" and (len(first) < 2 or _json_object(first[1]) is None):
        raise ManifestError(
            f"{name} has a JSON object over several lines, not JSON lines: write one object a line, "
            "for example with jq -c ."
        )


def _is_array_of_objects(line: str) -> bool:
    """Whether the line is a JSON array of objects, the beginning of an array, or the empty array."""
    try:
        values = json_value(line)
    except RepeatedKeyError:
        return True
    return not values or (isinstance(values, list) and all(isinstance(value, dict) for value in values))


def _json_object(line: str) -> dict[str, object] | None:
    try:
        row = json_value(line)
    except RepeatedKeyError:
        return None
    return row if isinstance(row, dict) else None


def _fault(line: str) -> str:
    if len(line) > MAX_RECORD:
        return f"is longer than {MAX_RECORD:,} characters: shorten its values"
    if line.rstrip().endswith(",") and _json_object(line.rstrip().removesuffix(",")) is not None:
        return "ends with a comma: remove it, because JSON lines have none between objects"
    try:
        json_value(line)
    except RepeatedKeyError as error:
        return f"has the key {show(str(error))} twice in one object: remove one"
    return f"is no JSON object ({show(line[:60])}): correct it"
