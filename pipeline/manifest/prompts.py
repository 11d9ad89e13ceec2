"""Checks a manifest of prompts with its scenes and controls, and fills the table `prompts` of the plan's database."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from perfusion_ops.config import SamplingConfig
from pipeline.contract.errors import Code, RowProblem, verdict
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import find_manifest
from pipeline.files.rows import Columns
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.manifest import controls, scenes
from pipeline.manifest.cells import (
    RowReader,
    negative_prompt,
    optional,
    prompt,
    required,
    scheduler,
    setting,
    text,
    whole,
)
from pipeline.manifest.images import ImageReader
from pipeline.manifest.reading import (
    PICTURE,
    VERDICT,
    ManifestSummary,
    Reading,
    Row,
    bounded_map,
    broken,
    insert,
    raw_text,
)
from pipeline.storage.objects import Storage

_NUMBERS = frozenset(
    {
        *("seed", "num_images", "bias", "temperature", "width", "height", "steps", "guidance"),
        *("guidance_rescale", "frames", "fps"),
    }
)
COLUMNS = Columns(
    known=frozenset({"prompt", "where", "negative_prompt", "lock", "scheduler"})
    | _NUMBERS
    | scenes.COLUMNS
    | controls.COLUMNS,
    required=frozenset({"prompt"}),
    numbers=_NUMBERS | scenes.NUMBERS | controls.NUMBERS,
    lists=frozenset(),
)
FILES = (*scenes.PHOTOS, *controls.PHOTOS)  # columns that name files

_ROW = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt", pa.string()),
        ("where_expr", pa.string()),
        ("seed", pa.int64()),
        ("num_images", pa.int32()),
        ("negative_prompt", pa.string()),
        ("bias", pa.float64()),
        ("temperature", pa.float64()),
        ("lock", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("scheduler", pa.string()),
        ("scene", PICTURE),
        ("scene_mask", PICTURE),
        ("scene_box", pa.list_(pa.float64())),
        ("scene_strength", pa.float64()),
        ("keep", pa.string()),
        ("keep_photo", pa.int32()),
        ("control", pa.string()),
        ("control_picture", PICTURE),
        ("control_strength", pa.float64()),
        ("guidance_rescale", pa.float64()),
        ("frames", pa.int32()),
        ("fps", pa.int32()),
        *VERDICT,
    ]
)

# Column of the manifest, column of the table, check; problems are reported in this order.
_CHECKS = (
    ("prompt", "prompt", required(prompt)),
    ("where", "where_expr", optional(text())),
    ("seed", "seed", optional(whole(0, 2**63 - 1))),
    ("num_images", "num_images", optional(whole(1, 1000))),
    ("negative_prompt", "negative_prompt", optional(negative_prompt)),
    ("bias", "bias", optional(setting(SamplingConfig, "bias"))),
    ("temperature", "temperature", optional(setting(SamplingConfig, "temperature"))),
    ("lock", "lock", optional(setting(SamplingConfig, "lock"))),
    ("width", "width", optional(setting(SamplingConfig, "width", multiple=8))),
    ("height", "height", optional(setting(SamplingConfig, "height", multiple=8))),
    ("steps", "steps", optional(setting(SamplingConfig, "steps"))),
    ("guidance", "guidance", optional(setting(SamplingConfig, "guidance"))),
    ("scheduler", "scheduler", optional(scheduler)),
    ("guidance_rescale", "guidance_rescale", optional(setting(SamplingConfig, "guidance_rescale"))),
    ("frames", "frames", optional(setting(SamplingConfig, "frames"))),
    ("fps", "fps", optional(setting(SamplingConfig, "fps"))),
)


def load_prompts(
    db: PlanDB,
    uri: str,
    *,
    storage: Storage | None = None,
    limits: InputLimits | None = None,
    cache: InputCache | None = None,
    storage_options: Mapping[str, object] | None = None,
    threads: int = 8,
) -> ManifestSummary:
    """Check a prompts manifest with its scenes, and fill the tables `prompts` and `prompts_extra`.

    Args:
        db: the plan's database.
        uri: see `pipeline.manifest.concepts.load_concepts`.
        storage: see `load_concepts`; None if no row has a scene.
        limits: see `load_concepts`.
        cache: see `load_concepts`.
        storage_options: see `load_concepts`.
        threads: scenes inspected at the same time.

    Raises:
        ManifestError, StorageError: see `load_concepts`.
        ValueError: a row has a scene, and `storage` is None.
    """
    manifest = find_manifest(uri, storage_options)
    images = None
    if storage is not None:
        images = ImageReader(manifest.folder, storage, InputStore(limits or InputLimits(), storage_options, cache))
    reading = Reading(db, "prompts", manifest, COLUMNS)
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        checked = partial(_prompt, images=images)
        rows = bounded_map(pool, checked, reading.rows(), 4 * threads, only=lambda row: _has_photo(row.cells))
        insert(db, "prompts", _ROW, rows)
    if cache is not None:
        cache.save()
    return reading.summary()


def _prompt(row: Row, images: ImageReader | None) -> dict[str, Any]:
    if row.broken:
        return {"row": row.number, "prompt": raw_text(row.cells.get("prompt")), "num_images": 1, **broken(row.broken)}
    reader = RowReader(row.cells)
    values = {target: reader.read(column, check) for column, target, check in _CHECKS}
    values["num_images"] = values["num_images"] or 1
    if values["seed"] is not None and values["num_images"] > 1:
        reader.problems.append(
            RowProblem(
                Code.SEED_CONFLICT,
                "seed",
                f"the row has seed {values['seed']} and num_images {values['num_images']}: one seed makes one picture; "
                "write one row a seed or leave seed out",
            )
        )
    scene, problems = scenes.read_scene(row.cells, images)
    control, more = controls.read_control(row.cells, images)
    values["prompt"] = values["prompt"] or raw_text(row.cells.get("prompt"))
    return {"row": row.number, **values, **scene, **control, **verdict([*reader.problems, *problems, *more])}


def _has_photo(cells: Mapping[str, object]) -> bool:
    """Whether a row of prompts names a photo of its own."""
    return any(cells.get(column) is not None for column in FILES)
