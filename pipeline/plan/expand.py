"""From checked manifests to content keys: what is to be trained and rendered, in SQL over the plan's database.

Every good concepts row gets a key. A good prompts row becomes one request per render; a bad one becomes one request
with its error. `{product}` is crossed with all good concepts, or with those that `where` selects; a named concept is
looked up; a prompt may have both. Prompts are planned in chunks, so memory does not grow with their number. Planning is
idempotent, and reads and writes no storage.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from perfusion_ops.base.chunks import capacity
from perfusion_ops.base.schedules import schedule_problem
from perfusion_ops.base.tokenizer import TokenCounter
from perfusion_ops.base.weights import fragments
from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.bases.prompt_lengths import NO_LIMIT, measure_concepts, measure_prompts, measure_values
from pipeline.contract import keys
from pipeline.contract.errors import ManifestError, RowError
from pipeline.contract.kinds import CONCEPTS, RENDERS, Counts, PerKind, PlanCounts, ResultTable
from pipeline.contract.schemas import check_extra_columns
from pipeline.database.memory import retried
from pipeline.database.plandb import PlanDB, Stage, extra_columns
from pipeline.plan import sampling as sampling_sql
from pipeline.plan import scenes
from pipeline.plan.product_columns import ProductColumns
from pipeline.plan.request_sql import (
    BAD_CONCEPTS,
    BAD_PROMPTS,
    CHUNK,
    HINTS,
    NAMES,
    POINT_OF,
    POINTS,
    PROBLEM_REQUESTS,
    PROBLEMS,
    REQUESTS,
    REQUESTS_ALONE,
    SLICE,
)
from pipeline.plan.where import Sandbox

_PROMPTS_PER_CHUNK = 100_000
_HINT_PAIRS = 2_000_000  # unknown names x concepts to compare for a suggestion: takes about a second
_SETTINGS = pa.schema([("train", pa.string()), ("training", pa.string())])
_SCRATCH = (
    *("chunk", "names", "hints", "problems", "bad_concepts", "matches", "refusals"),
    *("keyed", "lengths", "superclass_lengths", "bad_samplers", "numbered_points"),
    *("asked", "column_spellings", "value_lengths", "bad_weights", "concept_photos", "known_controls"),
)


@retried
def plan_concepts(db: PlanDB, *, base_digest: str, metric_key: str, training: TrainingConfig) -> None:
    """Fill `concept_keys` from the good rows of `concepts`.

    Args:
        db: with `concepts` filled.
        base_digest: digest of the base model.
        metric_key: key of the metric C.
        training: settings that a row's `train` overrides.

    Raises:
        ManifestError: two good rows have one concept_id.
    """
    connection = db.connection
    keys.install(connection)
    connection.execute("DELETE FROM concept_keys")
    twice = connection.execute(
        "SELECT concept_id FROM concepts WHERE error_code IS NULL GROUP BY concept_id HAVING count(*) > 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise ManifestError(f"two rows of the concepts manifest have concept_id {twice[0]!r}: rename one of them")
    distinct = connection.execute(
        "SELECT DISTINCT coalesce(train, '{}') FROM concepts WHERE error_code IS NULL"
    ).fetchall()
    trains = [train for (train,) in distinct]
    settings = [keys.settings_json(training.overridden(json.loads(train))) for train in trains]
    connection.register("settings_rows", pa.table({"train": trains, "training": settings}, schema=_SETTINGS))
    connection.execute("CREATE OR REPLACE TEMP TABLE settings AS SELECT * FROM settings_rows")
    connection.unregister("settings_rows")
    connection.execute(
        """
        INSERT INTO concept_keys BY NAME
        SELECT c.row, c.concept_id, s.training, concept_key(
            $base_digest, $metric_key, s.training, c.superclass,
            list_transform(c.images, lambda image: key_picture(image.sha256, image.reading)),
            list_transform(c.masks, lambda mask: key_picture(mask.sha256, mask.reading)), c.start.sha256
        ) AS concept_key
        FROM concepts c JOIN settings s ON s.train = coalesce(c.train, '{}') WHERE c.error_code IS NULL
        """,
        {"base_digest": base_digest, "metric_key": metric_key},
    )
    connection.execute("DROP TABLE settings")
    db.mark_filled(Stage.CONCEPT_KEYS)


@retried
def plan_requests(
    db: PlanDB,
    *,
    base_digest: str,
    sampling: SamplingConfig,
    seed: int,
    counter: TokenCounter | None = None,
    schedule: Mapping[str, Any] | None = None,
    controls: Mapping[str, str] | None = None,
    motion_digest: str | None = None,
    most_frames: int | None = None,
    rescales: bool = True,
    pooled: bool = False,
) -> None:
    """Fill `requests` from `prompts`.

    Args:
        db: with `concept_keys` filled; `points` may have settings of single concepts.
        base_digest: digest of the base model.
        sampling: defaults for empty cells without a point.
        seed: base seed, for rows that set none.
        counter: counts the base model's tokens; if None, no prompt is too long.
        schedule: the base model's scheduler_config.json; if None, every sampler is allowed.
        controls: digests of the ControlNets by their names in the spec.
        motion_digest: digest of the motion adapter that draws videos.
        most_frames: the longest video that it draws.
        rescales: whether a row may have `guidance_rescale`.
        pooled: whether the base model is also given a pooled vector, for which superclasses replace concepts.

    Raises:
        ManifestError: an extra column clashes with a result column or is in both manifests.
    """
    db.require(Stage.CONCEPT_KEYS)
    connection = db.connection
    check_extra_columns(extra_columns(connection, "concepts"), extra_columns(connection, "prompts"))
    keys.install(connection)
    connection.execute("DELETE FROM requests")
    connection.execute(BAD_CONCEPTS)
    connection.execute(BAD_PROMPTS)
    _match_where(db)
    [(first, last)] = connection.execute("SELECT coalesce(min(row), 1), coalesce(max(row), 0) FROM prompts").fetchall()
    defaults = sampling.model_dump(mode="json")
    edit_unconditional, combine, strength = (
        defaults.pop(name) for name in ("edit_unconditional", "combine", "strength")
    )
    file = {name: defaults.pop(name) for name in ("format", "webp_quality")}
    settings = {name: defaults.pop(name) for name in ("vae_tiling", "prompt_weights")}
    chunks = defaults.pop("prompt_chunks")
    [(locked,)] = connection.execute(
        "SELECT EXISTS (FROM prompts WHERE error_code IS NULL AND coalesce(lock, ?) = 'global') "
        "OR EXISTS (FROM prompts WHERE error_code IS NULL AND control IS NOT NULL) "
        "OR EXISTS (FROM points WHERE lock = 'global')",
        [sampling.lock],
    ).fetchall()
    [(spelt_out,)] = connection.execute(
        "SELECT EXISTS (FROM concept_keys WHERE training ->> '$.recipe' = 'offset')"
    ).fetchall()
    keeps = scenes.find_photos(connection)
    measure_concepts(connection, counter, wanted=locked or spelt_out or keeps or pooled or combine == "regional")
    sampling_sql.name_controls(connection, controls or {})
    connection.execute(POINTS)
    connection.execute(POINT_OF)
    columns = ProductColumns(connection, weighted=sampling.prompt_weights)
    counter = counter.of_weights() if counter and sampling.prompt_weights else counter
    _find_bad_samplers(db, schedule, sampling)
    limit = capacity(counter.limit, chunks) if counter else NO_LIMIT
    [(threads,)] = connection.execute("SELECT current_setting('threads')").fetchall()
    slices = "UNION ALL".join(SLICE.format(slices=threads, slice=number) for number in range(threads))
    for start in range(first, last + 1, _PROMPTS_PER_CHUNK):
        stop = start + _PROMPTS_PER_CHUNK
        connection.execute(CHUNK, {"start": start, "stop": stop, **defaults})
        connection.execute(NAMES)
        with_columns = columns.resolve()
        measure_prompts(connection, counter, start=start, stop=min(stop, last + 1))
        if with_columns:
            measure_values(connection, counter)
        connection.execute(HINTS, {"pairs": _HINT_PAIRS})
        _find_bad_weights(db, wanted=sampling.prompt_weights)
        asked = {"negative_prompt": sampling.negative_prompt, "rescales": rescales, "most_frames": most_frames}
        connection.execute(PROBLEMS, {"limit": limit, **asked})
        connection.execute(PROBLEM_REQUESTS)
        values = {
            "base_digest": base_digest,
            "base_seed": seed,
            "edit_unconditional": edit_unconditional,
            "strength": strength,
            "limit": limit,
            "chunks": chunks,
            "pooled": pooled,
            "motion_digest": motion_digest,
            **file,
            **settings,
        }
        connection.execute(REQUESTS_ALONE.replace("#CROSSED#", slices), values)
        connection.execute(REQUESTS, {**values, "combine": combine})
    for table in _SCRATCH:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    [(lost,)] = connection.execute(
        "SELECT count(*) FROM prompts p ANTI JOIN requests r ON r.prompt_row = p.row"
    ).fetchall()
    assert lost == 0, f"{lost} prompts rows have no request"
    db.mark_filled(Stage.REQUESTS)


@retried
def count_plan(db: PlanDB) -> PlanCounts:
    """Count a plan; keys in `done` count as reused.

    Args:
        db: with `requests` filled; without `done` nothing is reused.
    """
    db.require(Stage.REQUESTS)

    # Sixteen bytes per key: keys of 64 characters would not fit into memory.
    def counted(rows: str, table: ResultTable) -> Counts:
        return Counts(
            *db.connection.execute(f"""
            WITH planned AS (
                SELECT md5_number({table.key_column}) AS id, count(*) AS rows
                FROM {rows} WHERE error_code IS NULL GROUP BY id
            ),
            compared AS (
                SELECT rows, id IN (SELECT md5_number(key) FROM done WHERE kind = '{table.kind}') AS there FROM planned
            ),
            bad AS (SELECT count(*) AS rows FROM {rows} WHERE error_code IS NOT NULL)
            SELECT coalesce(sum(rows), 0) + (SELECT rows FROM bad), (SELECT rows FROM bad),
                coalesce(sum(rows) FILTER (there), 0), coalesce(sum(rows) FILTER (NOT there), 0),
                count(*), count(*) FILTER (NOT there)
            FROM compared
            """).fetchall()[0]
        )

    concepts = "(SELECT k.concept_key, c.error_code FROM concepts c LEFT JOIN concept_keys k USING (row))"
    return PerKind(counted(concepts, CONCEPTS), counted(RENDERS.planned, RENDERS))


def _match_where(db: PlanDB) -> None:
    """Fill `matches` and `refusals`; each distinct expression is evaluated once."""
    connection = db.connection
    connection.execute("CREATE OR REPLACE TEMP TABLE matches (where_expr VARCHAR, concept_id VARCHAR)")
    connection.execute("CREATE OR REPLACE TEMP TABLE refusals (where_expr VARCHAR, error_message VARCHAR)")
    distinct = connection.execute(
        "SELECT DISTINCT trim(where_expr) FROM prompts WHERE error_code IS NULL AND trim(where_expr) <> '' ORDER BY 1"
    ).fetchall()
    if not distinct:
        return
    with Sandbox(connection) as sandbox:
        for (expression,) in distinct:
            try:
                connection.register("matching", sandbox.matching(expression))
            except RowError as error:
                connection.execute("INSERT INTO refusals VALUES (?, ?)", [expression, str(error)])
            else:
                connection.execute("INSERT INTO matches SELECT ?, concept_id FROM matching", [expression])
                connection.unregister("matching")


def _find_bad_weights(db: PlanDB, *, wanted: bool) -> None:
    """Fill `bad_weights`: rows of `chunk` whose prompts have parentheses that are no weights."""
    connection = db.connection
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE bad_weights (row BIGINT, error_column VARCHAR, error_message VARCHAR)"
    )
    for column in ("prompt", "negative_prompt") if wanted else ():
        asked = connection.execute(
            f"SELECT row, {column} FROM chunk WHERE contains({column}, '(') OR contains({column}, ')')"
        ).fetchall()
        for row, text in asked:
            try:
                fragments(text)
            except ValueError as error:
                message = f"{column}: {error}, or set render.prompt_weights to false"
                connection.execute("INSERT INTO bad_weights VALUES (?, ?, ?)", [row, column, message])


def _find_bad_samplers(db: PlanDB, schedule: Mapping[str, Any] | None, sampling: SamplingConfig) -> None:
    """Fill `bad_samplers`: pairs of scheduler and steps that do not suit the base model's schedule."""
    connection = db.connection
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE bad_samplers "
        "(scheduler VARCHAR, steps INTEGER, error_column VARCHAR, error_message VARCHAR)"
    )
    asked = connection.execute(
        "SELECT DISTINCT coalesce(scheduler, ?), coalesce(steps, ?) FROM prompts WHERE error_code IS NULL",
        [sampling.scheduler, sampling.steps],
    ).fetchall()
    for scheduler, steps in asked:
        message = None if schedule is None else schedule_problem(schedule, scheduler, steps)
        if message:
            column = message.partition(" ")[0]
            connection.execute("INSERT INTO bad_samplers VALUES (?, ?, ?, ?)", [scheduler, steps, column, message])
