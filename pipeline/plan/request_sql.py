"""The SQL of `pipeline.plan.expand`: from the rows of both manifests to requests.

Each statement fills one table. `pipeline.plan.expand.plan_requests` runs them in this order, per chunk of prompts.
"""

from pipeline.bases.prompt_lengths import FLAW, FLAWED, LONG_TEXTS, SLACK
from pipeline.contract.errors import Code
from pipeline.contract.placeholders import PLACEHOLDER
from pipeline.plan import sampling, scenes

_MAX_SEED = 2**63 - 1

BAD_CONCEPTS = """
CREATE OR REPLACE TEMP TABLE bad_concepts AS
SELECT concept_id, min(row) AS row, arg_min(error_message, row) AS error_message
FROM concepts WHERE error_code IS NOT NULL AND concept_id IS NOT NULL GROUP BY concept_id
"""

BAD_PROMPTS = f"""
INSERT INTO requests BY NAME
SELECT row AS prompt_row, 0 AS image_index, prompt, negative_prompt, seed, bias, temperature, lock,
    width, height, steps, guidance, scheduler, {scenes.CELLS}, {sampling.CELLS},
    error_code, error_column, error_message
FROM prompts WHERE error_code IS NOT NULL
"""

# The distinct settings of the file of points, numbered from 1. Number 0 sets nothing: concepts without a point have it.
POINTS = """
CREATE OR REPLACE TEMP TABLE numbered_points AS
SELECT 0 AS point, NULL::DOUBLE AS guidance, NULL::DOUBLE AS strength, NULL::DOUBLE AS bias,
    NULL::DOUBLE AS temperature, NULL::VARCHAR AS lock
UNION ALL
SELECT row_number() OVER (ORDER BY guidance, strength, bias, temperature, lock), *
FROM (SELECT DISTINCT guidance, strength, bias, temperature, lock FROM points)
"""

# The point of each concept, in the table `keyed`.
POINT_OF = """
ALTER TABLE keyed ADD COLUMN point INTEGER DEFAULT 0;
UPDATE keyed SET point = n.point
FROM points p JOIN numbered_points n
    ON n.point > 0 AND n.guidance IS NOT DISTINCT FROM p.guidance AND n.strength IS NOT DISTINCT FROM p.strength
    AND n.bias IS NOT DISTINCT FROM p.bias AND n.temperature IS NOT DISTINCT FROM p.temperature
    AND n.lock IS NOT DISTINCT FROM p.lock
WHERE keyed.concept_id = p.concept_id
"""

# What a row says comes first, then the point of its concept, then the spec. `strength` has no column in a manifest.
_DIALS = """
    coalesce(own_guidance, n.guidance, c.guidance) AS guidance, coalesce(own_bias, n.bias, c.bias) AS bias,
    coalesce(own_temperature, n.temperature, c.temperature) AS temperature, coalesce(own_lock, n.lock, c.lock) AS lock
"""

# The good prompts of a chunk: the text between placeholders, and their names, those of `prompt` first. Columns of the
# product are among the names until `pipeline.plan.product_columns` marks them in the texts.
CHUNK = f"""
CREATE OR REPLACE TEMP TABLE chunk AS
SELECT row, prompt, negative_prompt, where_expr, seed, num_images, bias, temperature, lock, width, height,
    steps, guidance, scheduler, own_guidance, own_bias, own_temperature, own_lock, {scenes.CELLS}, keep_photo,
    {sampling.CELLS}, own_frames, own_fps, own_guidance_rescale, control_digest,
    string_split_regex(prompt, '{PLACEHOLDER}') AS texts,
    string_split_regex(negative_prompt, '{PLACEHOLDER}') AS negative_texts,
    regexp_extract_all(prompt, '{PLACEHOLDER}', 1)
        || regexp_extract_all(negative_prompt, '{PLACEHOLDER}', 1) AS names,
    list_contains(names, 'product') AS crossed,
    crossed AND list_unique(names) = 1 AND scene IS NULL AND keep IS NULL AND control IS NULL AS alone,
    NULL::VARCHAR AS marked, NULL::VARCHAR AS negative_marked, []::VARCHAR[] AS columns, 0::BIGINT AS prompt_columns
FROM (
    SELECT * EXCLUDE (name) REPLACE (
        coalesce(negative_prompt, $negative_prompt) AS negative_prompt, nullif(trim(where_expr), '') AS where_expr,
        coalesce(num_images, 1) AS num_images, coalesce(bias, $bias::DOUBLE) AS bias,
        coalesce(temperature, $temperature::DOUBLE) AS temperature, coalesce(lock, $lock) AS lock,
        coalesce(width, $width) AS width, coalesce(height, $height) AS height, coalesce(steps, $steps) AS steps,
        coalesce(guidance, $guidance::DOUBLE) AS guidance, coalesce(scheduler, $scheduler) AS scheduler,
        {sampling.VALUES}
    ), {sampling.OWN}, guidance AS own_guidance, bias AS own_bias, temperature AS own_temperature, lock AS own_lock
    FROM prompts LEFT JOIN known_controls ON control = name
    WHERE row >= $start AND row < $stop AND error_code IS NULL
)
"""

# One row per placeholder; those of {product} have no key yet.
NAMES = """
CREATE OR REPLACE TEMP TABLE names AS
SELECT n.row, n.position, n.name, n.in_prompt, k.concept_key, k.superclass_tokens, k.own_tokens, k.is_offset,
    k.trained, k.point,
    b.row AS bad_row, b.error_message AS bad_message
FROM (
    SELECT row, unnest(names) AS name, generate_subscripts(names, 1) AS position,
        position < len(texts) AS in_prompt
    FROM chunk
) n
LEFT JOIN keyed k ON k.concept_id = n.name AND n.name <> 'product'
LEFT JOIN bad_concepts b ON b.concept_id = n.name AND n.name <> 'product'
"""

HINTS = """
CREATE OR REPLACE TEMP TABLE hints AS
WITH unknown AS (
    SELECT DISTINCT name FROM names WHERE name <> 'product' AND concept_key IS NULL AND bad_row IS NULL
)
SELECT u.name, arg_min(k.spelling, (levenshtein(u.name, k.name), k.spelling)) AS nearest
FROM unknown u CROSS JOIN (
    SELECT concept_id AS name, concept_id AS spelling FROM keyed
    UNION ALL SELECT name, 'product.' || name FROM column_spellings
) k
WHERE (SELECT count(*) FROM unknown) * (SELECT count(*) FROM keyed) <= $pairs
    AND levenshtein(u.name, k.name) <= greatest(2, len(u.name) // 4)
GROUP BY u.name
"""

# The first problem of each row of the chunk.
PROBLEMS = f"""
CREATE OR REPLACE TEMP TABLE problems AS
WITH matched AS (SELECT DISTINCT where_expr FROM matches),
found AS (
    SELECT row, position AS rank, CASE WHEN in_prompt THEN 'prompt' ELSE 'negative_prompt' END AS error_column,
        CASE WHEN bad_row IS NULL THEN '{Code.UNKNOWN_CONCEPT}' ELSE '{Code.CONCEPT_INVALID}' END AS error_code,
        error_column || ' names concept ''' || name || ''', ' || CASE WHEN bad_row IS NULL
            THEN 'which the concepts manifest does not have: '
                || coalesce('write ''' || nearest || ''' if that is meant, or ', '') || 'add a row with this concept_id'
            ELSE 'whose row ' || bad_row || ' of the concepts manifest is invalid (' || coalesce(bad_message, '')
                || '): correct that row' END AS error_message
    FROM names LEFT JOIN hints USING (name) WHERE name <> 'product' AND concept_key IS NULL
    UNION ALL
    SELECT row, position, CASE WHEN in_prompt THEN 'prompt' ELSE 'negative_prompt' END AS error_column,
        CASE WHEN crossed THEN error_code ELSE '{Code.BAD_PLACEHOLDER}' END,
        error_column || ' has {{' || name || '}}, ' || CASE WHEN crossed THEN says
            ELSE 'but the row has no {{product}} whose column this is: write {{product}} in the place of the product'
            END
    FROM asked WHERE NOT crossed OR number IS NULL
    UNION ALL
    SELECT row, 0, error_column, '{Code.BAD_CHARACTER}', error_message FROM bad_weights
    UNION ALL
    {LONG_TEXTS}
    UNION ALL
    SELECT row, 900001, error_column, '{Code.OUT_OF_RANGE}', error_message
    FROM chunk JOIN bad_samplers USING (scheduler, steps)
    UNION ALL
    SELECT row, 1000000, 'where', '{Code.BAD_WHERE}',
        'where selects concepts for {{product}}, but the prompt has no {{product}}: '
        || 'write it in the prompt or leave where empty'
    FROM chunk WHERE where_expr IS NOT NULL AND NOT crossed
    UNION ALL
    SELECT row, 1000001, 'where', '{Code.BAD_WHERE}', error_message FROM chunk JOIN refusals USING (where_expr)
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
        'there is no good concept for {{product}}: correct the invalid rows of the concepts manifest'
    FROM chunk WHERE crossed AND where_expr IS NULL AND NOT EXISTS (SELECT 1 FROM keyed)
    UNION ALL
    {scenes.PROBLEM}
    UNION ALL
    {sampling.PROBLEMS}
)
SELECT * FROM found QUALIFY row_number() OVER (PARTITION BY row ORDER BY rank) = 1
"""

PROBLEM_REQUESTS = f"""
INSERT INTO requests BY NAME
SELECT c.row AS prompt_row, 0 AS image_index, nullif(list_filter(
        c.names, lambda name, i: name <> 'product' AND list_position(c.names, name) = i), []) AS concept_ids,
    c.prompt, c.negative_prompt, c.seed, c.bias, c.temperature, c.lock, c.width, c.height, c.steps, c.guidance,
    c.scheduler, {scenes.CELLS}, {sampling.CELLS}, p.error_code, p.error_column, p.error_message
FROM chunk c JOIN problems p USING (row)
"""

# What the format adds to a render's key, but not to its default seed.
_FILE = "render_file($format, $webp_quality::INTEGER, fps)"

# What sampling settings add to the modes of a render's key.
_SETTINGS = f"""
    sampling_modes(guidance_rescale, guidance, $vae_tiling::BOOLEAN) || {sampling.MODES}
    || weight_modes($prompt_weights::BOOLEAN, task_prompt, task_negative_prompt)
"""

# Prompts with {product} alone, the most frequent ones: the text around the concept is computed once per prompt.
REQUESTS_ALONE = f"""
INSERT INTO requests BY NAME
WITH good AS (
    SELECT c.*, l.tokens, l.negative_tokens, len(texts) - 1 AS slots, len(negative_texts) - 1 AS negative_slots,
        unnest(range(num_images)) AS image_index, array_to_string(texts, '{{0}}') AS task_prompt,
        array_to_string(negative_texts, '{{0}}') AS task_negative_prompt, render_text(
            task_prompt, task_negative_prompt, steps, guidance, scheduler, width, height,
            bias, temperature, lock, $edit_unconditional::BOOLEAN) AS material
    FROM (
        SELECT c.* REPLACE ({_DIALS}), coalesce(n.strength, $strength) AS strength, n.point
        FROM chunk c CROSS JOIN numbered_points n WHERE c.alone
    ) c JOIN lengths l USING (row) ANTI JOIN problems p ON p.row = c.row
),
crossed AS (#CROSSED#),
pictures AS (
    SELECT * REPLACE (coalesce(seed + image_index, default_seed(material, $base_seed, image_index)) AS seed),
        [concept_id] AS named, CASE WHEN NOT trained THEN concept_id END AS untrained,
        tokens + slots * superclass_tokens AS prompt_count,
        negative_tokens + negative_slots * superclass_tokens AS negative_count,
        tokens + slots * own_tokens AS own_count,
        negative_tokens + negative_slots * own_tokens AS negative_own_count,
        false AS regional, 0 AS apart_count,
        {SLACK.format("greatest(superclass_tokens, own_tokens)")} AS slack, {FLAW} AS flaw
    FROM (SELECT * REPLACE (render_concepts($base_digest, [concept_key],
            render_modes(false, strength) || {_SETTINGS}) || material AS material)
        FROM (SELECT * REPLACE (CASE WHEN is_offset AND slots > 0 THEN strength ELSE 1 END AS strength)
            FROM crossed))
)
SELECT row AS prompt_row, image_index, [concept_id] AS concept_ids, [concept_key] AS concept_keys,
    CASE WHEN flaw IS NULL THEN render_key(material || {_FILE}, seed) END AS render_key,
    replace(prompt, '{{product}}', '{{' || concept_id || '}}') AS prompt, task_prompt,
    replace(negative_prompt, '{{product}}', '{{' || concept_id || '}}') AS negative_prompt,
    task_negative_prompt, seed, bias, temperature, lock, width, height, steps, guidance, scheduler, strength,
    guidance_rescale, frames, fps, {FLAWED}
FROM pictures
"""

# DuckDB gives each thread 122,880 rows of a scan: most catalogues would be planned by a single thread.
SLICE = """
    SELECT g.*, k.concept_id, k.concept_key, k.superclass_tokens, k.own_tokens, k.is_offset, k.trained
    FROM good g CROSS JOIN keyed k
    WHERE g.where_expr IS NULL AND k.point = g.point AND k.row % {slices} = {slice}
    UNION ALL
    SELECT g.*, k.concept_id, k.concept_key, k.superclass_tokens, k.own_tokens, k.is_offset, k.trained
    FROM good g JOIN matches m USING (where_expr) JOIN keyed k USING (concept_id)
    WHERE k.point = g.point AND k.row % {slices} = {slice}
"""


def _too_long(column: str, count: str) -> str:
    return f"""{{'error_code': '{Code.PROMPT_TOO_LONG}', 'error_column': '{column}', 'error_message':
        '{column} has ' || {count} || ' tokens with start and end for concept ''' || product_id
            || ''' with the text of its columns, and the base model reads ' || $limit || ': shorten this text or '
            || shown({column})}}"""


# What is wrong with the text of a column that the prompt names, or with its length, as code, column and message.
_BAD_TEXT = f"""
CASE WHEN len(columns) = 0 THEN NULL
    WHEN fault IS NOT NULL THEN {{'error_code': (fault).code, 'error_column': fault_in, 'error_message':
        'concept ''' || product_id || ''' ' || (fault).says || ', which ' || fault_in || ' uses: ' || (fault).remedy}}
    WHEN tokens + slots > $limit THEN {_too_long("prompt", "(tokens + slots)")}
    WHEN negative_tokens + len(negative_texts) - 1 > $limit
        THEN {_too_long("negative_prompt", "(negative_tokens + len(negative_texts) - 1)")} END
"""

# `ids` and `keys` are in the order of the placeholders. A concept's number is the position of its key among the
# distinct keys: two ids with equal content are one concept to the method, whose directions must be independent.
REQUESTS = f"""
INSERT INTO requests BY NAME
WITH good AS (
    SELECT c.*, l.tokens, l.negative_tokens, len(texts) - 1 AS slots, coalesce(n.keys, []) AS keys, n.sizes, n.owns,
        n.offsets, n.trains, n.points
    FROM chunk c JOIN lengths l USING (row)
    LEFT JOIN (
        SELECT row, list(concept_key ORDER BY position) AS keys, list(superclass_tokens ORDER BY position) AS sizes,
            list(own_tokens ORDER BY position) AS owns, list(is_offset ORDER BY position) AS offsets,
            list(trained ORDER BY position) AS trains, list(point ORDER BY position) AS points
        FROM names GROUP BY row
    ) n USING (row)
    ANTI JOIN problems p ON p.row = c.row
    WHERE NOT c.alone
),
crossed AS (
    SELECT g.*, k.concept_id AS product_id, k.concept_key AS product_key, k.superclass_tokens, k.own_tokens,
        k.is_offset, k.trained, k.point, k.row AS product_row, k.texts_of, k.faults
    FROM good g CROSS JOIN keyed k WHERE g.crossed AND g.where_expr IS NULL
    UNION ALL
    SELECT g.*, k.concept_id, k.concept_key, k.superclass_tokens, k.own_tokens, k.is_offset, k.trained, k.point,
        k.row, k.texts_of, k.faults
    FROM good g JOIN matches m USING (where_expr) JOIN keyed k USING (concept_id) WHERE g.crossed
    UNION ALL
    SELECT g.*, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM good g WHERE NOT g.crossed
),
filled AS (
    SELECT * REPLACE (
            list_transform(keys, lambda key: coalesce(key, product_key)) AS keys,
            list_transform(sizes, lambda size: coalesce(size, superclass_tokens)) AS sizes,
            list_transform(owns, lambda own: coalesce(own, own_tokens)) AS owns,
            list_transform(offsets, lambda one: coalesce(one, is_offset)) AS offsets,
            list_transform(trains, lambda learns: coalesce(learns, trained)) AS trains,
            list_transform(points, lambda one: coalesce(one, point)) AS points
        ),
        list_transform(names, lambda name: CASE name WHEN 'product' THEN product_id ELSE name END) AS ids
    FROM crossed
),
-- The point of a concept holds for prompts with this concept alone.
dialled AS (
    SELECT c.* EXCLUDE (points, point) REPLACE ({_DIALS}),
        CASE WHEN list_contains(offsets[:slots], true) THEN coalesce(n.strength, $strength) ELSE 1 END AS strength
    FROM filled c JOIN numbered_points n
        ON n.point = CASE WHEN list_unique(c.keys) = 1 AND list_unique(c.points) = 1 THEN c.points[1] ELSE 0 END
),
framed AS ({scenes.FRAMED}),
numbered AS (
    SELECT *, CASE WHEN keep IS NULL THEN list_filter(keys, lambda key, i: list_position(keys, key) = i) ELSE [] END
            AS distinct_keys,
        $combine = 'regional' AND list_unique(keys[:slots]) > 1 AS regional,
        render_modes(regional, strength) || {scenes.MODES} AS modes,
        list_transform(keys, lambda key: CASE WHEN keep IS NULL
            THEN '{{' || (list_position(distinct_keys, key) - 1) || '}}' ELSE kept_superclass END) AS numbers
    FROM framed
),
written AS (
    SELECT *,
        with_columns(array_to_string(list_transform(texts, lambda part, i: part
            || CASE WHEN i < len(texts) THEN numbers[i] ELSE '' END), ''), columns, texts_of) AS task_prompt,
        with_columns(array_to_string(list_transform(negative_texts, lambda part, i: part
            || CASE WHEN i < len(negative_texts) THEN numbers[len(texts) - 1 + i] ELSE '' END), ''), columns, texts_of)
            AS task_negative_prompt,
        render_material(
            $base_digest, distinct_keys, modes || {_SETTINGS}, task_prompt, task_negative_prompt, steps, guidance,
            scheduler, width, height, bias, temperature, lock, $edit_unconditional::BOOLEAN) AS material
    FROM numbered
),
pictures AS (
    SELECT * REPLACE (coalesce(seed + image_index, default_seed(material, $base_seed, image_index)) AS seed)
    FROM (SELECT *, unnest(range(num_images)) AS image_index FROM written)
),
judged AS (
    SELECT * EXCLUDE (bad_scene), list_filter(ids, lambda id, i: list_position(ids, id) = i) AS named,
        ids[list_position(trains, false)] AS untrained,
        tokens + coalesce(list_sum(sizes[:slots]), 0) AS prompt_count,
        negative_tokens + coalesce(list_sum(sizes[slots + 1:]), 0) AS negative_count,
        tokens + coalesce(list_sum(owns[:slots]), 0) AS own_count,
        negative_tokens + coalesce(list_sum(owns[slots + 1:]), 0) AS negative_own_count,
        prompt_count + coalesce(list_max(list_transform(keys[:slots], lambda key, i: CASE WHEN owns[i] > 1
            THEN len(list_filter(keys[:slots], lambda other: other = key)) ELSE 0 END)), 0) AS apart_count,
        {SLACK.format("list_max(sizes || owns)")} AS slack, {FLAW} AS flaw,
        list_filter(columns, lambda number: faults[number::INTEGER] IS NOT NULL)[1] AS faulty,
        faults[faulty::INTEGER] AS fault,
        CASE WHEN list_position(columns, faulty) <= prompt_columns THEN 'prompt' ELSE 'negative_prompt' END AS fault_in,
        {_BAD_TEXT} AS bad_text, coalesce(bad_scene, {scenes.TOO_LONG}) AS bad_scene
    FROM (
        SELECT p.* REPLACE (p.tokens + coalesce(v.value_tokens, 0) AS tokens,
            p.negative_tokens + coalesce(v.negative_value_tokens, 0) AS negative_tokens)
        FROM pictures p LEFT JOIN value_lengths v ON v.row = p.row AND v.product_row = p.product_row
    )
),
shown AS (
    SELECT * REPLACE (
            CASE WHEN bad_text IS NULL THEN with_columns(coalesce(marked, prompt), columns, texts_of)
                ELSE prompt END AS marked,
            CASE WHEN bad_text IS NULL THEN with_columns(coalesce(negative_marked, negative_prompt), columns, texts_of)
                ELSE negative_prompt END AS negative_marked),
        {FLAWED}
    FROM judged
)
SELECT row AS prompt_row, image_index, named AS concept_ids,
    list_filter(keys, lambda key, i: list_position(ids, ids[i]) = i) AS concept_keys,
    CASE WHEN flaw IS NULL AND bad_text IS NULL AND bad_scene IS NULL THEN render_key(material || {_FILE}, seed) END
        AS render_key,
    coalesce(replace(marked, '{{product}}', '{{' || product_id || '}}'), marked) AS prompt, task_prompt,
    coalesce(replace(negative_marked, '{{product}}', '{{' || product_id || '}}'), negative_marked) AS negative_prompt,
    task_negative_prompt, seed, bias, temperature, lock, width, height, steps, guidance, scheduler, strength,
    {scenes.CELLS}, {sampling.CELLS},
    coalesce(bad_text.error_code, bad_scene.error_code, error_code) AS error_code,
    coalesce(bad_text.error_column, bad_scene.error_column, error_column) AS error_column,
    coalesce(bad_text.error_message, bad_scene.error_message, error_message) AS error_message
FROM shown
"""
