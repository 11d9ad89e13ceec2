"""Concepts and the metric are the same in a root and in its sweeps: files go from one to the other under their keys."""

from collections.abc import Iterable

from pipeline.contract.layout import metric_path, weights_path
from pipeline.database.plandb import PlanDB, Stage
from pipeline.storage.objects import Storage


def shared_paths(db: PlanDB, metric_key: str) -> list[str]:
    """Paths of the concepts of a plan, and of its metric.

    Args:
        db: with `concept_keys` filled.
        metric_key: content key of the metric.
    """
    db.require(Stage.CONCEPT_KEYS)
    keys = db.connection.execute("SELECT DISTINCT concept_key FROM concept_keys ORDER BY 1").fetchall()
    return [metric_path(metric_key), *(weights_path(key) for (key,) in keys)]


def copy_missing(source: Storage, target: Storage, paths: Iterable[str]) -> int:
    """Copy those of some objects that `source` has and `target` lacks; returns their number.

    Raises:
        StorageError: storage fails.
    """
    here, there = (
        {path for folder in ("metrics", "weights") for path, _ in each.list(folder)} for each in (source, target)
    )
    wanted = [path for path in paths if path in here and path not in there]
    for path in wanted:
        target.create(path, source.read(path))
    return len(wanted)
