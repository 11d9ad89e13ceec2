"""The JSON log: every line parses, nothing is lost, no secret is told, and all is as before when it is closed."""

import io
import json
import logging
import re
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest

from jobs.logs.events import COMMON, EVENTS, FIELDS
from jobs.logs.json_log import JsonFormatter, JsonLog, installed, without_secrets
from jobs.output import complain, fail, refuse
from pipeline.contract.units import InputImage
from pipeline.runs.lease import LeaseHeld

PAGE = (Path(__file__).parents[3] / "docs" / "logs.md").read_text()
SIGNED = "https://shop.example/a.jpg?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=c0ffee"


def parsed(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def check_documented(line):
    """An event of the page with no field that the page does not give it."""
    own = EVENTS[line["event"]].fields
    assert line.keys() <= {*COMMON, *own}, line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert isinstance(line["message"], str)


def logged(action, ends=None):
    """The lines of a command that does something, and that ends with this exit code by an error."""
    stream = io.StringIO()
    with pytest.raises(SystemExit) if ends else nullcontext() as end, JsonLog(stream):
        action()
    assert end is None or end.value.code == ends
    lines = parsed(stream)
    for line in lines:
        check_documented(line)
    assert [line["event"] for line in lines].count("end") == 1
    assert lines[-1]["event"] == "end"
    return lines


def test_the_page_has_every_event_and_every_field():
    for name, event in EVENTS.items():
        own = ", ".join(f"`{field}`" for field in event.fields) or "none"
        assert f"| `{name}` | {event.meaning} | {own} |" in PAGE
    for name, meaning in FIELDS.items():
        assert f"| `{name}` | {meaning} |" in PAGE
    assert {*COMMON, *(field for event in EVENTS.values() for field in event.fields)} == {*FIELDS}


def test_whatever_is_written_to_stderr_is_a_line():
    def act():
        sys.stderr.write("\x1b[36mhalf \x1b[0m")
        sys.stderr.write("a line\nand\r\nmore\n\n")
        complain("two\nlines")
        warnings.warn("old spelling", UserWarning, stacklevel=1)
        sys.stderr.write("no end")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        *lines, end = logged(act)
    told = [(line["event"], line["message"]) for line in lines]
    assert told[:4] == [("output", "half a line"), ("output", "and"), ("output", "more"), ("message", "two\nlines")]
    assert told[4][0] == "log"
    assert "UserWarning: old spelling" in told[4][1]
    assert told[5:] == [("output", "no end")]
    assert end["exit_code"] == 0


def test_a_warning_has_its_logger_and_what_it_is_about():
    def act():
        logging.getLogger("pipeline.engine.settlement").warning(
            "slot %d died", 3, extra={"slot": 3, "unit": "c-1", "key": "k" * 64}
        )
        logging.getLogger("some.library").info("not told")
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("some.library").exception("it broke")

    first, second, _ = logged(act)
    assert (first["event"], first["level"], first["message"]) == ("log", "warning", "slot 3 died")
    assert (first["slot"], first["unit"], first["key"]) == (3, "c-1", "k" * 64)
    assert first["logger"] == "pipeline.engine.settlement"
    assert (second["level"], second["message"]) == ("error", "it broke")
    assert second["trace"].endswith("ValueError: inner\n")


def test_a_warning_whose_arguments_do_not_fit_is_told():
    record = logging.LogRecord("some.library", logging.ERROR, "x.py", 1, "%d", ("no number",), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "%d ('no number',)"


@pytest.mark.parametrize(
    ("action", "level", "kind", "code"),
    [
        (lambda: refuse("--every needs --watch"), "error", "UsageError", 2),
        (lambda: fail(LeaseHeld("held\nby another")), "error", "LeaseHeld", 1),
        (lambda: {}["gone"], "critical", "KeyError", 1),
    ],
)
def test_an_error_that_ends_the_command(action, level, kind, code):
    def act():
        try:
            action()
        except RuntimeError as end:  # typer.Exit, which typer turns into this
            raise SystemExit(end.exit_code) from end

    error, end = logged(act, ends=code)
    assert (error["event"], error["level"], error["type"], error["exit_code"]) == ("error", level, kind, code)
    assert ("trace" in error) == (level == "critical")
    assert end["exit_code"] == code


def test_no_secret_of_an_address_is_told():
    def act():
        complain(f"cannot read {SIGNED}")
        sys.stderr.write(f"retrying {SIGNED}\n")
        logging.getLogger("urllib3").warning("GET %s", SIGNED)
        logging.getLogger("x").warning("%r", InputImage(SIGNED, "0" * 64))
        raise OSError(f"{SIGNED} and s3://key:hush@bucket/x")

    lines = logged(act, ends=1)
    text = json.dumps(lines)
    assert len(lines) == 6
    assert not any(secret in text for secret in ("c0ffee", "AKIA", "hush"))
    assert "https://shop.example/a.jpg?X-Amz-Credential=…&X-Amz-Signature=…" in lines[0]["message"]


@pytest.mark.parametrize(
    "text", ["abfs://photos@shop.dfs.core.windows.net/a.jpg", "s3://bucket/a@b", "what? a=1", "a@b"]
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


def test_lines_of_many_threads_are_whole():
    def act():
        def write(number):
            for _ in range(50):
                logging.getLogger(f"t{number}").warning("x" * 3000)
                sys.stderr.write("y" * 3000 + "\n")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lines = logged(act)
    assert sorted({(line["event"], line["message"][0]) for line in lines[:-1]}) == [("log", "x"), ("output", "y")]
    assert {len(line["message"]) for line in lines[:-1]} == {3000}
    assert len(lines) == 401


def test_afterwards_all_is_as_before(capsys):
    stderr, handlers = sys.stderr, list(logging.getLogger().handlers)
    assert installed() is None
    with JsonLog(io.StringIO()) as log:
        assert installed() is log
        assert not sys.stderr.isatty()
    assert (sys.stderr, logging.getLogger().handlers, installed()) == (stderr, handlers, None)
    complain("text")
    assert capsys.readouterr().err == "perfusion: text\n"
