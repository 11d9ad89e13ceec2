"""A worker for Ray actors that needs no accelerator and imports nothing heavy."""

import time
from collections.abc import Callable

from pipeline.contract.errors import Origin, Status
from pipeline.contract.units import Machine, Outcome, TrainUnit, Unit


class FakeWorker:
    """Reports every task as ok after a fixed time."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: duration of a unit."""
        self._seconds = seconds

    def setup(self) -> None:
        """Does nothing."""

    close = setup

    def activity(self) -> None:
        """Nothing to show."""

    def counters(self) -> dict[str, float]:
        """Nothing to count."""
        return {}

    def machine(self) -> Machine:
        """All workers are alike."""
        return Machine("no accelerator", 1, 1)

    def compute(self, unit: Unit) -> Callable[[], list[Outcome]]:
        """An ok outcome for each task, after a while."""
        time.sleep(self._seconds)
        return lambda: outcomes(unit)

    def run(self, unit: Unit) -> list[Outcome]:
        """Both halves of a unit."""
        return self.compute(unit)()


def outcomes(unit: Unit) -> list[Outcome]:
    """The outcomes of a unit whose tasks all succeeded."""
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
