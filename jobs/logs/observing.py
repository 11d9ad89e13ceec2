"""Tells the JSON log what a run does."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from jobs.logs.json_log import JsonLog
from pipeline.contract.errors import Status
from pipeline.contract.kinds import RESULTS, PlanCounts
from pipeline.contract.units import Outcome
from pipeline.observer import Begun, Pulse

_PROGRESS_EVERY_S = 60.0


class RunLog:
    """The `pipeline.observer.Observer` that writes the events of a run to the JSON log."""

    def __init__(self, log: JsonLog, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell nothing yet.

        Args:
            log: where lines go.
            clock: monotonic seconds.
        """
        self._log = log
        self._clock = clock
        self._total = Counter[str]()  # by kind, as all of these
        self._done = Counter[str]()
        self._failed = Counter[str]()
        self._told_at: float | None = None
        self._told = Counter[str]()

    def stage(self, name: str, detail: str) -> None:
        """Tell that a stage has begun."""
        self._log.tell("stage", f"{name}: {detail}", stage=name)

    def planned(self, work: PlanCounts) -> None:
        """Tell the counts of the plan."""
        self._total = Counter({table.kind: each.keys_to_do for table, each in work.items()})
        text = ", ".join(f"{each.keys_to_do:,} {table.name} to do" for table, each in work.items())
        self._log.tell("planned", text, concepts=vars(work.concepts), renders=vars(work.renders))

    def begun(self, run: Begun) -> None:
        """Tell which run this is, and name it in every later line."""
        self._log.name(run_id=run.run_id, lease=run.lease)
        text = f"run {run.run_id} {'is resumed' if run.resumed else 'has begun'}"
        self._log.tell("begun", text, run_date=run.run_date, resumed=run.resumed)

    def working(self, pulse: Pulse) -> None:
        """Tell the progress, at most once a minute."""
        now = self._clock()
        since = None if self._told_at is None else now - self._told_at
        if since is not None and since < _PROGRESS_EVERY_S:
            return
        ended = self._done + self._failed
        left, engine = self._total - ended, pulse.engine
        slots = {name: getattr(engine, name) for name in ("ready", "running", "leaving", "starting", "quarantined")}
        recent = ended - self._told
        rates = {kind: round(recent[kind] / since, 4) for kind in recent} if since else {}
        text = ", ".join(f"{table.name} {ended[table.kind]:,}/{self._total[table.kind]:,}" for table in RESULTS)
        self._log.tell(
            "progress",
            text,
            done=_by_table(self._done),
            left=_by_table(left),
            failed=_by_table(self._failed),
            per_s=_by_table(rates) if since else None,
            slots=slots,
            spent_s=round(engine.spent_s, 1),
        )
        self._told_at, self._told = now, ended

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count tasks that ended, and tell those that did not end ok."""
        for outcome in outcomes:
            if outcome.status == Status.OK:
                self._done[outcome.kind] += 1
                continue
            self._failed[outcome.kind] += 1
            self._log.tell(
                "task",
                outcome.error_message or "",
                logging.WARNING,
                kind=outcome.kind,
                key=outcome.key,
                status=outcome.status,
                error_code=outcome.error_code,
                column=outcome.error_column,
                attempts=outcome.attempts,
                worker=outcome.worker,
            )


def _by_table(counts: "Counter[str] | dict[str, float]") -> dict[str, float]:
    return {table.name: counts.get(table.kind, 0) for table in RESULTS}
