"""The addresses of photos that a run records for its report."""

from pipeline.database.plandb import PlanDB
from pipeline.inputs.uris import is_signed

_CONCEPTS = 1000  # recorded at most


def photos_to_record(db: PlanDB) -> dict[str, list[str]]:
    """Addresses of photos by concept id, of the concepts that a report may show, in the order in which it samples.

    A pre-signed address is a secret, and useless without its signature: concepts with such an address are left out.
    """
    rows = db.connection.execute(
        "SELECT concept_id, list_transform(images, lambda image: image.uri) FROM concepts "
        f"WHERE code IS NULL ORDER BY md5(concept_id) LIMIT {_CONCEPTS}"
    ).fetchall()
    return {name: uris for name, uris in rows if not any(map(is_signed, uris))}
