"""A part of a plan: the first pictures of it, some drawn from all of it, or what failed in an earlier run.

What is not chosen leaves the plan before it is counted, so that a part is a run of its own, with tables of its own that
account for every row of the part. The concepts that its pictures need come with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.database.plandb import PlanDB


@dataclass(frozen=True)
class Keys:
    """Work to do again, by content key; a picture whose concept is among `concepts` is meant only if named itself.

    `run_id` is the published run that the keys were taken from.
    """

    concepts: Sequence[str]
    renders: Sequence[str]
    run_id: str | None = None


@dataclass(frozen=True)
class Selection:
    """What is chosen of a plan, by exactly one of the three.

    Attributes:
        name: what makes this part another run than the whole; the same words choose the same rows of the same plan.
        first: so many pictures, in the order of the prompts manifest.
        drawn: so many pictures from all over the plan, the same ones each time.
        keys: these.
    """

    name: str
    first: int | None = None
    drawn: int | None = None
    keys: Keys | None = None


@dataclass(frozen=True)
class LeftOut:
    """Some keys that were chosen and are not in the plan, all for one reason.

    Attributes:
        table: concepts or renders.
        reason: the same words for the same reason.
        rows: how many keys.
        code: of rows that are still refused.
        sentence: for the user; it tells row, column and message of the first of them as of now.
    """

    table: str
    reason: str
    rows: int
    code: str | None
    sentence: str


@dataclass(frozen=True)
class Missing:
    """Keys that were chosen and are not in the plan."""

    concepts: int = 0
    renders: int = 0
    reasons: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Rows that stand for chosen keys and are refused now: rowids of `requests` and rows of the concepts manifest."""

    concepts: tuple[int, ...] = ()
    requests: tuple[int, ...] = ()


def select(db: PlanDB, selection: Selection, refused: Refused = Refused()) -> Missing:
    """Take from a plan what is not chosen; call it after `plan_requests` and before anything is counted.

    Args:
        db: the plan.
        selection: what is chosen.
        refused: rows that stay in the plan besides, so that the tables tell what is wrong with them.

    Returns:
        What could not be chosen; `pipeline.plan.left_out` tells why.
    """
    connection = db.connection
    keys = selection.keys or Keys((), ())
    for name, values in (("asked_concepts", keys.concepts), ("asked_renders", keys.renders)):
        connection.register("asked", pa.table({"key": pa.array(values, pa.string())}))
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT DISTINCT key FROM asked")
        connection.unregister("asked")
    for name, rows in (("kept_concepts", refused.concepts), ("kept_requests", refused.requests)):
        connection.register("kept", pa.table({"id": pa.array(rows, pa.int64())}))
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT id FROM kept")
        connection.unregister("kept")
    if selection.keys is not None:
        chosen = (
            "SELECT rowid FROM requests SEMI JOIN asked_renders a ON a.key = render_key "
            "UNION ALL SELECT id FROM kept_requests"
        )
    elif selection.drawn is not None:
        chosen = f"SELECT rowid FROM requests ORDER BY md5({_PLACE}), {_ORDER} LIMIT {selection.drawn}"
    else:
        chosen = f"SELECT rowid FROM requests ORDER BY {_ORDER} LIMIT {selection.first}"
    [(concepts, renders)] = connection.execute(_MISSING).fetchall()
    connection.execute(f"DELETE FROM requests WHERE rowid NOT IN ({chosen})")
    connection.execute("DELETE FROM prompts WHERE row NOT IN (SELECT prompt_row FROM requests)")
    connection.execute(_CONCEPTS)
    connection.execute(
        "DELETE FROM concepts WHERE row NOT IN (SELECT row FROM concept_keys UNION ALL SELECT id FROM kept_concepts)"
    )
    for name in ("asked_concepts", "asked_renders", "kept_concepts", "kept_requests"):
        connection.execute(f"DROP TABLE {name}")
    return Missing(concepts, renders)


_ORDER = "prompt_row, concept_ids, image_index, render_key"
_PLACE = "concat_ws(' ', prompt_row, image_index, array_to_string(concept_ids, ' '))"

_MISSING = """
SELECT (SELECT count(*) FROM asked_concepts ANTI JOIN concept_keys ON key = concept_key),
    (SELECT count(*) FROM asked_renders ANTI JOIN requests ON key = render_key)
"""

# By id and not by key: of two products with equal content only the one that is meant.
_CONCEPTS = """
DELETE FROM concept_keys
WHERE concept_id NOT IN (SELECT unnest(concept_ids) FROM requests WHERE concept_ids IS NOT NULL)
    AND concept_key NOT IN (SELECT key FROM asked_concepts)
"""
