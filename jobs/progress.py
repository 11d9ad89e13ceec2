"""How a run shows itself: a live line on a terminal, plain lines every ten seconds elsewhere; always on stderr."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TextIO

from pipeline.errors import Origin, Status
from pipeline.plan import Pending
from pipeline.units import Outcome
from pipeline.workqueue import Remaining

_PLAIN_EVERY_S = 10.0
_STAGES = {
    "base": "base model",
    "validate": "checking",
    "plan": "planning against",
    "start": "starting workers for",
    "publish": "publishing",
    "report": "writing the report of",
}


class Progress(AbstractContextManager["Progress"]):
    """Counts, rate and estimated time of a run; an `Observer` of `pipeline.run`."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._clock = clock
        self._live = Live("", console=self._console, auto_refresh=False, transient=True)
        self._is_live = self._console.is_terminal if live is None else live
        self._work: Pending | None = None
        self._counts = {"concept": 0, "render": 0, "failed": 0}
        self._began = {"concept": 0.0, "render": 0.0}
        self._latest = -_PLAIN_EVERY_S

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._live.stop()

    def stage(self, name: str, detail: str) -> None:
        """Say which stage has begun."""
        self._console.print(f"{_STAGES.get(name, name)} {detail}", style="dim" if self._is_live else None)
        if name == "start":
            self._began = dict.fromkeys(self._began, self._clock())

    def planned(self, work: Pending) -> None:
        """Say what the plan comes to."""
        self._work = work
        for name, each in (("concepts", work.concepts), ("renders", work.renders)):
            self._console.print(
                f"{name}: {each.rows:,} rows, {each.reused:,} reused, {each.to_do:,} to do, {each.invalid:,} invalid"
            )

    def outcomes(self, outcomes: Sequence[Outcome], remaining: Remaining) -> None:
        """Count what ended."""
        for outcome in outcomes:
            self._counts[outcome.kind] += 1
            if outcome.status not in (Status.OK, Status.FILTERED):
                self._counts["failed"] += 1
        if any(outcome.kind == "render" and outcome.origin != Origin.REUSED for outcome in outcomes):
            self._began["render"] = self._began["render"] or self._clock()
        now = self._clock()
        done = remaining.concepts + remaining.renders == 0
        if self._is_live:
            self._live.update(self._line(remaining), refresh=True)
        elif done or now - self._latest >= _PLAIN_EVERY_S:
            self._latest = now
            self._console.print(self._line(remaining))

    def _line(self, remaining: Remaining) -> str:
        parts = []
        for kind, left in (("concept", remaining.concepts), ("render", remaining.renders)):
            made = self._counts[kind]
            if made or left:
                parts.append(f"{kind}s {made:,}/{made + left:,}")
        elapsed = max(self._clock() - self._began["render"], 1e-6)
        rate = self._counts["render"] / elapsed
        if self._counts["render"]:
            parts.append(f"{rate:.1f} pictures/s")
            if remaining.renders:
                parts.append(f"about {_duration(remaining.renders / rate)} left")
        if self._counts["failed"]:
            parts.append(f"{self._counts['failed']:,} failed")
        return " | ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
