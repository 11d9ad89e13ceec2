"""The tasks that are left, given out in units: trainings first, and renders as soon as their concepts exist.

The tasks stay in the plan's database; this object holds one page of them and the keys that are out, so its memory does
not grow with the manifest. Equal keys are one task. The longest trainings come first, because the last ones to finish
decide when a run ends; all trainings of a unit have the same settings. Renders are ordered by shape and then by
concepts, so that a batch needs few concept files. Each key is given out once and recorded once; anything else is a
`ValueError`. If a concept fails, its renders end as CONCEPT_FAILED at the same moment.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from perfusion_ops.config import TrainingConfig
from pipeline.contract.errors import Code, Status
from pipeline.contract.keys import normalise_superclass
from pipeline.contract.kinds import PerKind
from pipeline.contract.messages import clip
from pipeline.contract.units import (
    MESSAGE_BYTES,
    ConceptTask,
    InputControl,
    InputImage,
    InputScene,
    Kind,
    Outcome,
    RenderShape,
    RenderTask,
    RenderUnit,
    TrainUnit,
    Unit,
)
from pipeline.database.plandb import PlanDB, Stage

_PAGE = 4096  # tasks, a few MB: one query per page, not per unit
_MOST_WAITING = 20_000  # renders in memory whose shape has no full batch yet; above this, smaller batches are given out


class WorkQueue:
    """The tasks of one plan; used from one thread, which must own the plan's connection while it does so."""

    def __init__(self, db: PlanDB, *, group_size: int, render_batch: int) -> None:
        """Find the tasks that are left: keys that are not in `done`.

        Args:
            db: with `requests` and `done` filled.
            group_size: concepts trained together.
            render_batch: renders made together.
        """
        db.require(Stage.REQUESTS, Stage.DONE)
        self._connection = db.connection
        self._group_size, self._render_batch = group_size, render_batch
        for statement in _TABLES:
            self._connection.execute(statement)
        self._concept_rows = self._concepts_left = self._count("work_concepts")
        self._renders_left = self._count("work_renders")
        self._ready_rows = self._count("work_ready")
        self._next_concept = 0
        self._next_ready = 0
        self._trainings: deque[tuple[int, ConceptTask]] = deque()
        self._waiting: dict[RenderShape, deque[RenderTask]] = {}
        self._out: dict[tuple[Kind, str], tuple[int, str]] = {}
        self._units = 0

    def next(self) -> Unit | None:
        """A unit that can run now; None if nothing is ready until more outcomes are recorded."""
        return self._next_training() or self._next_renders()

    def record(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Take final outcomes.

        Args:
            outcomes: one for each of some tasks that `next` gave out, in any order.

        Returns:
            Outcomes of renders that cannot run any more; they are recorded already.

        Raises:
            ValueError: a task that is not out.
        """
        made: list[int] = []
        lost: dict[int, tuple[Outcome, str]] = {}
        for outcome in outcomes:
            task = self._out.pop((outcome.kind, outcome.key), None)
            if task is None:
                raise ValueError(f"{outcome.kind} {outcome.key} is not out: it was recorded before or never handed out")
            position, name = task
            if outcome.kind == "render":
                self._renders_left -= 1
                continue
            self._concepts_left -= 1
            if outcome.status == Status.OK:
                made.append(position)
            else:
                lost[position] = (outcome, name)
        if made:
            self._unlock(made)
        return self._fail(lost) if lost else []

    def unfinished(self) -> int:
        """Number of tasks without a final outcome, including those that are out."""
        return self._concepts_left + self._renders_left

    def remaining(self) -> PerKind[int]:
        """Tasks without a final outcome per kind, including those that are out."""
        return PerKind(self._concepts_left, self._renders_left)

    def _next_training(self) -> TrainUnit | None:
        if not self._trainings and self._next_concept < self._concept_rows:
            rows = self._connection.execute(_CONCEPTS, [self._next_concept, self._next_concept + _PAGE]).fetchall()
            self._trainings.extend((position, _concept_task(*row)) for position, *row in rows)
            self._next_concept += len(rows)
        # Trainings with equal settings follow one another.
        group = [task for _, task in islice(self._trainings, self._group_size)]
        tasks = tuple(task for task in group if task.training == group[0].training)
        for task in tasks:
            position, _ = self._trainings.popleft()
            self._out["concept", task.key] = (position, task.concept_id)
        return TrainUnit(self._unit_id("train"), tasks) if tasks else None

    def _next_renders(self) -> RenderUnit | None:
        full = self._fullest()
        while len(full) < self._render_batch and self._next_ready < self._ready_rows:
            if sum(map(len, self._waiting.values())) >= _MOST_WAITING:
                break
            self._read_page()
            full = self._fullest()
        if not full:
            return None
        tasks = tuple(full.popleft() for _ in range(min(self._render_batch, len(full))))
        if not full:
            del self._waiting[tasks[0].shape]
        for task in tasks:
            self._out["render", task.key] = (0, "")
        return RenderUnit(self._unit_id("render"), tasks)

    def _fullest(self) -> deque[RenderTask]:
        return max(self._waiting.values(), key=len, default=deque())

    def _read_page(self) -> None:
        stop = min(self._next_ready + _PAGE, self._ready_rows)
        for row in self._connection.execute(_READY_RENDERS, [self._next_ready, stop]).fetchall():
            task = _render_task(*row)
            self._waiting.setdefault(task.shape, deque()).append(task)
        self._next_ready = stop

    def _unlock(self, made: list[int]) -> None:
        self._connection.execute("INSERT INTO work_available SELECT unnest(?)", [made])
        self._connection.execute(_UNLOCK, {"made": made, "first": self._ready_rows})
        self._ready_rows = self._count("work_ready")

    def _fail(self, lost: dict[int, tuple[Outcome, str]]) -> list[Outcome]:
        rows = self._connection.execute(_DEPENDANTS, {"lost": list(lost)}).fetchall()
        self._connection.execute("INSERT INTO work_dead SELECT unnest(?::BIGINT[])", [[seq for seq, _, _ in rows]])
        self._renders_left -= len(rows)
        return [_dependant(key, *lost[position]) for _, key, position in rows]

    def _unit_id(self, kind: str) -> str:
        self._units += 1
        return f"{kind}-{self._units:06d}"

    def _count(self, table: str) -> int:
        [(count,)] = self._connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        return count


def _dependant(key: str, concept: Outcome, concept_id: str) -> Outcome:
    """The outcome of a render whose concept failed."""
    reason = f"concept {concept_id!r} failed: {concept.error_message or concept.error_code}"
    return Outcome(
        kind="render",
        key=key,
        status=Status.FAILED,
        error_code=Code.CONCEPT_FAILED,
        error_message=clip(reason, MESSAGE_BYTES),
        attempts=0,
        finished_at=concept.finished_at,
    )


def _concept_task(*row: Any) -> ConceptTask:
    """A task with its photos in the order of their digests, so that their order in the manifest does not matter."""
    key, concept_id, superclass, images, masks, training, start = row
    pairs = sorted(
        zip(images, masks or [None] * len(images), strict=True),
        key=lambda pair: (pair[0]["sha256"], pair[1]["sha256"] if pair[1] else ""),
    )
    return ConceptTask(
        key=key,
        concept_id=concept_id,
        superclass=normalise_superclass(superclass),
        images=tuple(_input(image) for image, _ in pairs),
        masks=tuple(_input(mask) for _, mask in pairs if mask),
        training=TrainingConfig.model_validate_json(training),
        start=_input(start) if start else None,
    )


def _input(picture: dict[str, str]) -> InputImage:
    return InputImage(picture["uri"], picture["sha256"])


def _render_task(*row: Any) -> RenderTask:
    key, prompt, negative_prompt, concepts, ids, seed, bias, temperature, lock, strength = row[:10]
    *scene, keep, picture = row[10:15]
    shape = RenderShape(*row[15:])
    return RenderTask(
        key=key,
        prompt=prompt,
        negative_prompt=negative_prompt,
        concepts=tuple(concepts),
        seed=seed,
        bias=bias,
        temperature=temperature,
        lock=lock,
        shape=shape,
        concept_ids=tuple(ids),
        strength=strength,
        scene=_scene(*scene, keep=keep is not None),
        control=_control(shape, picture),
    )


def _control(shape: RenderShape, picture: dict[str, str] | None) -> InputControl | None:
    if shape.control is None or shape.control_strength is None or picture is None:
        return None
    return InputControl(shape.control, _input(picture), shape.control_strength)


def _scene(
    photo: dict[str, str] | None, mask: dict[str, str] | None, box: list[float] | None, *, keep: bool
) -> InputScene | None:
    if photo is None:
        return None
    shares = (box[0], box[1], box[2], box[3]) if box else None
    return InputScene(_input(photo), _input(mask) if mask else None, shares, keep)


_SHAPE = """
    width, height, steps, guidance, scheduler, scene_strength, guidance_rescale, control, control_strength, frames, fps
"""
_SCENE = "scene, scene_mask, scene_box, keep, control_picture"

_TABLES = [
    """
    CREATE OR REPLACE TABLE work_concepts AS
    SELECT * EXCLUDE (cost), row_number() OVER (ORDER BY cost DESC, training, concept_key) - 1 AS position
    FROM (
        SELECT k.concept_key, c.concept_id, c.superclass, c.images, c.masks, k.training, c.start,
            CAST(k.training ->> '$.steps' AS BIGINT) * CAST(k.training ->> '$.batch' AS BIGINT) AS cost
        FROM concept_keys k JOIN concepts c USING (row)
        WHERE k.row IN (SELECT min(row) FROM concept_keys GROUP BY concept_key)
            AND k.concept_key NOT IN (SELECT key FROM done WHERE kind = 'concept')
    )
    """,
    # Numbered in the order of rendering. Keys are compared by sixteen bytes each: ten million keys of 64 characters do
    # not fit into memory.
    f"""
    CREATE OR REPLACE TABLE work_renders AS
    SELECT render_key, task_prompt, task_negative_prompt, seed, bias, temperature, lock, strength, {_SCENE}, {_SHAPE},
        CASE WHEN keep IS NULL
            THEN list_filter(concept_keys, lambda key, i: list_position(concept_keys, key) = i) ELSE [] END AS concepts,
        CASE WHEN keep IS NULL
            THEN list_filter(concept_ids, lambda id, i: list_position(concept_keys, concept_keys[i]) = i)
            ELSE [] END AS ids,
        row_number() OVER (ORDER BY {_SHAPE}, concept_keys, render_key) - 1 AS seq
    FROM requests
    WHERE rowid IN (
        SELECT min(rid) FROM (
            SELECT rowid AS rid, md5_number(render_key) AS id FROM requests WHERE error_code IS NULL
        ) ANTI JOIN (SELECT md5_number(key) AS id FROM done WHERE kind = 'render') USING (id)
        GROUP BY id
    )
    """,
    # One row per render and concept that it waits for, with the number of all concepts that it waits for. Sorted, so
    # that the rows of the concepts of one unit are adjacent.
    """
    CREATE OR REPLACE TABLE work_waits AS
    SELECT c.position, r.seq, count(*) OVER (PARTITION BY r.seq) AS waits
    FROM (SELECT seq, unnest(concepts) AS concept_key FROM work_renders) r JOIN work_concepts c USING (concept_key)
    ORDER BY c.position
    """,
    "CREATE OR REPLACE TABLE work_joint AS SELECT position, seq, waits FROM work_waits WHERE waits > 1",
    # Tables that change during the run are temporary: each small insert into the file would be synced to disk.
    "CREATE OR REPLACE TEMP TABLE work_available (position BIGINT)",
    "CREATE OR REPLACE TEMP TABLE work_dead (seq BIGINT)",
    """
    CREATE OR REPLACE TEMP TABLE work_ready AS
    SELECT row_number() OVER (ORDER BY seq) - 1 AS place, seq FROM work_renders ANTI JOIN work_waits USING (seq)
    """,
]

_CONCEPTS = """
SELECT position, concept_key, concept_id, superclass, images, masks, training, start
FROM work_concepts WHERE position >= ? AND position < ? ORDER BY position
"""

_READY_RENDERS = f"""
SELECT render_key, task_prompt, task_negative_prompt, concepts, ids, seed, bias, temperature, lock, strength,
    {_SCENE}, {_SHAPE}
FROM work_ready JOIN work_renders USING (seq) WHERE place >= ? AND place < ? ORDER BY place
"""

# A render that waits for several concepts becomes ready with the last of them.
_UNLOCK = """
INSERT INTO work_ready
SELECT $first + row_number() OVER (ORDER BY seq) - 1, seq
FROM (
    SELECT seq FROM work_waits
    WHERE position BETWEEN list_min($made) AND list_max($made) AND position IN (SELECT unnest($made)) AND waits = 1
    UNION ALL
    SELECT j.seq FROM work_joint j
    SEMI JOIN (SELECT seq FROM work_joint WHERE position IN (SELECT unnest($made))) hit ON hit.seq = j.seq
    JOIN work_available a ON a.position = j.position
    GROUP BY j.seq HAVING count(*) = any_value(j.waits)
)
"""

_DEPENDANTS = """
SELECT w.seq, r.render_key, min(w.position)
FROM work_waits w JOIN work_renders r USING (seq)
WHERE w.position BETWEEN list_min($lost) AND list_max($lost) AND w.position IN (SELECT unnest($lost))
    AND w.seq NOT IN (SELECT seq FROM work_dead)
GROUP BY w.seq, r.render_key
"""
