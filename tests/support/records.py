"""Files of a run, written as a driver writes them."""

from pipeline.contract.kinds import Counts, PerKind
from pipeline.runs.record import Published, RunRecord, RunSpec


def run_spec(run_id="r1", began_at="2024-02-01T01:02:03Z", settings=None, **changes):
    digests = {name: name * 2 for name in ("digest", "base_digest", "concepts_digest", "prompts_digest")}
    values = {"run_id": run_id, "run_date": began_at[:10], "began_at": began_at, "settings": settings or {}}
    return RunSpec(**{**values, **digests, **changes})


def published(run_id="r1", **changes):
    empty = {"concepts": {}, "renders": {}}
    values = {"run_date": "2024-02-01", "base": "mini", "base_digest": "b", "statuses": empty, "codes": empty}
    return Published(**{"run_id": run_id, **values, "files": (), **changes})


def plan_counts(concepts=3, renders=9):
    return PerKind(*(Counts(rows, 0, 0, rows, rows, rows) for rows in (concepts, renders)))


def finish(storage, result):
    """Record that a run is finished."""
    record = RunRecord(storage, result.run_id)
    record.decide(result)
    record.commit()
