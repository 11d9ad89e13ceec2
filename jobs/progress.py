"""Shows the progress of a run on stderr: one refreshed line on a terminal, plain lines elsewhere.

A plain line is written when workers begin another kind of work, every ten seconds if there is progress, and at least
every minute, so that a log is never silent.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from jobs.logs.json_log import installed
from jobs.logs.observing import RunLog
from jobs.output import location
from jobs.tally import Tally, describe
from pipeline.contract.kinds import PlanCounts
from pipeline.contract.units import Outcome
from pipeline.observer import Begun, Observer, Pulse

if TYPE_CHECKING:  # rich is slow to load
    from rich.live import Live
    from rich.text import Text

_NEWS_EVERY_S = 10.0
_LINE_EVERY_S = 60.0
_WAITING = "waiting for the first result"
_STAGES = {
    "base": "reading the base model",
    "validate": "checking",
    "plan": "planning against",
    "start": "starting workers for",
    "publish": "publishing",
    "report": "writing the report of",
}


def watching(*, brief: bool = False) -> AbstractContextManager[Observer]:
    """Shows a run on stderr: a `Progress`, or the events of the JSON log. `brief` is for one of many runs."""
    log = installed()
    return nullcontext(RunLog(log)) if log else Progress(brief=brief)


class Progress(AbstractContextManager["Progress"]):
    """The `pipeline.observer.Observer` that shows stages, counts, rates, activities and time."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        brief: bool = False,
        clock: Callable[[], float] = time.monotonic,
        beat_s: float = 5.0,
    ) -> None:
        """Show nothing yet.

        Args:
            stream: where to write; default: stderr.
            live: whether to refresh one line; default: whether `stream` is a terminal.
            brief: leave out stages and totals: for one of many runs of the same rows.
            clock: monotonic seconds.
            beat_s: seconds between checks whether a plain line is due.
        """
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, force_terminal=live, highlight=False)
        self._is_live = self._console.is_terminal
        self._brief = brief
        self._clock = clock
        self._beat_s = beat_s
        self._work: PlanCounts | None = None
        self._tally: Tally | None = None
        self._shown_at = 0.0
        self._news = False
        self._doing = ""
        self._seen: set[str] = set()
        self._live: Live | None = None
        self._beating: threading.Thread | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def stage(self, name: str, detail: str) -> None:
        """Show that a stage has begun."""
        self._close()
        if name == "start":
            self._begin()
        if not self._brief:
            self._print(f"{_STAGES.get(name, name)} {location(detail)}", style="dim" if self._is_live else "")
        if name == "start":
            self._start_beating()

    def planned(self, work: PlanCounts) -> None:
        """Take the plan's totals."""
        self._work = work

    def begun(self, run: Begun) -> None:
        """Nothing to show: the stages name the run."""

    def working(self, pulse: Pulse) -> None:
        """Show what workers are doing, and at once if a kind of work begins."""
        activities = pulse.activities
        assert self._tally is not None, "workers exist after the start"
        with self._lock:
            begins = {each.doing for each in activities} - self._seen
            self._seen |= begins
            waiting = not self._seen and not self._tally.begun
            doing = describe(activities) or (_WAITING if waiting else "")
            self._news = self._news or (doing != self._doing and not waiting)
            self._doing = doing
            if not self._is_live and (begins or (self._news and self._due())):
                self._show()

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count tasks that ended."""
        assert self._tally is not None, "work ends after it has started"
        with self._lock:
            self._tally.add(outcomes, self._clock())
            self._news = True
            if not self._is_live and self._due():
                self._show()

    def _due(self) -> bool:
        return self._clock() - self._shown_at >= _NEWS_EVERY_S

    def _begin(self) -> None:
        """Show the plan's totals just before the work starts."""
        assert self._work is not None, "a run starts after it is planned"
        self._shown_at = self._clock()
        self._tally = Tally(self._work, self._shown_at)
        if self._brief:
            return
        for name, each in (("concepts", self._work.concepts), ("renders", self._work.renders)):
            bad = f", {each.invalid:,} bad" if each.invalid else ""
            self._print(f"{name}: {each.rows:,} rows, {each.reused:,} reused, {each.to_do:,} to do{bad}")

    def _start_beating(self) -> None:
        """Show the time from a thread: a training may take minutes."""
        if self._is_live:
            from rich.live import Live

            self._live = Live(get_renderable=self._text, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        else:
            self._closed.clear()
            self._beating = threading.Thread(target=self._beat, name="progress", daemon=True)
            self._beating.start()

    def _beat(self) -> None:
        while not self._closed.wait(self._beat_s):
            with self._lock:
                if self._clock() - self._shown_at >= _LINE_EVERY_S:
                    self._show()

    def _close(self) -> None:
        """End the line of the work, and leave its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._beating is not None:
            self._closed.set()
            self._beating.join()
            self._beating = None
        if self._news:
            self._show()

    def _show(self) -> None:
        self._news, self._shown_at = False, self._clock()
        self._print(self._line())

    def _text(self) -> "Text":
        from rich.text import Text

        return Text(self._line(), no_wrap=True, overflow="ellipsis")

    def _line(self) -> str:
        return self._tally.line(self._clock(), self._doing) if self._tally else ""

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, soft_wrap=True, markup=False, emoji=False)
