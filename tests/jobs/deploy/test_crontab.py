"""Cron expressions: what they mean, the calendar events with the same instants, and those that are refused."""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from jobs.deploy.crontab import calendar_events, parse_cron
from jobs.spec_file import SpecError

BEGIN = datetime(2027, 12, 29, tzinfo=UTC)  # 2028 has a 29 February
DAYS = 400


def met(field, value, least=0):
    """Whether a field of numbers holds a value, as crontab(5) has it."""
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        start = least if span == "*" else int(first)
        end = 99 if span == "*" else int(last or first)
        if start <= value <= end and (value - start) % int(step or 1) == 0:
            return True
    return False


def starts(minute, hour, day, month, weekday):
    """The instants from BEGIN that the fields hold: each day and each minute of it is tried."""
    for number in range(DAYS):
        date = BEGIN + timedelta(days=number)
        of_week = date.isoweekday()  # Sunday is 7
        fits = (met(day, date.day, 1), met(weekday, of_week) or met(weekday, of_week % 7))
        if met(month, date.month, 1) and (any(fits) if "*" not in (day, weekday) else all(fits)):
            times = ((hours, minutes) for hours in range(24) for minutes in range(60))
            yield from (date.replace(hour=h, minute=m) for h, m in times if met(hour, h) and met(minute, m))


def elapses(event, count):
    """The first instants of a calendar event from BEGIN, from systemd itself."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    words = [
        "systemd-analyze",
        "calendar",
        f"--iterations={count}",
        f"--base-time={BEGIN - timedelta(minutes=1):%F %T} UTC",
    ]
    done = subprocess.run(
        [*words, event], capture_output=True, text=True, timeout=60, check=True, env={"TZ": "UTC", "LC_ALL": "C"}
    )
    found = re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ (\d+-\d+-\d+ \d+:\d+:\d+) UTC", done.stdout)
    return [datetime.strptime(each, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) for each in found]


@pytest.mark.parametrize(
    "expression",
    [
        "0 2 * * *",
        "30 2 * * 1-5",
        "*/15 1-5 * * *",
        "7-59/13 */7 * * *",
        "0 2 1,15 * *",
        "5 4 * * 0",
        "5 4 * * 7",
        "5 4 * * 5-7",
        "0 0 1 1 *",
        "0 2 */10 * *",
        "0 2 13 * 5",
        "0 2 1-7 2,3 1,3",
        "0 2 31 */2 *",
        "0 12 29 2 *",
    ],
)
def test_systemd_starts_at_the_same_instants(expression):
    events = calendar_events(parse_cron(expression), "UTC")
    found = sorted({instant for event in events for instant in elapses(event, 5)})
    expected = list(islice(starts(*expression.split(" ")), 5))
    assert expected
    assert found[: len(expected)] == expected


@pytest.mark.parametrize(
    ("expression", "fields"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("0 2 * JAN,jul Mon-Fri", "0 2 * 1,7 1-5"),
        ("0 2 * * sun", "0 2 * * 0"),
    ],
)
def test_names_are_numbers(expression, fields):
    assert parse_cron(expression) == parse_cron(fields)


def test_one_of_day_and_weekday_is_enough():
    assert calendar_events(parse_cron("0 2 13 * 5"), "Europe/Berlin") == [
        "*-*-13 02:00:00 Europe/Berlin",
        "Fri *-*-* 02:00:00 Europe/Berlin",
    ]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("0 2 */2 * 1", r"with day \*/2 and weekday 1, some crons start when both are met .* write the days out"),
        ("0 2 5,* * 1", r"with day 5,\* and weekday 1, some crons"),
        ("0 2 ? * *", r"day is '\?'; write \*, 5, 1-5"),
        ("5/15 2 * * *", "minute is '5/15'"),
        ("*/0 2 * * *", r"minute is '\*/0'"),
        ("0 22-2 * * *", "hour '22-2' ends before it begins; write two ranges"),
        ("0 2 0 * *", "day is '0'; write a number between 1 and 31"),
        ("0 2 * * fri-sun", "weekday 'fri-sun' ends before it begins"),
        ("0 2 * * mo", "weekday is 'mo'"),
        ("0 2 * 1-99 *", "month is '99'; write a number between 1 and 12"),
        ("0 2 * mon *", "month is 'mon'"),
        ("0 2 1,,3 * *", "day is ''"),
        ("0 2 * *", "it has not five fields"),
    ],
)
def test_what_is_not_the_same_everywhere_is_refused(expression, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_cron(expression)
    assert str(caught.value).startswith(f"option schedule is {expression!r}, which is not the same on every system: ")
