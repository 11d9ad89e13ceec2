"""A cron expression as the sets of numbers that it stands for, and the same instants as calendar events of systemd.

Each field is written out, so a translation holds the same instants or does not exist. Where the crons of different
systems read an expression differently, there is none.
"""

import re
from dataclasses import dataclass

from jobs.spec_file import SpecError

_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",  # Sunday; the `weekly` of systemd is Monday
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_PART = re.compile(r"(?P<all>\*)|(?P<first>[0-9]+|[a-z]{3})(-(?P<last>[0-9]+|[a-z]{3}))?")
_STEP = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class _Field:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()  # the first of them is `least`


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 7, tuple(name.lower() for name in _WEEKDAYS)),
)


@dataclass(frozen=True)
class Schedule:
    """Minutes, hours, days, months and weekdays (0 is Sunday) at which something starts.

    `either`: day and weekday are both restricted, and a day that meets one of them is enough.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    either: bool


def parse_cron(expression: str) -> Schedule:
    """Read a cron expression of five fields with single spaces, or one such as `@daily`.

    Raises:
        SpecError: it is not one that every cron reads in the same way.
    """
    texts = _NAMED.get(expression, expression).lower().split(" ")
    if len(texts) != len(_FIELDS):
        raise _refusal(expression, "it has not five fields", "write minute, hour, day, month and weekday")
    minutes, hours, days, months, weekdays = (
        _numbers(expression, text, field) for text, field in zip(texts, _FIELDS, strict=True)
    )
    day, weekday = texts[2], texts[4]
    if "*" not in (day, weekday) and "*" in day + weekday:
        raise _refusal(
            expression,
            f"with day {day} and weekday {weekday}, some crons start when both are met and others when one is",
            "write the days out, such as 1,3,5",
        )
    return Schedule(
        minutes,
        hours,
        days,
        months,
        tuple(sorted({number % 7 for number in weekdays})),
        either="*" not in (day, weekday),
    )


def calendar_events(schedule: Schedule, time_zone: str) -> list[str]:
    """The calendar events of systemd with the same instants; there are two where one of day and weekday is enough."""
    months = _listed(schedule.months, _FIELDS[3])
    days = _listed(schedule.days, _FIELDS[2])
    time = f"{_listed(schedule.hours, _FIELDS[1])}:{_listed(schedule.minutes, _FIELDS[0])}:00 {time_zone}"
    names = ",".join(_WEEKDAYS[number] for number in schedule.weekdays)
    if schedule.either:
        return [f"*-{months}-{days} {time}", f"{names} *-{months}-* {time}"]
    weekdays = "" if len(schedule.weekdays) == len(_WEEKDAYS) else f"{names} "
    return [f"{weekdays}*-{months}-{days} {time}"]


def _listed(numbers: tuple[int, ...], field: _Field) -> str:
    every = len(numbers) == field.most - field.least + 1
    return "*" if every else ",".join(f"{number:02d}" for number in numbers)


def _numbers(expression: str, text: str, field: _Field) -> tuple[int, ...]:
    """The numbers of a field, ascending."""
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        match = _PART.fullmatch(span)
        if not match or (slash and not _STEP.fullmatch(step)) or (slash and not (match["all"] or match["last"])):
            raise _refusal(
                expression, f"{field.name} is {part!r}", "write *, 5, 1-5, */15 or 0-30/10, and commas between several"
            )
        first, last = field.least, field.most
        if match["first"]:
            first = _number(expression, match["first"], field)
            last = _number(expression, match["last"], field) if match["last"] else first
        if first > last:
            raise _refusal(
                expression, f"{field.name} {part!r} ends before it begins", "write two ranges with a comma between them"
            )
        found.update(range(first, last + 1, int(step) if slash else 1))
    return tuple(sorted(found))


def _number(expression: str, text: str, field: _Field) -> int:
    if text in field.names:
        return field.least + field.names.index(text)
    if not text.isdecimal() or not field.least <= int(text) <= field.most:
        raise _refusal(
            expression, f"{field.name} is {text!r}", f"write a number between {field.least} and {field.most}"
        )
    return int(text)


def _refusal(expression: str, what: str, remedy: str) -> SpecError:
    return SpecError(f"option schedule is {expression!r}, which is not the same on every system: {what}; {remedy}")
