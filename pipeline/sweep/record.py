"""The files of a sweep: what was measured at every point, and the chosen point of each concept."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.layout import sweep_path
from pipeline.contract.schemas import METADATA
from pipeline.storage.objects import Storage
from pipeline.sweep.front import Choice, Measured, Select, choose, front

_DIALS = [
    ("guidance", pa.float64()),
    ("strength", pa.float64()),
    ("bias", pa.float64()),
    ("temperature", pa.float64()),
    ("lock", pa.string()),
]
_MEANS = [("text_similarity", pa.float64()), ("image_similarity", pa.float64()), ("renders", pa.int64())]

# One row per concept and point.
GRID = pa.schema(
    [
        ("concept_id", pa.string()), ("point", pa.int32()), *_DIALS, *_MEANS,
        ("on_front", pa.bool_()), ("chosen", pa.bool_()), ("run_id", pa.string()),
    ],
    metadata=METADATA,
)  # fmt: skip

# One row per concept: a file of points, as `pipeline.manifest.points` reads it.
POINTS = pa.schema(
    [("concept_id", pa.string()), *_DIALS, *_MEANS, *((name, pa.string()) for name in ("select", "scorer", "run_id"))],
    metadata=METADATA,
)


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        points: settings of each point of the grid.
        runs: run of each point.
        scorer: name of the scorers.
        scorer_digest: their digest.
        select: how points are chosen.
        measured: each concept at each point.
    """

    points: Sequence[Mapping[str, Any]]
    runs: Sequence[str]
    scorer: str
    scorer_digest: str
    select: Select
    measured: Mapping[str, Sequence[Measured]]

    @property
    def sweep_id(self) -> str:
        """The same for the same runs, scorers and rule."""
        parts = [*self.runs, self.scorer_digest, str(self.select)]
        return "sweep-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def choices(self) -> dict[str, Choice]:
        """The chosen point of each measured concept."""
        return {concept: choose(points, self.select) for concept, points in self.measured.items()}


def write_sweep(storage: Storage, sweep: Sweep) -> tuple[str, str]:
    """Write `grid.parquet` and `points.parquet`, unless they exist; returns their URIs."""
    grid, points = [], []
    for concept, choice in sweep.choices.items():
        best = {each.point for each in front(sweep.measured[concept])}
        for each in sweep.measured[concept]:
            row = _row(sweep, concept, each)
            chosen = each.point == choice.chosen.point
            grid.append(row | {"point": each.point, "on_front": each.point in best, "chosen": chosen})
            if chosen:
                points.append(row | {"select": str(sweep.select), "scorer": sweep.scorer})
    paths = [sweep_path(sweep.sweep_id, name) for name in ("grid.parquet", "points.parquet")]
    for path, rows, schema in zip(paths, (grid, points), (GRID, POINTS), strict=True):
        storage.create(path, _encoded(pa.Table.from_pylist(rows, schema)))
    return storage.uri(paths[0]), storage.uri(paths[1])


def _row(sweep: Sweep, concept: str, each: Measured) -> dict[str, Any]:
    return {
        "concept_id": concept,
        **sweep.points[each.point],
        "text_similarity": each.obedience,
        "image_similarity": each.identity,
        "renders": each.renders,
        "run_id": sweep.runs[each.point],
    }


def _encoded(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
