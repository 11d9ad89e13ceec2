"""Why a retry leaves out rows: keys of an earlier run that are not in today's plan.

The reason follows from the published row of the key and from today's manifests. Keys with the same reason share one
message, with their number. The plan is only read.
"""

import pyarrow as pa

from pipeline.database.plandb import PlanDB, Stage
from pipeline.plan.selection import Keys, LeftOut, Refused
from pipeline.storage.objects import Storage
from pipeline.tables.views import connect

STILL = "still refused"
_CONCEPT_STILL = "concept still refused"


def find_left_out(
    db: PlanDB, storage: Storage, keys: Keys, *, base_digests: tuple[str, str], memory_limit: str
) -> tuple[tuple[LeftOut, ...], Refused]:
    """Why some of the keys are not in the plan, and which of today's rows are invalid in their place.

    Args:
        db: with `requests` filled, before `select`.
        storage: with the tables of the run `keys.run_id`.
        keys: the chosen keys.
        base_digests: of today's base models: the one that trains and the one that renders.
        memory_limit: of DuckDB while it reads the tables.

    Raises:
        StorageError: the tables cannot be read.
    """
    if keys.run_id is None:
        return (), Refused()
    db.require(Stage.REQUESTS)
    connection = db.connection
    with connect(storage) as published:
        published.execute(f"SET memory_limit = '{memory_limit}'")
        for table, values, query in (("concepts", keys.concepts, _CONCEPTS), ("renders", keys.renders, _RENDERS)):
            published.register("asked", pa.table({"key": pa.array(values, pa.string())}))
            found = published.sql(query, params={"run_id": keys.run_id}).to_arrow_table()
            published.unregister("asked")
            connection.register("found", found)
            connection.execute(f"CREATE OR REPLACE TEMP TABLE earlier_{table} AS SELECT * FROM found")
            connection.unregister("found")
    connection.execute(_NOW)
    connection.execute(_ABSENT_CONCEPTS, {"base_digest": base_digests[0]})
    connection.execute(_ABSENT_RENDERS, {"base_digest": base_digests[1]})
    reasons = tuple(
        LeftOut(table, reason, count, code, _message(table, reason, count, code, *example))
        for table in ("concepts", "renders")
        for reason, code, count, *example in connection.execute(_GROUPED.format(table=table)).fetchall()
    )
    refused = Refused(
        *(tuple(row for (row,) in connection.execute(sql).fetchall()) for sql in (_BAD_ROWS, _BAD_REQUESTS))
    )
    for table in ("earlier_concepts", "earlier_renders", "absent_concepts", "absent_renders", "concepts_now"):
        connection.execute(f"DROP TABLE {table}")
    return reasons, refused


# The message of each reason. {row}, {column} and {message} are of the first such row in today's manifests.
_REFUSED = "({code}{column}: {message}); correct it, then retry"
_RUN = "; `perfusion run` makes what the manifests ask for now"
_MESSAGES = {
    ("concepts", STILL): f"row {{row}} of the concepts manifest, {{name!r}}, is still refused {_REFUSED}",
    ("concepts", "row removed"): f"the concepts manifest has no concept_id {{name!r}} any more{_RUN}",
    ("concepts", "base model"): f"the base model has changed{_RUN}",
    ("concepts", "superclass"): f"the superclass of {{name!r}} has changed{_RUN}",
    ("concepts", "pictures or training"): f"photos, masks, start or training settings of {{name!r}} have changed{_RUN}",
    ("renders", STILL): f"row {{row}} of the prompts manifest is refused now {_REFUSED}",
    (
        "renders",
        _CONCEPT_STILL,
    ): f"concept {{name!r}} in row {{row}} of the concepts manifest is still refused {_REFUSED}",
    ("renders", "concept removed"): f"the concepts manifest has no concept_id {{name!r}} any more{_RUN}",
    ("renders", "base model"): f"the base model has changed{_RUN}",
    ("renders", "concept changed"): f"superclass, photos or training settings of {{name!r}} have changed{_RUN}",
    ("renders", "settings"): (
        "the prompt is still asked for, but with another negative prompt, scene, control, seed, size, sampler, bias, "
        f"temperature or lock{_RUN}"
    ),
    ("renders", "where"): f"`where` in row {{row}} of the prompts manifest does not select {{name!r}} any more{_RUN}",
    ("renders", "prompt"): f"no row of the prompts manifest asks for {{message!r}} any more{_RUN}",
}


def _message(  # noqa: PLR0917 - the parts of one message
    table: str, reason: str, count: int, code: str | None, name: str, row: int, column: str | None, message: str
) -> str:
    first = "" if count == 1 else "the first of them: "
    text = _MESSAGES[table, reason].format(
        name=name, row=row, column=f", column {column}" if column else "", code=code, message=message
    )
    return f"{count:,} {table if count > 1 else table[:-1]} cannot be done again: {first}{text}"


_FIRST = "QUALIFY row_number() OVER (PARTITION BY key ORDER BY manifest_row) = 1"

_CONCEPTS = f"""
SELECT concept_key AS key, concept_id, superclass, base_digest FROM concepts
WHERE run_id = $run_id AND concept_key IN (SELECT key FROM asked) {_FIRST}
"""

_RENDERS = f"""
SELECT render_key AS key, concept_ids, concept_keys, prompt, negative_prompt, base_digest FROM renders
WHERE run_id = $run_id AND render_key IN (SELECT key FROM asked) {_FIRST}
"""

# One row per concept_id: the good one if there is one.
_NOW = """
CREATE OR REPLACE TEMP TABLE concepts_now AS
SELECT c.row, c.concept_id, c.superclass, c.error_code, c.error_column, c.error_message, k.concept_key
FROM concepts c LEFT JOIN concept_keys k USING (row) WHERE c.concept_id IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY c.concept_id ORDER BY k.concept_key IS NULL, c.row) = 1
"""

_ABSENT_CONCEPTS = f"""
CREATE OR REPLACE TEMP TABLE absent_concepts AS
SELECT CASE
        WHEN n.error_code IS NOT NULL THEN '{STILL}'
        WHEN n.row IS NULL THEN 'row removed'
        WHEN e.base_digest <> $base_digest THEN 'base model'
        WHEN normalise_superclass(n.superclass) <> normalise_superclass(e.superclass) THEN 'superclass'
        ELSE 'pictures or training' END AS reason,
    n.error_code, e.concept_id AS name, n.row, n.error_column, n.error_message
FROM earlier_concepts e ANTI JOIN concept_keys k ON k.concept_key = e.key
LEFT JOIN concepts_now n USING (concept_id)
"""

# A published prompt has the concept's id where the manifest may have {{product}}.
_ABSENT_RENDERS = f"""
CREATE OR REPLACE TEMP TABLE absent_renders AS
WITH absent AS (SELECT * FROM earlier_renders e ANTI JOIN requests r ON r.render_key = e.key),
spellings AS (
    SELECT key, prompt AS written FROM absent
    UNION ALL
    SELECT key, replace(prompt, '{{' || id || '}}', '{{product}}')
    FROM (SELECT key, prompt, unnest(concept_ids) AS id FROM absent)
),
bad AS (
    SELECT s.key, min(q.rowid) AS request
    FROM spellings s JOIN requests q ON q.prompt = s.written WHERE q.error_code IS NOT NULL GROUP BY s.key
),
named AS (
    SELECT key, n.*, u.id AS name, coalesce(n.concept_key = u.concept_key, false) AS same
    FROM (SELECT key, unnest(concept_ids) AS id, unnest(concept_keys) AS concept_key FROM absent) u
    LEFT JOIN concepts_now n ON n.concept_id = u.id
),
concept AS (
    SELECT key, arg_min(struct_pack(name, row, error_code, error_column, error_message),
        CASE WHEN error_code IS NOT NULL THEN 1 WHEN row IS NULL THEN 2 ELSE 3 END) AS of
    FROM named WHERE NOT same GROUP BY key
),
asked AS (
    SELECT DISTINCT a.key FROM absent a JOIN requests q USING (prompt) WHERE q.error_code IS NULL
),
conditional AS (
    SELECT s.key, min(p.row) AS row FROM spellings s JOIN prompts p ON p.prompt = s.written
    WHERE p.error_code IS NULL AND p.where_expr IS NOT NULL AND contains(p.prompt, '{{product}}') GROUP BY s.key
),
judged AS (
    SELECT a.*, b.request, c.of AS concept, w.row AS where_row, CASE
        WHEN c.of.error_code IS NOT NULL THEN '{_CONCEPT_STILL}'
        WHEN b.request IS NOT NULL THEN '{STILL}'
        WHEN c.of IS NOT NULL AND c.of.row IS NULL THEN 'concept removed'
        WHEN a.base_digest <> $base_digest THEN 'base model'
        WHEN c.of IS NOT NULL THEN 'concept changed'
        WHEN t.key IS NOT NULL THEN 'settings'
        WHEN w.key IS NOT NULL THEN 'where'
        ELSE 'prompt' END AS reason
    FROM absent a LEFT JOIN bad b USING (key) LEFT JOIN concept c USING (key) LEFT JOIN asked t USING (key)
    LEFT JOIN conditional w USING (key)
)
SELECT j.reason,
    CASE j.reason WHEN '{_CONCEPT_STILL}' THEN j.concept.error_code WHEN '{STILL}' THEN q.error_code END AS error_code,
    coalesce(j.concept.name, j.concept_ids[1]) AS name,
    CASE j.reason WHEN '{STILL}' THEN q.prompt_row WHEN 'where' THEN j.where_row ELSE j.concept.row END AS row,
    CASE j.reason WHEN '{STILL}' THEN q.error_column ELSE j.concept.error_column END AS error_column,
    CASE j.reason WHEN '{STILL}' THEN q.error_message WHEN 'prompt' THEN j.prompt ELSE j.concept.error_message END
        AS error_message,
    j.request
FROM judged j LEFT JOIN requests q ON q.rowid = j.request
"""

_GROUPED = """
SELECT reason, error_code, count(*), arg_min(name, place), arg_min(row, place), arg_min(error_column, place),
    arg_min(error_message, place)
FROM (SELECT *, row_number() OVER (ORDER BY row, name, error_message) AS place FROM absent_{table})
GROUP BY reason, error_code ORDER BY reason, error_code
"""

_BAD_ROWS = f"""
SELECT row FROM absent_concepts WHERE reason = '{STILL}'
UNION SELECT row FROM absent_renders WHERE reason = '{_CONCEPT_STILL}' ORDER BY row
"""

_BAD_REQUESTS = f"SELECT DISTINCT request FROM absent_renders WHERE reason = '{STILL}' ORDER BY request"
