"""A worker without an accelerator, for actors: it imports nothing heavy."""

import time

from pipeline.contract.errors import Origin, Status
from pipeline.contract.units import Outcome, TrainUnit, Unit


class FakeWorker:
    """Answers for every task, after a while."""

    def __init__(self, seconds: float) -> None:
        """`seconds` are what a unit takes."""
        self._seconds = seconds

    def setup(self) -> None:
        """Nothing to load, nothing to let go."""

    close = setup

    def activity(self) -> None:
        """Nothing to show."""

    def run(self, unit: Unit) -> list[Outcome]:
        """An ok outcome for each task."""
        time.sleep(self._seconds)
        return outcomes(unit)


def outcomes(unit: Unit) -> list[Outcome]:
    """What a unit's worker says when all went well."""
    kind, origin = ("concept", Origin.TRAINED) if isinstance(unit, TrainUnit) else ("render", Origin.RENDERED)
    return [
        Outcome(
            kind,
            task.key,
            Status.OK,
            origin=origin,
            uri=f"file:///somewhere/{task.key}",
            sha256=task.key,
            bytes=100_000,
            worker="worker",
        )
        for task in unit.tasks
    ]
