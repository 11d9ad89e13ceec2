"""What to do again of a run that has ended: all its failed rows, those of one code, or its dead letters."""

from dataclasses import dataclass, field

from pipeline.contract.errors import Code, Status
from pipeline.plan.selection import Keys
from pipeline.storage.objects import Storage
from pipeline.tables.views import connect

# Such a row took a worker, its memory or its time with it, or met a fault of the program, whenever it was tried.
DEAD_LETTER = frozenset({Code.WORKER_DIED, Code.TIMED_OUT, Code.OUT_OF_MEMORY, Code.INTERNAL})
FAILED = frozenset(Code)


@dataclass(frozen=True)
class Again:
    """Keys to do again, and how many rows of the tables they stand for.

    `refused` counts the rows by code that were refused before any work: each has to be corrected, and is then new.
    """

    keys: Keys
    rows: int
    refused: dict[str, int] = field(default_factory=dict)


def to_retry(storage: Storage, run_id: str, codes: frozenset[Code] = FAILED) -> Again:
    """Rows of a published run whose work ended with one of `codes`.

    Rows that were refused before any work are not among them: they have to be corrected, and are then new. A picture
    that failed because its concept did is done again with it.

    Raises:
        StorageError: the tables cannot be read.
    """
    values = {"run_id": run_id, "ended": [Status.FAILED, Status.INVALID], "codes": sorted(codes)}
    with connect(storage) as connection:
        concepts = [key for (key,) in connection.execute(_CONCEPTS, values).fetchall()]
        values |= {"orphaned": Code.CONCEPT_FAILED, "concepts": concepts}
        renders = [key for (key,) in connection.execute(_RENDERS, values).fetchall()]
        refused = dict(connection.execute(_REFUSED, {"run_id": run_id, "codes": sorted(codes)}).fetchall())
    keys = Keys(tuple(dict.fromkeys(concepts)), tuple(dict.fromkeys(renders)), run_id)
    return Again(keys, len(concepts) + len(renders), refused)


_CONCEPTS = """
SELECT concept_key FROM concepts
WHERE run_id = $run_id AND concept_key IS NOT NULL AND status IN (SELECT unnest($ended))
    AND error_code IN (SELECT unnest($codes))
ORDER BY manifest_row
"""

_RENDERS = """
SELECT render_key FROM renders
WHERE run_id = $run_id AND render_key IS NOT NULL AND status IN (SELECT unnest($ended))
    AND (
        error_code IN (SELECT unnest($codes))
        OR (error_code = $orphaned AND list_has_any(concept_keys, $concepts::VARCHAR[]))
    )
ORDER BY manifest_row, image_index
"""

_REFUSED = """
SELECT error_code, count(*) FROM (
    SELECT error_code FROM concepts WHERE run_id = $run_id AND concept_key IS NULL
    UNION ALL
    SELECT error_code FROM renders WHERE run_id = $run_id AND render_key IS NULL
) WHERE error_code IN (SELECT unnest($codes)) GROUP BY ALL ORDER BY ALL
"""
