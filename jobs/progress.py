"""How a run shows itself: one refreshed line on a terminal, plain lines elsewhere; always on stderr.

A plain line comes with news, at most every ten seconds, and without any every minute, so that a log is never silent.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from jobs.output import location
from jobs.tally import Tally
from pipeline.contract.units import Activity, Outcome
from pipeline.plan.expand import Pending

if TYPE_CHECKING:  # rich is slow to load
    from rich.live import Live
    from rich.text import Text

_NEWS_EVERY_S = 10.0
_LINE_EVERY_S = 60.0
_STAGES = {
    "base": "base model",
    "validate": "checking",
    "plan": "planning against",
    "start": "starting workers for",
    "publish": "publishing",
    "report": "writing the report of",
}


class Progress(AbstractContextManager["Progress"]):
    """Stages, and counts, rates and time of the work; an `Observer` of `pipeline.run`."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        beat_s: float = 5.0,
    ) -> None:
        """Show nothing yet.

        Args:
            stream: where to; stderr when absent.
            live: whether to refresh one line; when absent, whether `stream` is a terminal.
            clock: seconds that never go back.
            beat_s: seconds after which to look whether a plain line is due, though nothing has ended.
        """
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, force_terminal=live, highlight=False)
        self._is_live = self._console.is_terminal
        self._clock = clock
        self._beat_s = beat_s
        self._work: Pending | None = None
        self._tally: Tally | None = None
        self._shown_at = 0.0
        self._news = False
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
        """Say which stage has begun."""
        self._close()
        if name == "start":
            self._begin()
        self._print(f"{_STAGES.get(name, name)} {location(detail)}", style="dim" if self._is_live else "")
        if name == "start":
            self._start_beating()

    def planned(self, work: Pending) -> None:
        """Learn what the plan comes to."""
        self._work = work

    def working(self, activities: Sequence[Activity]) -> None:
        """What workers are doing now; not shown yet."""

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count what ended."""
        assert self._tally is not None, "work ends after it has started"
        with self._lock:
            self._tally.add(outcomes, self._clock())
            self._news = True
            if not self._is_live and self._clock() - self._shown_at >= _NEWS_EVERY_S:
                self._show()

    def _begin(self) -> None:
        """Say what the plan comes to, once it is about to be carried out."""
        assert self._work is not None, "a run starts after it is planned"
        self._shown_at = self._clock()
        self._tally = Tally(self._work, self._shown_at)
        for name, each in (("concepts", self._work.concepts), ("renders", self._work.renders)):
            bad = f", {each.invalid:,} bad" if each.invalid else ""
            self._print(f"{name}: {each.rows:,} rows, {each.reused:,} reused, {each.to_do:,} to do{bad}")

    def _start_beating(self) -> None:
        """From a thread, for a training may take minutes, and the time must be seen to go on."""
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
        """End the line that stands for the work, and leave its last state behind."""
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
        return self._tally.line(self._clock()) if self._tally else ""

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, soft_wrap=True, markup=False, emoji=False)
