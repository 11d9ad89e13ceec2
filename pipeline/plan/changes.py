"""Why keys are to be done: what is new in a plan, and what replaces a stale result, with the reason.

The place of a render is its prompt, negative prompt, scene, ControlNet and its picture, size and index, and whether it
is a video, as in the view `current`. If a planned render differs from the current render of its place, the first of
these that differs is the reason: the base model, the weights of its concepts, the photo of its scene, what its
ControlNet follows, its settings (seed, sampler, bias, temperature, lock). A render without a current one is new, unless
its manifest row made a render of the same concepts that is not planned any more: then the prompt, the scene or the
ControlNet changed.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.contract.kinds import PerKind
from pipeline.database.plandb import PlanDB, Stage
from pipeline.storage.objects import Storage
from pipeline.tables.views import connect

NEW, LOST, BASE, WEIGHTS, SETTINGS, PROMPT = "new", "object gone", "base", "weights", "settings", "prompt"
SCENE, CONTROL = "scene", "control"
SUPERCLASS, TRAINING = "superclass", "pictures or training"


Changes = PerKind[dict[str, int]]  # distinct keys to do, by reason; reasons without keys are absent


def find_changes(db: PlanDB, storage: Storage, *, base_digests: tuple[str, str], memory_limit: str) -> Changes:
    """Compare the keys to do with the published tables.

    Args:
        db: with `requests` and `done` filled.
        storage: with the tables of earlier runs.
        base_digests: of the plan's base models: the one that trains and the one that renders.
        memory_limit: DuckDB limit, above which the comparison spills to disk.

    Raises:
        StorageError: the tables cannot be listed.
    """
    db.require(Stage.REQUESTS, Stage.DONE)
    trains, renders = ({"base_digest": digest} for digest in base_digests)
    with connect(storage) as connection:
        connection.execute(f"SET memory_limit = '{memory_limit}'")
        for name, sql in (("planned_concepts", _PLANNED_CONCEPTS), ("planned_renders", _PLANNED_RENDERS)):
            connection.register("rows_planned", db.connection.sql(sql).to_arrow_reader())
            connection.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM rows_planned")
            connection.unregister("rows_planned")
        return PerKind(
            _counts(connection.execute(_CONCEPTS, trains).fetchall()),
            _counts(connection.execute(_RENDERS, renders).fetchall()),
        )


def _counts(rows: Sequence[tuple[Any, ...]]) -> dict[str, int]:
    return {str(reason): int(count) for reason, count in rows}


_PLANNED_CONCEPTS = """
SELECT k.concept_key, any_value(k.concept_id) AS concept_id, any_value(normalise_superclass(c.superclass)) AS superclass
FROM concept_keys k JOIN concepts c USING (row)
WHERE k.concept_key NOT IN (SELECT key FROM done WHERE kind = 'concept') GROUP BY k.concept_key
"""

_PLANNED_RENDERS = """
SELECT prompt_row AS manifest_row, image_index, concept_ids, concept_keys, render_key, prompt, negative_prompt, seed,
    width, height, shown_uri(scene.uri) AS scene, scene.sha256 AS scene_sha256, keep,
    control, shown_uri(control_picture.uri) AS control_picture, control_picture.sha256 AS control_sha256, frames,
    d.key IS NOT NULL AS done
FROM requests LEFT JOIN (SELECT key FROM done WHERE kind = 'render') d ON d.key = render_key
WHERE error_code IS NULL
"""

_CONCEPTS = f"""
WITH old AS (
    SELECT concept_id, arg_max(superclass, finished_at) AS superclass, arg_max(base_digest, finished_at) AS base_digest
    FROM concepts WHERE status = 'ok' GROUP BY concept_id
)
SELECT CASE
    WHEN p.concept_key IN (SELECT concept_key FROM concepts WHERE status = 'ok') THEN '{LOST}'
    WHEN o.concept_id IS NULL THEN '{NEW}'
    WHEN o.base_digest <> $base_digest THEN '{BASE}'
    WHEN trim(regexp_replace(o.superclass, '\\s+', ' ', 'g')) <> p.superclass THEN '{SUPERCLASS}'
    ELSE '{TRAINING}' END AS reason, count(*)
FROM planned_concepts p LEFT JOIN old o USING (concept_id) GROUP BY 1 ORDER BY 2 DESC, 1
"""

# A place may have several renders (seeds): the one with the same seed is replaced. Products with equal photos share
# renders: what one of them does not want any more, another one may still want at its own place.
_RENDERS = f"""
WITH to_do AS (
    SELECT * FROM planned_renders WHERE NOT done
    QUALIFY row_number() OVER (PARTITION BY render_key ORDER BY manifest_row, image_index) = 1
),
unwanted AS (SELECT * FROM current ANTI JOIN planned_renders USING (render_key, prompt)),
at_place AS (
    SELECT t.render_key, arg_max(o.base_digest = $base_digest, o.seed = t.seed) AS same_base,
        arg_max(o.concept_keys = t.concept_keys, o.seed = t.seed) AS same_weights,
        arg_max(o.scene_sha256 IS NOT DISTINCT FROM t.scene_sha256, o.seed = t.seed) AS same_scene,
        arg_max(o.control_sha256 IS NOT DISTINCT FROM t.control_sha256, o.seed = t.seed) AS same_control
    FROM to_do t JOIN unwanted o ON o.prompt = t.prompt AND o.negative_prompt = t.negative_prompt
        AND o.scene IS NOT DISTINCT FROM t.scene AND o.keep IS NOT DISTINCT FROM t.keep
        AND o.control IS NOT DISTINCT FROM t.control AND o.control_picture IS NOT DISTINCT FROM t.control_picture
        AND (o.frames IS NULL) = (t.frames IS NULL)
        AND o.width IS NOT DISTINCT FROM t.width AND o.height IS NOT DISTINCT FROM t.height
        AND o.image_index = t.image_index
    GROUP BY t.render_key
),
same_row AS (
    SELECT t.render_key, bool_or(o.prompt = t.prompt AND o.negative_prompt = t.negative_prompt AND (
            o.scene IS DISTINCT FROM t.scene OR o.keep IS DISTINCT FROM t.keep)) AS other_scene,
        bool_or(o.prompt = t.prompt AND o.negative_prompt = t.negative_prompt AND (
            o.control IS DISTINCT FROM t.control OR o.control_picture IS DISTINCT FROM t.control_picture
        )) AS other_control
    FROM to_do t JOIN unwanted o USING (manifest_row, image_index, concept_ids) GROUP BY t.render_key
)
SELECT CASE
    WHEN t.render_key IN (SELECT render_key FROM renders WHERE status = 'ok') THEN '{LOST}'
    WHEN NOT a.same_base THEN '{BASE}'
    WHEN NOT a.same_weights THEN '{WEIGHTS}'
    WHEN NOT a.same_scene THEN '{SCENE}'
    WHEN NOT a.same_control THEN '{CONTROL}'
    WHEN a.same_weights THEN '{SETTINGS}'
    WHEN r.other_scene THEN '{SCENE}'
    WHEN r.other_control THEN '{CONTROL}'
    WHEN r.render_key IS NOT NULL THEN '{PROMPT}'
    ELSE '{NEW}' END AS reason, count(*)
FROM to_do t LEFT JOIN at_place a USING (render_key) LEFT JOIN same_row r USING (render_key)
GROUP BY 1 ORDER BY 2 DESC, 1
"""
