"""What the scores say of each concept at each point, from the published tables of a sweep's runs."""

from collections.abc import Sequence

from pipeline.database.query import rows
from pipeline.storage.objects import Storage
from pipeline.sweep.front import Measured
from pipeline.tables.views import connect

# Renders of several concepts belong to none of them. A picture counts if it has both scores at every point, so that the
# points of a concept are compared on the same pictures.
_MEASURED = """
WITH points AS (SELECT unnest($runs) AS run_id, generate_subscripts($runs, 1) - 1 AS point),
scored AS (
    SELECT r.concept_id, p.point, r.manifest_row, r.image_index,
        any_value(s.text_similarity) AS obedience, any_value(s.image_similarity) AS identity
    FROM renders r JOIN points p USING (run_id) JOIN scores s USING (run_id, render_key)
    WHERE r.status = 'ok' AND len(r.concept_ids) = 1 AND s.scorer_digest = $scorer
        AND s.text_similarity IS NOT NULL AND s.image_similarity IS NOT NULL
    GROUP BY ALL
),
complete AS (
    SELECT * FROM scored
    QUALIFY count(*) OVER (PARTITION BY concept_id, manifest_row, image_index) = len($runs)
)
SELECT concept_id, point, avg(obedience) AS obedience, avg(identity) AS identity, count(*) AS renders
FROM complete GROUP BY concept_id, point ORDER BY concept_id, point
"""


def measure(storage: Storage, runs: Sequence[str], scorer_digest: str) -> dict[str, list[Measured]]:
    """Each concept at each point; a concept without a picture that is scored at every point is left out.

    Args:
        storage: the root of the sweep's runs.
        runs: the finished run of each point, in the order of the points. Several points may have one run.
        scorer_digest: of the scorers of all runs.

    Raises:
        StorageError: the tables cannot be read.
    """
    found: dict[str, list[Measured]] = {}
    with connect(storage) as connection:
        for row in rows(connection, _MEASURED, {"runs": list(runs), "scorer": scorer_digest}):
            found.setdefault(row.pop("concept_id"), []).append(Measured(**row))
    return found
