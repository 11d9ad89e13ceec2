"""What a run counts: a tally that changes while it runs, frozen into a `RunSummary` at its end."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from perfusion_ops.errors import PerfusionError
from pipeline.contract.errors import Status
from pipeline.contract.units import Outcome

RESUME = "Finished work is kept: remove the cause, then run the same command again."


@dataclass(frozen=True)
class RunSummary:
    """The figures of a run.

    Attributes:
        completed: tasks that ended ok.
        failed: tasks that ended otherwise, including dependants that could not run.
        retries: units that ran and whose tasks had to run again.
        deaths: workers that died, or were killed because they hung or did not start; not those of machines that were
            taken away.
        outages: workers lost to infrastructure.
        given_back: slots released early, because fewer tasks were left than slots.
        wasted_s: slot seconds spent on units that gave no outcome.
        busy_s: slot seconds spent on units, by slot number.
        quarantined: numbers of the slots that were given up, ascending.
        stopped: why the run stopped before every task had an outcome; empty if it did not.
    """

    completed: int = 0
    failed: int = 0
    retries: int = 0
    deaths: int = 0
    outages: int = 0
    given_back: int = 0
    wasted_s: float = 0.0
    busy_s: dict[int, float] = field(default_factory=dict)
    quarantined: tuple[int, ...] = ()
    stopped: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The engine at one moment, for those who watch a run.

    Attributes:
        ready: slots whose worker takes units.
        running: the ready slots that hold a unit.
        leaving: slots that end their units, because their machine is about to leave.
        starting: slots whose worker loads, or will be started after a backoff.
        quarantined: slots that were given up.
        spent_s: slot seconds spent on units so far, running ones included.
        wasted_s: slot seconds spent on units that gave no outcome.
        retries: units that ran and whose tasks had to run again.
        deaths: workers that died.
        outages: workers lost to infrastructure.
    """

    ready: int = 0
    running: int = 0
    leaving: int = 0
    starting: int = 0
    quarantined: int = 0
    spent_s: float = 0.0
    wasted_s: float = 0.0
    retries: int = 0
    deaths: int = 0
    outages: int = 0


class EngineError(PerfusionError):
    """No progress is possible. The message names the last cause and the remedy; `summary` counts what was done."""

    def __init__(self, message: str, summary: RunSummary) -> None:
        super().__init__(message)
        self.summary = summary


@dataclass
class Tally:
    """The counts of `RunSummary` so far; what each slot knows about itself is added by `freeze`."""

    completed: int = 0
    failed: int = 0
    retries: int = 0
    deaths: int = 0
    outages: int = 0
    given_back: int = 0
    wasted_s: float = 0.0
    stopped: str = ""

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Count tasks that ended."""
        for outcome in outcomes:
            if outcome.status == Status.OK:
                self.completed += 1
            else:
                self.failed += 1

    def freeze(self, busy_s: dict[int, float], quarantined: Iterable[int]) -> RunSummary:
        """The summary, given the busy seconds of each slot and the slots that were given up."""
        return RunSummary(**vars(self), busy_s=busy_s, quarantined=tuple(sorted(quarantined)))
