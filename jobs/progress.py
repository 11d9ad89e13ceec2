"""How a run shows itself: one refreshed line on a terminal, a line every ten seconds elsewhere; always on stderr.

Totals are the plan's. A rate is what was worked on, over the time since the first such unit began, so that neither
start-up nor what turned out to be there already bends it; a kind of work without a rate yet has no estimate.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from jobs.output import duration, location
from pipeline.errors import Status
from pipeline.plan import Pending, Work
from pipeline.units import Kind, Outcome

if TYPE_CHECKING:  # rich is slow to load
    from rich.live import Live
    from rich.text import Text

_PLAIN_EVERY_S = 10.0
_STAGES = {
    "base": "base model",
    "validate": "checking",
    "plan": "planning against",
    "start": "starting workers for",
    "publish": "publishing",
    "report": "writing the report of",
}


@dataclass
class _Tally:
    """One kind of work: tasks ended, those that cost time, and the moment at which the first of them began."""

    total: int
    ended: int = 0
    worked: int = 0
    began: float = 0.0

    def add(self, outcome: Outcome, now: float) -> None:
        self.ended += 1
        if outcome.accelerator_s > 0:
            if not self.worked:
                self.began = now - outcome.accelerator_s * outcome.batch
            self.worked += 1

    def rate(self, now: float) -> float | None:
        """Tasks a second."""
        return self.worked / max(now - self.began, 1e-6) if self.worked else None

    def left_s(self, now: float) -> float | None:
        """Seconds until all have ended; None when there is no telling yet."""
        if self.ended >= self.total:
            return 0.0
        rate = self.rate(now)
        return (self.total - self.ended) / rate if rate else None


class Progress(AbstractContextManager["Progress"]):
    """Counts, rates and estimated time of a run; an `Observer` of `pipeline.run`."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet.

        Args:
            stream: where to; stderr when absent.
            live: whether to refresh one line; when absent, whether `stream` is a terminal.
            clock: seconds that never go back.
        """
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, force_terminal=live, highlight=False)
        self._is_live = self._console.is_terminal
        self._live: Live | None = None
        self._clock = clock
        self._work: Pending | None = None
        self._tallies: dict[Kind, _Tally] = {}
        self._failed = 0
        self._began = self._shown_at = 0.0
        self._news = False

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
        if name == "start" and self._is_live:
            self._start_live()

    def planned(self, work: Pending) -> None:
        """Learn what the plan comes to."""
        self._work = work

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count what ended."""
        now = self._clock()
        for outcome in outcomes:
            self._tallies[outcome.kind].add(outcome, now)
            self._failed += outcome.status not in (Status.OK, Status.FILTERED)
        self._news = True
        if not self._is_live and now - self._shown_at >= _PLAIN_EVERY_S:
            self._show()

    def _begin(self) -> None:
        """Say what the plan comes to, once it is about to be carried out."""
        assert self._work is not None, "a run starts after it is planned"
        self._began = self._shown_at = self._clock()
        work: tuple[tuple[Kind, Work], ...] = (("concept", self._work.concepts), ("render", self._work.renders))
        for kind, each in work:
            self._tallies[kind] = _Tally(each.keys_to_do)
            bad = f", {each.invalid:,} bad" if each.invalid else ""
            self._print(f"{kind}s: {each.rows:,} rows, {each.reused:,} reused, {each.to_do:,} to do{bad}")

    def _start_live(self) -> None:
        from rich.live import Live

        # Its own thread refreshes it: a training may take minutes, and the time must be seen to go on.
        self._live = Live(get_renderable=self._text, console=self._console, refresh_per_second=2, transient=True)
        self._live.start()

    def _close(self) -> None:
        """End the line that stands for the work, and leave its last state behind."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._news:
            self._show()

    def _show(self) -> None:
        self._news, self._shown_at = False, self._clock()
        self._print(self._line())

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, soft_wrap=True, markup=False, emoji=False)

    def _text(self) -> "Text":
        from rich.text import Text

        return Text(self._line(), no_wrap=True, overflow="ellipsis")

    def _line(self) -> str:
        now = self._clock()
        parts = [f"{kind}s {tally.ended:,}/{tally.total:,}" for kind, tally in self._tallies.items() if tally.total]
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if rate := self._rate(now):
            parts.append(rate)
        parts.append(f"{duration(now - self._began)} so far{self._left(now)}")
        return " | ".join(parts)

    def _rate(self, now: float) -> str:
        """The rate of renders once there are any, of trainings before."""
        concepts, renders = self._tallies["concept"], self._tallies["render"]
        if rate := renders.rate(now):
            return f"{rate:.1f} pictures/s" if rate >= 1 else f"{rate * 60:.1f} pictures/min"
        if (rate := concepts.rate(now)) and concepts.ended < concepts.total:
            return f"{rate * 60:.1f} concepts/min"
        return ""

    def _left(self, now: float) -> str:
        """Renders start when the trainings run out, so the time left is that of whichever takes longer."""
        concepts, renders = (self._tallies[kind].left_s(now) for kind in ("concept", "render"))
        if concepts is not None and renders is not None:
            left = max(concepts, renders)
            return f", about {duration(left)} left" if left else ""
        return f", about {duration(concepts)} of training left" if concepts else ""
