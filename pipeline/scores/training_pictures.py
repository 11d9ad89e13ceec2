"""Finds the addresses of the photos of a finished run's concepts: in the run's record, else in its manifest.

A run records the photos of a thousand concepts for its report; the addresses of other concepts are read from its
concepts manifest. Photos that were replaced since the run are taken as they are now.
"""

from collections.abc import Collection, Mapping

from pipeline.database.plandb import PlanDB
from pipeline.inputs.cache import InputCache
from pipeline.manifest.concepts import load_concepts
from pipeline.runs.record import RunRecord
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage


def training_pictures(
    storage: Storage, run_id: str, settings: RunSettings, wanted: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """Addresses of photos by concept id; memory grows by some hundred bytes per wanted id.

    Args:
        storage: the run's root.
        run_id: the run.
        settings: its settings.
        wanted: concept ids; an id that neither the record nor the manifest has is left out.

    Raises:
        ManifestError: the manifest is needed and cannot be read.
        StorageError: storage fails.
    """
    recorded = RunRecord(storage, run_id).photos()
    found = {name: recorded[name] for name in wanted if name in recorded}
    if len(found) == len(set(wanted)):
        return found
    with PlanDB(memory_limit=settings.engine.plan_memory) as db:
        load_concepts(
            db,
            settings.concepts,
            storage=storage,
            limits=settings.inputs,
            cache=InputCache(storage),
            storage_options=settings.storage_options or None,
            threads=settings.engine.threads,
        )
        cursor = db.connection.execute(
            "SELECT concept_id, list_transform(images, lambda image: image.uri) FROM concepts WHERE error_code IS NULL"
        )
        while row := cursor.fetchone():
            if row[0] in wanted:
                found.setdefault(row[0], tuple(row[1]))
    return found
