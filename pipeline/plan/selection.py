"""A part of a plan: its first renders, a random sample of them, or what failed in an earlier run.

Rows that are not chosen are deleted from the plan before it is counted, so a part is a run of its own, whose tables
account for every row of the part. Concepts that the chosen renders need are chosen too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.contract.kinds import PerKind
from pipeline.database.plandb import PlanDB


@dataclass(frozen=True)
class Keys(PerKind[Sequence[str]]):
    """Content keys to do again. A render of a chosen concept is chosen only if its own key is given.

    `run_id` is the finished run that the keys were taken from.
    """

    run_id: str | None = None


@dataclass(frozen=True)
class Selection:
    """What is chosen of a plan; exactly one of `first`, `drawn` and `keys` is set.

    Attributes:
        name: part of the run's digest. Equal names must choose equal rows of the same plan.
        first: number of renders from the start of the prompts manifest.
        drawn: number of renders in a random sample of the plan; the sample is the same each time.
        keys: content keys.
    """

    name: str
    first: int | None = None
    drawn: int | None = None
    keys: Keys | None = None


@dataclass(frozen=True)
class LeftOut:
    """Chosen keys that are not in the plan, all for one reason.

    Attributes:
        table: concepts or renders.
        reason: a fixed text per reason.
        rows: number of keys.
        code: error code, if the rows are still invalid.
        sentence: message for the user, with row, column and message of the first of them in today's manifests.
    """

    table: str
    reason: str
    rows: int
    code: str | None
    sentence: str


@dataclass(frozen=True)
class Missing(PerKind[int]):
    """Number of chosen keys that are not in the plan, and why."""

    concepts: int = 0
    renders: int = 0
    reasons: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Rows of chosen keys that are invalid now: rows of the concepts manifest and rowids of `requests`."""

    concepts: tuple[int, ...] = ()
    requests: tuple[int, ...] = ()


def select(db: PlanDB, selection: Selection, refused: Refused = Refused()) -> Missing:
    """Delete from a plan what is not chosen.

    Args:
        db: with `requests` filled; nothing is counted yet.
        selection: what is chosen.
        refused: invalid rows that stay in the plan, so that the tables report them.

    Returns:
        The number of keys that could not be chosen; `pipeline.plan.left_out` says why.
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

# By id and not by key: of two concepts with equal content only the chosen one is kept.
_CONCEPTS = """
DELETE FROM concept_keys
WHERE concept_id NOT IN (SELECT unnest(concept_ids) FROM requests WHERE concept_ids IS NOT NULL)
    AND concept_key NOT IN (SELECT key FROM asked_concepts)
"""
