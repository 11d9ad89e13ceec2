"""Plans for tests: manifests' tables filled by hand, and outcomes whose objects really lie in storage."""

import hashlib
from collections.abc import Iterable

import pyarrow as pa

from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import image_path, weights_path
from pipeline.contract.units import Outcome, TrainUnit, Unit
from pipeline.database.plandb import EXTRA_ROW, PlanDB, Stage
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.storage.objects import Storage

TRAINING = TrainingConfig(steps=10, batch=2)


def picture(name: str) -> dict[str, str]:
    return {"uri": f"memory://pictures/{name}", "sha256": hashlib.sha256(name.encode()).hexdigest()}


def concept(name: str, **cells) -> dict:
    return {"concept_id": name, "superclass": "mug", "images": [picture(f"{name}-1"), picture(f"{name}-2")], **cells}


def fill(db: PlanDB, table: str, rows: Iterable[dict]) -> None:
    """Rows of one manifest, numbered from 1; cells that the plan does not know become extra columns.

    Extra columns that bear a name of the plan's own go into the cell `extras`, a dictionary.
    """
    described = "SELECT column_name FROM duckdb_columns() WHERE table_name = ?"
    known = {name for (name,) in db.connection.execute(described, [table]).fetchall()}
    numbered = [{"row": number, **row} for number, row in enumerate(rows, 1)]
    extras = [
        row.pop("extras", {}) | {name: row.pop(name) for name in list(row) if name not in known} for row in numbered
    ]
    numbers = pa.array([row["row"] for row in numbered], pa.int64())
    for target, cells, first in ((table, numbered, {"row": numbers}), (f"{table}_extra", extras, {EXTRA_ROW: numbers})):
        names = dict.fromkeys(name for each in cells for name in each if name not in first)
        given = pa.table(first | {name: [each.get(name) for each in cells] for name in names})
        db.connection.register("given", given)
        if target == table:
            db.connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM given")
        else:
            db.connection.execute(f"CREATE TABLE {target} AS SELECT * FROM given")
        db.connection.unregister("given")


def planned(concepts: Iterable[dict], prompts: Iterable[dict], **sampling) -> PlanDB:
    db = PlanDB(memory_limit="512MB", threads=2)
    fill(db, "concepts", concepts)
    fill(db, "prompts", prompts)
    plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
    plan_requests(db, base_digest="base", sampling=SamplingConfig(**sampling), seed=0)
    db.mark_filled(Stage.DONE)  # nothing exists yet
    return db


def requests(db: PlanDB, *columns: str) -> list[tuple]:
    """Some columns of the requests, in the order of the manifest."""
    return db.connection.execute(
        f"SELECT {', '.join(columns)} FROM requests ORDER BY prompt_row, concept_ids, image_index"
    ).fetchall()


def made(storage: Storage, unit: Unit, *, failing: Iterable[str] = (), seconds: float = 1.5) -> list[Outcome]:
    """What a worker would return for a unit: objects written, one outcome per task."""
    kind = "concept" if isinstance(unit, TrainUnit) else "render"
    outcomes = []
    for task in unit.tasks:
        if task.key in failing:
            outcomes.append(
                Outcome(kind, task.key, Status.FAILED, Code.INTERNAL, "it broke", worker="w", finished_at=1e9)
            )
            continue
        path = weights_path(task.key) if kind == "concept" else image_path(task.key)
        data = f"{kind} {task.key}".encode()
        storage.write(path, data)
        outcomes.append(
            Outcome(
                kind,
                task.key,
                Status.OK,
                origin=Origin.TRAINED if kind == "concept" else Origin.RENDERED,
                uri=storage.uri(path),
                sha256=hashlib.sha256(data).hexdigest(),
                bytes=len(data),
                accelerator_s=seconds,
                batch=len(unit.tasks),
                worker="w",
                finished_at=1e9,
                loss=0.25 if kind == "concept" else None,
            )
        )
    return outcomes
