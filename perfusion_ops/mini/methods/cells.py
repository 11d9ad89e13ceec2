"""The unit of work: one method with one setting and one guidance scale on one set of products, in a Parquet file.

A file is written when its cell is complete, and what exists is not measured again. Its name holds a digest of all that
decides its contents, so that another setting, size, base or scorer is another file.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.base.folder import BaseFolder
from perfusion_ops.config import Frozen, SamplingConfig
from perfusion_ops.families.stable_diffusion import STABLE_DIFFUSION
from perfusion_ops.mini.methods.scores import Score
from perfusion_ops.mini.methods.sets import SetName
from perfusion_ops.mini.methods.sizes import Amount
from perfusion_ops.rivals.objective import Budget

REAL = "real"  # real renders in a method's place: the most that the scores can reach

DISTANCE = b"frechet_distance"  # in the metadata of a recorded cell

# Settings of training and sampling that the first recorded cells did not have.
_LATER = frozenset(
    {
        *("gate", "store", "references", "conv_rank", "lr_conv"),
        *("task", "frames", "fps", "format", "webp_quality", "guidance_rescale", "vae_tiling"),
        *("prompt_weights", "prompt_chunks"),
    }
)
_DIGESTED = {".json", ".safetensors", ".txt"}
_VERSION = 1  # changes when the same cell would give other rows


class Cell(Frozen):
    """All that decides the rows of one file.

    Attributes:
        set: of products.
        method: name of a contestant, or REAL.
        settings: of the method, in full.
        photos: that each product is learned from.
        guidance: scale of the drawing.
        amount: products, prompts, seeds, steps.
        budget: of each training.
        strangers: products that a picture is compared with.
        base: see `base_identity`.
        scorers: digest of the scorers.
    """

    set: SetName
    method: str
    settings: dict[str, Any]
    photos: int
    guidance: float
    amount: Amount
    budget: Budget
    strangers: int
    base: str
    scorers: str

    @property
    def training(self) -> str:
        """Equal for cells whose products are trained alike and can be drawn from one training."""
        items = Amount(products=self.amount.products, prompts=1, seeds=1, steps=1, drift_prompts=0)
        return self.model_copy(update={"guidance": 0.0, "amount": items}).model_dump_json()

    def file(self, out: Path) -> Path:
        """Where its rows lie under the folder of a measurement."""
        digest = hashlib.sha256(f"{_VERSION} {self.model_dump_json()}".encode()).hexdigest()[:12]
        return (
            out / "cells" / f"{self.set}-{self.method}-photos{self.photos}-guidance{self.guidance:g}-{digest}.parquet"
        )


def in_full(settings: Frozen) -> dict[str, Any]:
    """The settings of a method in a cell: all of them, but those that came after the record only if they are used."""
    values = settings.model_dump()
    for name, part in settings:
        if isinstance(part, Frozen):
            later = _LATER & part.not_in_old_keys
            unused = {field for field in later if getattr(part, field) == type(part).model_fields[field].default}
            values[name] = {field: value for field, value in values[name].items() if field not in unused}
    return values


def base_identity(folder: BaseFolder) -> str:
    """Hex sha256 over what decides pictures of a base: its weights, schedule, templates and mask layers.

    Our own defaults are not part of it: each cell has its settings in full.
    """
    settings = folder.settings
    sampling = SamplingConfig.model_validate(settings.sampling)
    used: list[Any] = [settings.templates, settings.resolution, sampling.scheduler, sampling.negative_prompt]
    if settings.mask_layers:
        used.append(settings.mask_layers)
    whole = hashlib.sha256(json.dumps(used).encode())
    for part in STABLE_DIFFUSION.parts:
        for file in sorted((folder.path / part).iterdir()):
            if file.suffix in _DIGESTED:
                whole.update(f"{part}/{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return whole.hexdigest()


class Row(Frozen):
    """One picture: what was asked of which product, what it cost, and its scores."""

    category: str
    instance: int
    pattern: str
    number: int
    kind: str
    prompt: str
    seed: int
    score: Score
    drift: float | None
    train_s: float
    draw_s: float
    numbers: int
    size: int


_SCORES = (
    ("identity", pa.float32()), ("nearest", pa.bool_()), ("context", pa.bool_()), ("noun", pa.bool_()),
    ("text", pa.float32()), ("attribute", pa.bool_()), ("obeyed", pa.bool_()), ("color", pa.float32()),
    ("pattern", pa.float32()), ("edges", pa.float32()), ("overall", pa.float32()), ("legible", pa.bool_()),
)  # fmt: skip
SCHEMA = pa.schema(
    [
        ("set", pa.string()), ("method", pa.string()), ("settings", pa.string()), ("photos", pa.int32()),
        ("guidance", pa.float32()), ("steps", pa.int32()), ("category", pa.string()), ("instance", pa.int64()),
        ("own_pattern", pa.string()), ("number", pa.int32()), ("kind", pa.string()), ("prompt", pa.string()),
        ("seed", pa.int64()), *_SCORES, ("drift", pa.float32()), ("train_s", pa.float32()),
        ("draw_s", pa.float32()), ("numbers", pa.int64()), ("size", pa.int64()), ("picture", pa.binary()),
    ]
)  # fmt: skip


def missing(cells: Iterable[Cell], out: Path) -> list[Cell]:
    """Those whose file does not exist."""
    return [cell for cell in cells if not cell.file(out).is_file()]


def write(cell: Cell, out: Path, rows: Sequence[Row], pictures: NDArray[np.uint8]) -> None:
    """Write the rows of a complete cell, with their pictures as PNG.

    Args:
        cell: the cell.
        out: folder of the measurement.
        rows: N rows.
        pictures: (N, H, W, 3).
    """
    same = {
        "set": cell.set,
        "method": cell.method,
        "settings": json.dumps(cell.settings, sort_keys=True),
        "photos": cell.photos,
        "guidance": cell.guidance,
        "steps": cell.amount.steps,
    }
    records = []
    for row, picture in zip(rows, pictures, strict=True):
        record = row.model_dump()
        scores = record.pop("score")
        record["own_pattern"] = record.pop("pattern")  # a score has its name
        records.append({**same, **record, **scores, "picture": _png(picture)})
    table = pa.Table.from_pylist(records, schema=SCHEMA).replace_schema_metadata({"cell": cell.model_dump_json()})
    file = cell.file(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    pq.write_table(table, part, compression="zstd")
    part.replace(file)


def read(cell: Cell, out: Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """The columns of a complete cell by name; default: all but the pictures.

    Raises:
        FileNotFoundError: it is not complete.
    """
    wanted = list(columns) if columns else [name for name in SCHEMA.names if name != "picture"]
    return pq.read_table(cell.file(out), columns=wanted).to_pydict()


def rows_of(cell: Cell, out: Path) -> list[Row]:
    """The rows of a complete cell, as `write` takes them."""
    columns = read(cell, out)
    own = [name for name in Row.model_fields if name not in {"pattern", "score"}]
    return [
        Row(
            pattern=columns["own_pattern"][n],
            score=Score.model_validate({name: columns[name][n] for name in Score.model_fields}),
            **{name: columns[name][n] for name in own},
        )
        for n in range(len(columns["instance"]))
    ]


def has_pictures(cell: Cell, out: Path) -> bool:
    """Whether a complete cell holds its pictures; those of a record do not."""
    return "picture" in pq.read_schema(cell.file(out)).names


def stored_distance(cell: Cell, out: Path) -> float | None:
    """The Fréchet distance that a recorded cell was kept with."""
    stored = (pq.read_schema(cell.file(out)).metadata or {}).get(DISTANCE)
    return float(stored) if stored else None


def pictures_of(cell: Cell, out: Path) -> NDArray[np.uint8]:
    """The pictures of a complete cell, (N, H, W, 3)."""
    stored = read(cell, out, ["picture"])["picture"]
    return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in stored])


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
