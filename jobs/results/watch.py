"""Shows the state of one run repeatedly, until the run ends: what `perfusion status --watch` does.

Rates come from successive readings, so they need no help of the driver. Outcomes reach storage in parts, every
`engine.flush_s` seconds: a rate is that of a window, not that of the last two readings.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from jobs.output import duration, say, say_json
from pipeline.clock import Clock
from pipeline.contract.kinds import RESULTS
from pipeline.runs.status import RunStatus, State

if TYPE_CHECKING:  # rich is slow to load
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

_WINDOW_S = 600.0


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a run is.

    Attributes:
        per_s: keys that ended per second, by table; a table without a rate is absent.
        left_s: seconds until nothing is left; None if that is unknown.
    """

    per_s: dict[str, float] = dataclasses.field(default_factory=dict)
    left_s: float | None = None


class Readings:
    """The readings of the last ten minutes."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, dict[str, int]]] = deque()

    def pace(self, now: float, status: RunStatus) -> Pace:
        """Take a reading made at `now`, in monotonic seconds; returns the pace within the window."""
        if status.state != "running":
            self._kept.clear()
            return Pace()
        ended = {table.name: sum(status.statuses[table.name].values()) for table in RESULTS}
        self._kept.append((now, ended))
        while len(self._kept) > 2 and now - self._kept[0][0] > _WINDOW_S:
            self._kept.popleft()
        began, first = self._kept[0]
        if now <= began:
            return Pace()
        per_s = {name: (count - first[name]) / (now - began) for name, count in ended.items() if count > first[name]}
        waits = [left / per_s[name] if name in per_s else None for name, left in status.left.items() if left]
        known = [wait for wait in waits if wait is not None]
        # Workers train first and render in between, so the time left is that of the table that takes longer.
        return Pace(per_s, max(known) if known and len(known) == len(waits) else None)


class View(Protocol):
    """Shows readings."""

    def show(self, status: RunStatus, pace: Pace) -> None:
        """Show one reading."""
        ...


def watch(
    read: Callable[[], RunStatus], view: View, *, every_s: float, clock: Clock, wait: Callable[[float], None]
) -> State:
    """Show a run until it is not running any more; returns its state then.

    Args:
        read: reads the state of the run.
        view: shows it.
        every_s: seconds between two readings.
        clock: times the readings.
        wait: sleeps for the given seconds.

    Raises:
        StorageError: as `read`.
    """
    readings = Readings()
    while True:
        status = read()
        view.show(status, readings.pace(clock.monotonic(), status))
        if status.state != "running":
            return status.state
        wait(every_s)


class Lines:
    """One line of text per reading."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def show(self, status: RunStatus, pace: Pace) -> None:
        """See `View`."""
        say(" | ".join([_moment(self._clock), f"{status.run_id} {status.state}", *_parts(status, pace).values()]))


class JsonLines:
    """One JSON object per change of state, counts or driver."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shown: object = None

    def show(self, status: RunStatus, pace: Pace) -> None:
        """See `View`."""
        driver, _, _ = status.holder.partition(",")  # without the age of its heartbeat
        seen = dataclasses.replace(status, holder=driver)
        if seen != self._shown:
            self._shown = seen
            rates = {name: round(rate, 4) for name, rate in pace.per_s.items()}
            left_s = None if pace.left_s is None else round(pace.left_s)
            values: dict[str, Any] = {"time": _moment(self._clock), **dataclasses.asdict(status)}
            say_json({**values, "per_s": rates, "left_s": left_s})


class LiveTable(AbstractContextManager["LiveTable"]):
    """A table on a terminal that is drawn again in its place."""

    def __init__(self, console: "Console", clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None

    def show(self, status: RunStatus, pace: Pace) -> None:
        """See `View`."""
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(self._table(status, pace), refresh=True)

    def _table(self, status: RunStatus, pace: Pace) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        rows = {"run": status.run_id, "began": status.began_at, "state": status.state, **_parts(status, pace)}
        for name, text in {**rows, "read": _moment(self._clock)}.items():
            table.add_row(Text(name, style="dim"), Text(text))
        return table

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _parts(status: RunStatus, pace: Pace) -> dict[str, str]:
    """What a reading says, by name; what is unknown is absent."""
    parts: dict[str, str] = {}
    for table in RESULTS:
        counts = [f"{count:,} {name}" for name, count in sorted(status.statuses[table.name].items())]
        left = status.left.get(table.name)
        counts += [f"{left:,} left"] if left is not None else []
        parts[table.name] = f"{table.name} {', '.join(counts) or 'none'}"
    if rates := [_rate(rate, name) for name, rate in pace.per_s.items()]:
        parts["rate"] = ", ".join(rates)
    if pace.left_s is not None:
        parts["time left"] = f"about {duration(pace.left_s)} left"
    if status.holder:
        parts["driver"] = status.holder
    return parts


def _rate(rate: float, name: str) -> str:
    return f"{rate:.1f} {name}/s" if rate >= 1 else f"{rate * 60:.1f} {name}/min"


def _moment(clock: Clock) -> str:

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock.wall()))
