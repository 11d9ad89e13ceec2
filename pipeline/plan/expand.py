"""From checked manifests to keys: what is to be trained and rendered, all of it in SQL over the PlanDB.

Every good concepts row gets a key; every prompts row becomes at least one request, bad ones exactly one that carries
their code. `{product}` is crossed with every good concept or with those that `where` selects; named concepts are looked
up; both may stand in one prompt. Prompts are planned some thousands at a time, so that memory does not grow with them.
Planning again replaces what was planned before; nothing here reads or writes storage.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from perfusion_ops.base.schedules import schedule_problem
from perfusion_ops.base.tokenizer import TokenCounter
from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.bases.prompt_lengths import FLAW, FLAWED, LONG_TEXTS, NO_LIMIT, measure_concepts, measure_prompts
from pipeline.contract import keys
from pipeline.contract.errors import Code, ManifestError, RowError
from pipeline.contract.kinds import CONCEPTS, RENDERS, Counts, PerKind, PlanCounts, ResultTable
from pipeline.contract.placeholders import PLACEHOLDER
from pipeline.contract.schemas import check_extra_columns
from pipeline.database.memory import retried
from pipeline.database.plandb import PlanDB, extra_columns
from pipeline.plan.where import Sandbox

_PROMPTS_PER_CHUNK = 100_000
_HINT_PAIRS = 2_000_000  # unknown names x concepts that are compared to say "did you mean": about a second
_MAX_SEED = 2**63 - 1
_SETTINGS = pa.schema([("train", pa.string()), ("training", pa.string())])
_SCRATCH = (
    *("chunk", "names", "hints", "problems", "bad_concepts", "matches", "refusals"),
    *("keyed", "lengths", "superclass_lengths", "bad_samplers"),
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
        "SELECT concept_id FROM concepts WHERE code IS NULL GROUP BY concept_id HAVING count(*) > 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise ManifestError(f"concept_id {twice[0]!r} stands in two rows of the concepts manifest: rename one of them")
    distinct = connection.execute("SELECT DISTINCT coalesce(train, '{}') FROM concepts WHERE code IS NULL").fetchall()
    trains = [train for (train,) in distinct]
    settings = [keys.settings_json(_overridden(training, json.loads(train))) for train in trains]
    connection.register("settings_rows", pa.table({"train": trains, "training": settings}, schema=_SETTINGS))
    connection.execute("CREATE OR REPLACE TEMP TABLE settings AS SELECT * FROM settings_rows")
    connection.unregister("settings_rows")
    connection.execute(
        """
        INSERT INTO concept_keys BY NAME
        SELECT c.row, c.concept_id, s.training, concept_key(
            $base_digest, $metric_key, s.training, c.superclass,
            list_transform(c.images, lambda image: key_picture(image.sha256, image.reading)),
            list_transform(c.masks, lambda mask: key_picture(mask.sha256, mask.reading))
        ) AS concept_key
        FROM concepts c JOIN settings s ON s.train = coalesce(c.train, '{}') WHERE c.code IS NULL
        """,
        {"base_digest": base_digest, "metric_key": metric_key},
    )
    connection.execute("DROP TABLE settings")


@retried
def plan_requests(
    db: PlanDB,
    *,
    base_digest: str,
    sampling: SamplingConfig,
    seed: int,
    counter: TokenCounter | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> None:
    """Fill `requests` from `prompts`; `concept_keys` must be filled.

    Args:
        db: the plan.
        base_digest: digest of the base model.
        sampling: what a row's empty cells mean.
        seed: the run's base seed, from which rows without a seed derive theirs.
        counter: counts the base model's tokens; without it no prompt is too long.
        schedule: the base model's scheduler_config.json; without it every sampler suits.

    Raises:
        ManifestError: an extra column clashes with a result column or stands in both manifests.
    """
    connection = db.connection
    check_extra_columns(extra_columns(connection, "concepts"), extra_columns(connection, "prompts"))
    keys.install(connection)
    connection.execute("DELETE FROM requests")
    connection.execute(_BAD_CONCEPTS)
    connection.execute(_BAD_PROMPTS)
    _match_where(db)
    [(first, last)] = connection.execute("SELECT coalesce(min(row), 1), coalesce(max(row), 0) FROM prompts").fetchall()
    defaults = sampling.model_dump(mode="json")
    edit_unconditional = defaults.pop("edit_unconditional")
    [(locked,)] = connection.execute(
        "SELECT EXISTS (FROM prompts WHERE code IS NULL AND coalesce(lock, ?) = 'global')", [sampling.lock]
    ).fetchall()
    measure_concepts(connection, counter, locked=locked)
    _find_bad_samplers(db, schedule, sampling)
    limit = counter.limit if counter else NO_LIMIT
    [(threads,)] = connection.execute("SELECT current_setting('threads')").fetchall()
    slices = "UNION ALL".join(_SLICE.format(slices=threads, slice=number) for number in range(threads))
    for start in range(first, last + 1, _PROMPTS_PER_CHUNK):
        stop = start + _PROMPTS_PER_CHUNK
        connection.execute(_CHUNK, {"start": start, "stop": stop, **defaults})
        measure_prompts(connection, counter, start=start, stop=min(stop, last + 1))
        connection.execute(_NAMES)
        connection.execute(_HINTS, {"pairs": _HINT_PAIRS})
        connection.execute(_PROBLEMS, {"limit": limit, "negative_prompt": sampling.negative_prompt})
        connection.execute(_PROBLEM_REQUESTS)
        values = {
            "base_digest": base_digest,
            "base_seed": seed,
            "edit_unconditional": edit_unconditional,
            "limit": limit,
        }
        connection.execute(_REQUESTS_ALONE.replace("#CROSSED#", slices), values)
        connection.execute(_REQUESTS, values)
    for table in _SCRATCH:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    [(lost,)] = connection.execute(
        "SELECT count(*) FROM prompts p ANTI JOIN requests r ON r.prompt_row = p.row"
    ).fetchall()
    assert lost == 0, f"{lost} prompts rows were planned as nothing"


@retried
def count_plan(db: PlanDB) -> PlanCounts:
    """Count a plan; keys in `done` count as reused.

    Args:
        db: with `requests` filled; `done` may be empty.
    """

    # Sixteen bytes of each key's digest: the keys themselves, of 64 characters, would not fit into memory.
    def counted(rows: str, table: ResultTable) -> Counts:
        return Counts(
            *db.connection.execute(f"""
            WITH planned AS (
                SELECT md5_number({table.key_column}) AS id, count(*) AS rows
                FROM {rows} WHERE code IS NULL GROUP BY id
            ),
            compared AS (
                SELECT rows, id IN (SELECT md5_number(key) FROM done WHERE kind = '{table.kind}') AS there FROM planned
            ),
            bad AS (SELECT count(*) AS rows FROM {rows} WHERE code IS NOT NULL)
            SELECT coalesce(sum(rows), 0) + (SELECT rows FROM bad), (SELECT rows FROM bad),
                coalesce(sum(rows) FILTER (there), 0), coalesce(sum(rows) FILTER (NOT there), 0),
                count(*), count(*) FILTER (NOT there)
            FROM compared
            """).fetchall()[0]
        )

    concepts = "(SELECT k.concept_key, c.code FROM concepts c LEFT JOIN concept_keys k USING (row))"
    return PerKind(counted(concepts, CONCEPTS), counted(RENDERS.planned, RENDERS))


def _overridden(training: TrainingConfig, overrides: dict[str, object]) -> TrainingConfig:
    return TrainingConfig.model_validate({**training.model_dump(), **overrides})


def _match_where(db: PlanDB) -> None:
    """Fill `matches` and `refusals`: each distinct expression is evaluated once."""
    connection = db.connection
    connection.execute("CREATE OR REPLACE TEMP TABLE matches (where_expr VARCHAR, concept_id VARCHAR)")
    connection.execute("CREATE OR REPLACE TEMP TABLE refusals (where_expr VARCHAR, message VARCHAR)")
    distinct = connection.execute(
        "SELECT DISTINCT trim(where_expr) FROM prompts WHERE code IS NULL AND trim(where_expr) <> '' ORDER BY 1"
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


def _find_bad_samplers(db: PlanDB, schedule: Mapping[str, Any] | None, sampling: SamplingConfig) -> None:
    """Fill `bad_samplers`: each distinct scheduler and number of steps that the base model's schedule rules out."""
    connection = db.connection
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE bad_samplers "
        "(scheduler VARCHAR, steps INTEGER, column_name VARCHAR, message VARCHAR)"
    )
    asked = connection.execute(
        "SELECT DISTINCT coalesce(scheduler, ?), coalesce(steps, ?) FROM prompts WHERE code IS NULL",
        [sampling.scheduler, sampling.steps],
    ).fetchall()
    for scheduler, steps in asked:
        message = None if schedule is None else schedule_problem(schedule, scheduler, steps)
        if message:
            column = message.partition(" ")[0]
            connection.execute("INSERT INTO bad_samplers VALUES (?, ?, ?, ?)", [scheduler, steps, column, message])


_BAD_CONCEPTS = """
CREATE OR REPLACE TEMP TABLE bad_concepts AS
SELECT concept_id, min(row) AS row, arg_min(message, row) AS message
FROM concepts WHERE code IS NOT NULL AND concept_id IS NOT NULL GROUP BY concept_id
"""

_BAD_PROMPTS = """
INSERT INTO requests BY NAME
SELECT row AS prompt_row, 0 AS image_index, prompt, negative_prompt, seed, bias, temperature, lock,
    width, height, steps, guidance, scheduler, code, column_name, message
FROM prompts WHERE code IS NOT NULL
"""

# The good prompts of a chunk: text between placeholders, and the names in them, those of `prompt` first.
_CHUNK = f"""
CREATE OR REPLACE TEMP TABLE chunk AS
SELECT row, prompt, negative_prompt, where_expr, seed, num_images, bias, temperature, lock, width, height,
    steps, guidance, scheduler,
    string_split_regex(prompt, '{PLACEHOLDER}') AS texts,
    string_split_regex(negative_prompt, '{PLACEHOLDER}') AS negative_texts,
    regexp_extract_all(prompt, '{PLACEHOLDER}', 1)
        || regexp_extract_all(negative_prompt, '{PLACEHOLDER}', 1) AS names,
    list_contains(names, 'product') AS crossed, crossed AND list_unique(names) = 1 AS alone
FROM (
    SELECT * REPLACE (
        coalesce(negative_prompt, $negative_prompt) AS negative_prompt, nullif(trim(where_expr), '') AS where_expr,
        coalesce(num_images, 1) AS num_images, coalesce(bias, $bias::DOUBLE) AS bias,
        coalesce(temperature, $temperature::DOUBLE) AS temperature, coalesce(lock, $lock) AS lock,
        coalesce(width, $width) AS width, coalesce(height, $height) AS height, coalesce(steps, $steps) AS steps,
        coalesce(guidance, $guidance::DOUBLE) AS guidance, coalesce(scheduler, $scheduler) AS scheduler
    )
    FROM prompts WHERE row >= $start AND row < $stop AND code IS NULL
)
"""

# One row per placeholder; those of {product} have no key yet.
_NAMES = """
CREATE OR REPLACE TEMP TABLE names AS
SELECT n.row, n.position, n.name, n.in_prompt, k.concept_key, k.superclass_tokens, k.trained,
    b.row AS bad_row, b.message AS bad_message
FROM (
    SELECT row, unnest(names) AS name, generate_subscripts(names, 1) AS position,
        position < len(texts) AS in_prompt
    FROM chunk
) n
LEFT JOIN keyed k ON k.concept_id = n.name AND n.name <> 'product'
LEFT JOIN bad_concepts b ON b.concept_id = n.name AND n.name <> 'product'
"""

_HINTS = """
CREATE OR REPLACE TEMP TABLE hints AS
WITH unknown AS (
    SELECT DISTINCT name FROM names WHERE name <> 'product' AND concept_key IS NULL AND bad_row IS NULL
)
SELECT u.name, arg_min(k.concept_id, (levenshtein(u.name, k.concept_id), k.concept_id)) AS nearest
FROM unknown u CROSS JOIN keyed k
WHERE (SELECT count(*) FROM unknown) * (SELECT count(*) FROM keyed) <= $pairs
    AND levenshtein(u.name, k.concept_id) <= greatest(2, len(u.name) // 4)
GROUP BY u.name
"""

# The first problem of each row of the chunk.
_PROBLEMS = f"""
CREATE OR REPLACE TEMP TABLE problems AS
WITH matched AS (SELECT DISTINCT where_expr FROM matches),
found AS (
    SELECT row, position AS rank, CASE WHEN in_prompt THEN 'prompt' ELSE 'negative_prompt' END AS column_name,
        CASE WHEN bad_row IS NULL THEN '{Code.UNKNOWN_CONCEPT}' ELSE '{Code.CONCEPT_INVALID}' END AS code,
        column_name || ' names concept ''' || name || ''', ' || CASE WHEN bad_row IS NULL
            THEN 'which the concepts manifest does not have: '
                || coalesce('write ''' || nearest || ''' if that is meant, or ', '') || 'add a row with this concept_id'
            ELSE 'whose row ' || bad_row || ' of the concepts manifest is invalid (' || coalesce(bad_message, '')
                || '): correct that row' END AS message
    FROM names LEFT JOIN hints USING (name) WHERE name <> 'product' AND concept_key IS NULL
    UNION ALL
    {LONG_TEXTS}
    UNION ALL
    SELECT row, 900001, column_name, '{Code.OUT_OF_RANGE}', message
    FROM chunk JOIN bad_samplers USING (scheduler, steps)
    UNION ALL
    SELECT row, 1000000, 'where', '{Code.BAD_WHERE}',
        'where selects the concepts that stand for {{product}}, but the prompt has no {{product}}: '
        || 'write it in the prompt or leave where empty'
    FROM chunk WHERE where_expr IS NOT NULL AND NOT crossed
    UNION ALL
    SELECT row, 1000001, 'where', '{Code.BAD_WHERE}', message FROM chunk JOIN refusals USING (where_expr)
    UNION ALL
    SELECT row, 1000002, 'seed', '{Code.OUT_OF_RANGE}',
        'seed ' || seed || ' with ' || num_images || ' images goes past the largest seed, {_MAX_SEED}: '
        || 'choose a smaller one'
    FROM chunk WHERE seed > {_MAX_SEED} - (num_images - 1)
    UNION ALL
    SELECT row, 1000003, 'where', '{Code.NO_MATCH}',
        'where "' || where_expr || '" is true for none of the good concepts: correct the condition or the manifest'
    FROM chunk ANTI JOIN matched USING (where_expr) WHERE where_expr IS NOT NULL AND crossed
    UNION ALL
    SELECT row, 1000004, 'prompt', '{Code.NO_MATCH}',
        'there is no good concept to stand for {{product}}: correct the invalid rows of the concepts manifest'
    FROM chunk WHERE crossed AND where_expr IS NULL AND NOT EXISTS (SELECT 1 FROM keyed)
)
SELECT * FROM found QUALIFY row_number() OVER (PARTITION BY row ORDER BY rank) = 1
"""

_PROBLEM_REQUESTS = """
INSERT INTO requests BY NAME
SELECT c.row AS prompt_row, 0 AS image_index, nullif(list_filter(
        c.names, lambda name, i: name <> 'product' AND list_position(c.names, name) = i), []) AS concept_ids,
    c.prompt, c.negative_prompt, c.seed, c.bias, c.temperature, c.lock, c.width, c.height, c.steps, c.guidance,
    c.scheduler, p.code, p.column_name, p.message
FROM chunk c JOIN problems p USING (row)
"""

# Prompts that name nothing but {product}, which most do: all but the concept is written once for all concepts.
_REQUESTS_ALONE = f"""
INSERT INTO requests BY NAME
WITH good AS (
    SELECT c.*, l.tokens, l.negative_tokens, len(texts) - 1 AS slots, len(negative_texts) - 1 AS negative_slots,
        unnest(range(num_images)) AS image_index, array_to_string(texts, '{{0}}') AS task_prompt,
        array_to_string(negative_texts, '{{0}}') AS task_negative_prompt, render_text(
            task_prompt, task_negative_prompt, steps, guidance, scheduler, width, height,
            bias, temperature, lock, $edit_unconditional::BOOLEAN) AS material
    FROM chunk c JOIN lengths l USING (row) ANTI JOIN problems p ON p.row = c.row
    WHERE c.alone
),
crossed AS (#CROSSED#),
pictures AS (
    SELECT * REPLACE (coalesce(seed + image_index, default_seed(material, $base_seed, image_index)) AS seed),
        [concept_id] AS named, CASE WHEN NOT trained THEN concept_id END AS untrained,
        tokens + slots * superclass_tokens AS prompt_count,
        negative_tokens + negative_slots * superclass_tokens AS negative_count, {FLAW} AS flaw
    FROM (SELECT * REPLACE (render_concepts($base_digest, [concept_key]) || material AS material) FROM crossed)
)
SELECT row AS prompt_row, image_index, [concept_id] AS concept_ids, [concept_key] AS concept_keys,
    CASE WHEN flaw IS NULL THEN render_key(material, seed) END AS render_key,
    replace(prompt, '{{product}}', '{{' || concept_id || '}}') AS prompt, task_prompt,
    replace(negative_prompt, '{{product}}', '{{' || concept_id || '}}') AS negative_prompt,
    task_negative_prompt, seed, bias, temperature, lock, width, height, steps, guidance, scheduler, {FLAWED}
FROM pictures
"""

# DuckDB shares a scan out among its threads by 122,880 rows, which would leave most catalogues to one of them.
_SLICE = """
    SELECT g.*, k.concept_id, k.concept_key, k.superclass_tokens, k.trained
    FROM good g CROSS JOIN keyed k WHERE g.where_expr IS NULL AND k.row % {slices} = {slice}
    UNION ALL
    SELECT g.*, k.concept_id, k.concept_key, k.superclass_tokens, k.trained
    FROM good g JOIN matches m USING (where_expr) JOIN keyed k USING (concept_id)
    WHERE k.row % {slices} = {slice}
"""

# `ids` and `keys` stand in the order of the placeholders; a concept's number is the place of its key among the distinct
# ones: two ids of equal content are one concept to the method, whose directions must be independent.
_REQUESTS = f"""
INSERT INTO requests BY NAME
WITH good AS (
    SELECT c.*, l.tokens, l.negative_tokens, len(texts) - 1 AS slots, coalesce(n.keys, []) AS keys, n.sizes, n.trains
    FROM chunk c JOIN lengths l USING (row)
    LEFT JOIN (
        SELECT row, list(concept_key ORDER BY position) AS keys, list(superclass_tokens ORDER BY position) AS sizes,
            list(trained ORDER BY position) AS trains
        FROM names GROUP BY row
    ) n USING (row)
    ANTI JOIN problems p ON p.row = c.row
    WHERE NOT c.alone
),
crossed AS (
    SELECT g.*, k.concept_id AS product_id, k.concept_key AS product_key, k.superclass_tokens, k.trained
    FROM good g CROSS JOIN keyed k WHERE g.crossed AND g.where_expr IS NULL
    UNION ALL
    SELECT g.*, k.concept_id, k.concept_key, k.superclass_tokens, k.trained
    FROM good g JOIN matches m USING (where_expr) JOIN keyed k USING (concept_id) WHERE g.crossed
    UNION ALL
    SELECT g.*, NULL, NULL, NULL, NULL FROM good g WHERE NOT g.crossed
),
filled AS (
    SELECT * REPLACE (
            list_transform(keys, lambda key: coalesce(key, product_key)) AS keys,
            list_transform(sizes, lambda size: coalesce(size, superclass_tokens)) AS sizes,
            list_transform(trains, lambda learns: coalesce(learns, trained)) AS trains
        ),
        list_transform(names, lambda name: CASE name WHEN 'product' THEN product_id ELSE name END) AS ids
    FROM crossed
),
numbered AS (
    SELECT *, list_filter(keys, lambda key, i: list_position(keys, key) = i) AS distinct_keys,
        list_transform(keys, lambda key: '{{' || (list_position(distinct_keys, key) - 1) || '}}') AS numbers
    FROM filled
),
written AS (
    SELECT *,
        array_to_string(list_transform(
            texts, lambda part, i: part || CASE WHEN i < len(texts) THEN numbers[i] ELSE '' END), '') AS task_prompt,
        array_to_string(list_transform(negative_texts, lambda part, i: part
            || CASE WHEN i < len(negative_texts) THEN numbers[len(texts) - 1 + i] ELSE '' END), '')
            AS task_negative_prompt,
        render_material(
            $base_digest, distinct_keys, task_prompt, task_negative_prompt, steps, guidance, scheduler, width, height,
            bias, temperature, lock, $edit_unconditional::BOOLEAN) AS material
    FROM numbered
),
pictures AS (
    SELECT * REPLACE (coalesce(seed + image_index, default_seed(material, $base_seed, image_index)) AS seed)
    FROM (SELECT *, unnest(range(num_images)) AS image_index FROM written)
),
judged AS (
    SELECT *, list_filter(ids, lambda id, i: list_position(ids, id) = i) AS named,
        ids[list_position(trains, false)] AS untrained,
        tokens + coalesce(list_sum(sizes[:slots]), 0) AS prompt_count,
        negative_tokens + coalesce(list_sum(sizes[slots + 1:]), 0) AS negative_count, {FLAW} AS flaw
    FROM pictures
)
SELECT row AS prompt_row, image_index, named AS concept_ids,
    list_filter(keys, lambda key, i: list_position(ids, ids[i]) = i) AS concept_keys,
    CASE WHEN flaw IS NULL THEN render_key(material, seed) END AS render_key,
    coalesce(replace(prompt, '{{product}}', '{{' || product_id || '}}'), prompt) AS prompt, task_prompt,
    coalesce(replace(negative_prompt, '{{product}}', '{{' || product_id || '}}'), negative_prompt) AS negative_prompt,
    task_negative_prompt, seed, bias, temperature, lock, width, height, steps, guidance, scheduler, {FLAWED}
FROM judged
"""
