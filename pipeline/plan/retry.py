"""Which rows of a finished run to retry: all that failed, those with one error code, or its dead letters."""

from dataclasses import dataclass, field

from pipeline.contract.errors import Code, Status
from pipeline.plan.selection import Keys
from pipeline.storage.objects import Storage
from pipeline.tables.views import connect

# Rows that killed or hung their worker, did not fit into its memory, or met a fault of this program at every try.
DEAD_LETTER = frozenset({Code.WORKER_DIED, Code.TIMED_OUT, Code.OUT_OF_MEMORY, Code.INTERNAL})
FAILED = frozenset(Code)


@dataclass(frozen=True)
class Again:
    """Keys to do again, and the number of table rows with these keys.

    `refused` counts, by code, rows that were invalid before any work: once corrected, they are new.
    """

    keys: Keys
    rows: int
    refused: dict[str, int] = field(default_factory=dict)


def to_retry(storage: Storage, run_id: str, codes: frozenset[Code] = FAILED) -> Again:
    """Rows of a published run whose work ended with one of `codes`.

    Rows that were invalid before any work are left out: once corrected, they are new. A render that failed because of
    its concept is done again with the concept.

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
