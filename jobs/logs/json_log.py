"""One JSON object per line on stderr, for log collectors: `perfusion --log json` or PERFUSION_LOG=json.

It is a handler of the standard `logging` module. While it is installed, stderr is a stream that turns every line which
other software writes into an object of its own, so that each line of the log parses. What native code writes to the
file descriptor is not seen.
"""

import io
import json
import logging
import re
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

_log = logging.getLogger(__name__)
_OURS = "perfusion_fields"  # attribute of our own records; others are warnings of modules and libraries
_EXTRAS = ("slot", "unit", "key")  # what modules may add to a warning with `extra`
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_BREAK = re.compile(r"\r\n|\n|\r")
# Addresses may hold secrets: a signature or a token in the query, or a password before the host.
_QUERY = re.compile(r"(?<=[?&])([\w.~%-]+)=[^\s&'\")]+")
_PASSWORD = re.compile(r"(\bhttps?://)[^\s/@]+@|(://)[^\s/@:]*:[^\s/@]*@")  # abfs://container@account is no secret


def without_secrets(text: str) -> str:
    """A text with the values in the queries of its addresses, and the passwords before their hosts, replaced by `…`."""
    return _PASSWORD.sub(r"\1\2…@", _QUERY.sub(r"\1=…", text))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; `always` has fields of every line."""

    def __init__(self) -> None:
        super().__init__()
        self.always: dict[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII, without its end."""
        fields = getattr(record, _OURS, None)
        if fields is None:
            fields = {"event": "log", "logger": record.name}
            fields |= {name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": fields["event"],
            "message": _message(record),
            **self.always,
            **fields,
        }
        if record.exc_info and record.exc_info[1]:
            line["trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(_clean(line), default=str)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit the text, in a library
        return f"{record.msg} {record.args!r}"


def _clean(value: Any) -> Any:
    match value:
        case str():
            return without_secrets(value)
        case dict():
            return {str(name): _clean(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_clean(inner) for inner in value]
        case _:
            return value


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the real stderr. A failure to write is dropped: stderr, where it would be told, is this handler."""

    def __init__(self, stream: TextIO, log: "JsonLog") -> None:
        super().__init__(stream)
        self.log = log

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name that `logging` calls)
        """Drop the record."""


class JsonLog(AbstractContextManager["JsonLog"]):
    """Within the block, everything that is logged or written to stderr is a JSON line; the last one is `end`."""

    def __init__(self, stream: TextIO) -> None:
        """Nothing happens before the block is entered.

        Args:
            stream: where the lines go: stderr.
        """
        self._formatter = JsonFormatter()
        self._handler = _Handler(stream, self)
        self._handler.setFormatter(self._formatter)
        self._lines = _Lines(self, stream)
        self._before: TextIO = stream
        self._began = time.monotonic()
        self._published: dict[str, Any] = {}

    def tell(self, event: str, message: str, level: int = logging.INFO, **fields: Any) -> None:
        """Write one line; `jobs.logs.events` has the events and their fields."""
        _log.log(level, "%s", message, extra={_OURS: {"event": event, **fields}})

    def name(self, **fields: Any) -> None:
        """From now on every line has these fields too: run_id and lease."""
        self._formatter.always |= fields

    def published(self, statuses: dict[str, dict[str, int]], codes: dict[str, dict[str, int]]) -> None:
        """Take the counts of published rows for the last line."""
        self._published = {"statuses": statuses, "codes": codes}

    def __enter__(self) -> Self:
        self._before, sys.stderr = sys.stderr, self._lines
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(capture=True)
        _log.setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code: object = 0
        if isinstance(error, SystemExit):
            code = error.code or 0
        elif error is not None:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            text = "".join(traceback.format_exception(error))
            name, message = type(error).__name__, str(error)
            self.tell("error", message, logging.CRITICAL, type=name, exit_code=code, trace=text)
        self._lines.end()
        seconds = round(time.monotonic() - self._began, 3)
        self.tell("end", f"exit code {code}", exit_code=code, seconds=seconds, **self._published)
        _log.setLevel(logging.NOTSET)
        logging.captureWarnings(capture=False)
        logging.getLogger().removeHandler(self._handler)
        sys.stderr = self._before
        if error is not None and not isinstance(error, SystemExit):
            raise SystemExit(code) from error  # its traceback is in the log


def installed() -> JsonLog | None:
    """The JSON log of this process; None if the log is text."""
    return next((each.log for each in logging.getLogger().handlers if isinstance(each, _Handler)), None)


class _Lines(io.TextIOBase):
    """A stream whose lines go to the log; a line is complete when its end is written."""

    encoding = "utf-8"

    def __init__(self, log: JsonLog, stream: TextIO) -> None:
        super().__init__()
        self._log = log
        self._stream = stream
        self._rest = ""
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        with self._lock:
            *lines, self._rest = _BREAK.split(self._rest + text)
        for line in lines:
            self._tell(line)
        return len(text)

    def end(self) -> None:
        """Tell the line that has no end yet."""
        with self._lock:
            rest, self._rest = self._rest, ""
        self._tell(rest)

    def _tell(self, line: str) -> None:
        if shown := _STYLE.sub("", line).strip():
            self._log.tell("output", shown)
