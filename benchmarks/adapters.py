"""Pictures of many products by mixed batches, against what diffusers and peft offer for one LoRA per product.

- ours_paper, ours_offset: concept files, another product in every row (`pipeline.worker.rendering`).
- switch: all LoRAs stay loaded, `set_adapters` before the rows of each product.
- reload: each LoRA is loaded before the rows of its product, and deleted afterwards.
- hotswap: each LoRA replaces the numbers of the one before (`load_lora_weights(hotswap=True)`).
- fuse: each LoRA is loaded and added to the weights (`fuse_lora`), and subtracted and deleted afterwards.
- mixed: all LoRAs stay loaded and each row has its own (peft's `adapter_names`).

Same weights, layout, prompts, seeds, steps, guidance and size; from files to uint8 pixels. Each way uses its fastest
batch, found first; where a batch has one product, it has no more rows than the product has prompts. What a way loads
to stay is timed for all products of a cell. The rest is timed for whole products until there are `--rows` pictures, and
computed in proportion for the others, as the products are alike. What a process does once is not timed: peft wraps the
layers at the first adapter.
"""

import argparse
import gc
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.adapter_ways import (
    TARGETS,
    Fuse,
    Hotswap,
    Loras,
    Mixed,
    Ours,
    Reload,
    Row,
    Switch,
    Way,
    pipeline_of,
)
from benchmarks.bases import base_of, device_of, made_up_concepts, parts_of, plain_metric
from benchmarks.measure import finish, machine, show, timed
from perfusion_ops.base_model import Base, quiet_libraries
from perfusion_ops.config import Recipe
from perfusion_ops.metric import Metric
from perfusion_ops.rendering import Sampler

SWITCHING_BAR = 5.0  # of the fastest way of switching, at one prompt a product
BEST_BAR = 1.0  # of the fastest other way, in every cell
OURS, SWITCHING = ("ours_paper", "ours_offset"), ("switch", "reload", "hotswap")
_PRODUCTS, _PROMPTS, _RANKS = (8, 64), (1, 4, 16), (4, 16)
_GUIDANCE, _ROWS, _CHECK_STEPS = 4.5, 16, 4


@dataclass(frozen=True)
class Cell:
    """How much is drawn: every product with as many prompts."""

    products: int
    prompts: int

    @property
    def pictures(self) -> int:
        """All of them."""
        return self.products * self.prompts

    def drawn(self, rows: int) -> "Cell":
        """The whole products that are drawn to measure this cell."""
        return Cell(min(self.products, max(1, rows // self.prompts)), self.prompts)


@dataclass(frozen=True)
class Cost:
    """Seconds of a cell, all products: `loading` from files to the denoiser and back, `drawing` from rows to pixels."""

    loading_s: float
    drawing_s: float
    held_bytes: int
    batch: int

    @property
    def seconds(self) -> float:
        """Both."""
        return self.loading_s + self.drawing_s


def measured(way: Way, cell: Cell, drawn: Cell, batch: int, device: torch.device) -> Cost:
    """Load all products of a cell, draw some of them, and scale what each product and each picture takes.

    Args:
        way: holds no product yet, nor does it afterwards.
        cell: what the seconds are of.
        drawn: what is drawn.
        batch: rows of a batch; for a way that does not fill batches, rows of one product.
        device: of the denoiser.
    """
    way.prepare()
    loading = timed(lambda: way.hold(cell.products), device)
    changing = drawing = 0.0
    held, pictures = 0, 0
    share = cell.products / drawn.products
    for product, rows in batches(cell, drawn, batch, fills=way.fills, by_product=not isinstance(way, Ours)):
        if product is not None:
            changing += timed(lambda product=product: way.change(product), device)
        for each in rows:
            drawing += timed(lambda each=each: way.draw(each), device)
            pictures += len(each)
        held = max(held, way.held_bytes())
        if product is not None:
            changing += timed(lambda product=product: way.leave(product), device)
    assert pictures == drawn.pictures
    way.release()
    return Cost(loading + changing * share, drawing * share, held, batch)


def batches(
    cell: Cell, drawn: Cell, batch: int, *, fills: bool, by_product: bool
) -> list[tuple[int | None, list[list[Row]]]]:
    """The batches that are drawn: those of each product, or all of them under None if a way fills its batches.

    Args:
        cell: all rows.
        drawn: how many of them are drawn.
        batch: rows of a batch.
        fills: products share batches.
        by_product: rows of one product follow each other; else, another product follows each row, of all products.
    """

    def split(rows: list[Row]) -> list[list[Row]]:
        return [rows[at : at + batch] for at in range(0, len(rows), batch)]

    products, prompts = range(drawn.products), range(drawn.prompts)
    if not fills:
        return [(product, split([Row(product, prompt) for prompt in prompts])) for product in products]
    if by_product:
        return [(None, split([Row(product, prompt) for product in products for prompt in prompts]))]
    rows = [Row(product, prompt) for prompt in prompts for product in range(cell.products)]
    return [(None, split(rows[: drawn.pictures]))]


def seconds_by_batch(way: Way, sizes: Sequence[int], device: torch.device) -> dict[int, float]:
    """Seconds a picture by the rows of a batch, the better of two calls; products share batches if the way can."""
    way.prepare()
    way.hold(max(sizes) if way.fills else 1)
    way.change(0)
    way.draw([Row(0, 0)])
    batches = {size: [Row(n, 0) if way.fills else Row(0, n) for n in range(size)] for size in sizes}
    times = [
        {size: timed(lambda rows=rows: way.draw(rows), device) / size for size, rows in batches.items()}
        for _ in range(2)
    ]
    way.leave(0)
    way.release()
    return {size: min(each[size] for each in times) for size in sizes}


def denoiser_ms(unet: Any, sizes: Sequence[int], tokens: int, device: torch.device) -> dict[int, float]:
    """Milliseconds of one denoising step for a picture by the pictures of a batch; medians of 7.

    A picture is two rows, as with guidance.
    """
    config = unet.config
    calls: dict[int, Callable[[], object]] = {}
    for size in sizes:
        where: dict[str, Any] = {"device": device, "dtype": unet.dtype}
        latents = torch.randn(2 * size, config.in_channels, config.sample_size, config.sample_size, **where)
        texts = torch.randn(2 * size, tokens, config.cross_attention_dim, **where)
        calls[size] = torch.no_grad()(lambda latents=latents, texts=texts: unet(latents, 500, texts))
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(8):
        for size, call in calls.items():
            times[size].append(timed(call, device))
    return {size: 1e3 * statistics.median(each[1:]) / size for size, each in times.items()}


def check(ways: Mapping[str, Way], *, exact: bool) -> None:
    """Assert that the ways draw what they are said to: another picture for each product, the same in diffusers' ways.

    Args:
        ways: all of them.
        exact: no value may differ by more than 1 of 255; for processors that compute in full float32. If not, pictures
            may differ by a quarter of what two products do.
    """
    pictures = {name: _two_products(way) for name, way in ways.items()}
    theirs = [name for name in ways if name not in OURS]
    for name, (together, alone) in pictures.items():
        differ = np.abs(together[0] - together[1]).mean()
        assert differ > 0.2, f"{name}: two products differ by {differ} of 255 on average"
        _same(f"{name}: a row in a batch and alone", together, alone, differ, exact=exact)
        if name in theirs:
            _same(f"{name} and {theirs[0]}", together, pictures[theirs[0]][0], differ, exact=exact)


def _two_products(way: Way) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pictures of products 0 and 1 with the same prompt and seed: in a batch, with others, and each alone."""
    way.prepare()
    way.hold(2)
    together, alone = [], []
    for product in (0, 1):
        way.change(product)
        alone.append(way.draw([Row(product, 0)])[0])
        if not way.fills:
            together.append(way.draw([Row(product, 0), Row(product, 1)])[0])
        way.leave(product)
    if way.fills:
        together = [*way.draw([Row(0, 0), Row(1, 0)])]
    way.release()
    return np.stack(together).astype(np.int64), np.stack(alone).astype(np.int64)


def _same(what: str, a: NDArray[np.int64], b: NDArray[np.int64], products: float, *, exact: bool) -> None:
    apart = np.abs(a - b)
    assert apart.max() <= 1 if exact else apart.mean() < products / 4, (
        f"{what} differ by {apart.mean()} of 255 on average, {apart.max()} at most; two products by {products}"
    )


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bars are met."""
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # there are several: that is the point
    with tempfile.TemporaryDirectory(prefix="perfusion-adapters-") as folder, quiet_libraries():
        return _run(options, Path(folder))


@dataclass(frozen=True)
class _Models:
    """The same weights three times: two pipelines of diffusers, one for weights that are changed in place, and ours."""

    pipe: Any
    fused: Any
    base: Base
    metric: Metric

    @classmethod
    def load(cls, name: str, where: torch.device, dtype: torch.dtype) -> "_Models":
        parts = parts_of(name, where, dtype)
        pipes = pipeline_of(parts, dtype), pipeline_of(parts, dtype)
        base = base_of(name, parts)  # takes the projections out of `parts`
        return cls(*pipes, base, plain_metric(base))

    def sampler(self, steps: int) -> Sampler:
        return Sampler(self.base.resolution, self.base.resolution, steps, _GUIDANCE, "ddim")

    def ours(self, sampler: Sampler, products: int, folder: Path) -> dict[str, Ours]:
        recipes: tuple[Recipe, ...] = ("paper", "offset")
        concepts = {recipe: made_up_concepts(self.base, self.metric, products, recipe) for recipe in recipes}
        return {
            f"ours_{recipe}": Ours(self.base, self.metric, each, sampler, folder / recipe)
            for recipe, each in concepts.items()
        }

    def theirs(self, sampler: Sampler, loras: Loras) -> dict[str, Switch]:
        assert loras.layers == len(TARGETS) * _attentions(self.pipe.unet)
        return {
            kind.__name__.lower(): kind(self.fused if kind is Fuse else self.pipe, loras, sampler)
            for kind in (Switch, Reload, Hotswap, Fuse, Mixed)
        }


def _check(name: str, where: torch.device, folder: Path) -> None:
    """Check all ways in float32: random weights in bfloat16 round by as much as some products differ."""
    models = _Models.load(name, where, torch.float32)
    sampler = models.sampler(_CHECK_STEPS)
    ours = models.ours(sampler, 2, folder)
    for rank in _RANKS:
        loras = Loras(folder / f"rank{rank}", models.pipe.unet, rank, 2)
        check({**ours, **models.theirs(sampler, loras)}, exact=where.type == "cpu")


def _run(options: argparse.Namespace, folder: Path) -> bool:
    where = device_of(options.device)
    gpu = where.type == "cuda"
    name, dtype = options.base or ("sd15" if gpu else "mini"), torch.bfloat16 if gpu else torch.float32
    _check(name, where, folder / "checked")
    gc.collect()
    models = _Models.load(name, where, dtype)
    pipe = models.pipe
    sampler = models.sampler(options.steps or (50 if gpu else 20))
    sizes = [1 << n for n in range(7) if 1 << n <= (options.batch or (32 if gpu else 16))]
    few = [size for size in sizes if size <= max(_PROMPTS)]
    by_batch = denoiser_ms(pipe.unet, sizes, pipe.tokenizer.model_max_length, where)
    show(f"one step of the denoiser, ms a picture by batch: {_short(by_batch)}")
    ours = models.ours(sampler, max(_PRODUCTS), folder)
    figures: dict[str, Any] = {
        "base": name,
        "machine": machine(where),
        "dtype": str(dtype).removeprefix("torch."),
        "pixels": sampler.width,
        "steps": sampler.steps,
        "repeats": options.repeats,
        "denoiser_ms_by_batch": _short(by_batch),
        "denoiser_batching_gain": by_batch[1] / min(by_batch.values()),
        "bytes_per_product": {each: way.disk_bytes for each, way in ours.items()},
    }
    lines: list[dict[str, Any]] = []
    curves: dict[str, dict[int, float]] = {}
    for rank in _RANKS:
        loras = Loras(folder / f"rank{rank}", pipe.unet, rank, max(_PRODUCTS))
        figures["bytes_per_product"][f"lora_rank{rank}"] = loras.disk_bytes
        ways: dict[str, Way] = {**ours, **models.theirs(sampler, loras)}
        for each, way in ways.items():
            if each not in curves:  # the rank changes little, and the ways of switching draw alike
                drawn_alike = each in SWITCHING and curves.get(SWITCHING[0])
                curves[each] = drawn_alike or seconds_by_batch(way, sizes if way.fills else few, where)
                show(f"{each}: seconds a picture by batch {_short(curves[each])}")
        for products in _PRODUCTS:
            for prompts in _PROMPTS:
                cell = Cell(products, prompts)
                costs = _cell(ways, curves, cell, options, where)
                lines += [
                    {"rank": rank, "products": products, "prompts": prompts, **line}
                    for line in _lines(costs, cell.pictures)
                ]
                for line in lines[-len(ways) :]:
                    show(" ".join(f"{key} {value}" for key, value in line.items()))
    figures["seconds_by_batch"] = {each: _short(curve) for each, curve in curves.items()}
    figures["cells"] = lines
    bars = {}
    for mine in OURS:
        one = [line[f"of_{mine}"] for line in lines if line["prompts"] == 1 and line["way"] in SWITCHING]
        figures[f"{mine}_to_switching_at_1_prompt"] = min(one)
        figures[f"{mine}_to_best_other"] = min(line[f"of_{mine}"] for line in lines if line["way"] not in OURS)
        bars |= {f"{mine}_to_switching_at_1_prompt": SWITCHING_BAR, f"{mine}_to_best_other": BEST_BAR}
    return finish("adapters", figures, bars)


def _cell(
    ways: Mapping[str, Way],
    curves: Mapping[str, dict[int, float]],
    cell: Cell,
    options: argparse.Namespace,
    where: torch.device,
) -> dict[str, list[Cost]]:
    """All ways in turn, as often as asked; each time another one is the first."""
    drawn = cell.drawn(options.rows or max(_ROWS, *curves[OURS[0]]))  # the largest batch is filled
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        names = list(ways)
        first = repeat * 3 % len(names)
        for name in names[first:] + names[:first]:
            most = drawn.pictures if ways[name].fills else cell.prompts
            batch = fastest(curves[name], most)
            found[name].append(measured(ways[name], cell, drawn, batch, where))
    return found


def fastest(curve: Mapping[int, float], most: int) -> int:
    """The batch with the fewest seconds a picture, of those that `most` rows fill."""
    return min((size for size in curve if size <= most), key=lambda size: curve[size])


def _lines(costs: Mapping[str, list[Cost]], pictures: int) -> list[dict[str, Any]]:
    """A line for each way; ratios are medians of the repeats, each above 1 if ours is faster."""
    lines = []
    for name, mine in costs.items():
        middle = statistics.median(cost.seconds for cost in mine)
        line: dict[str, Any] = {"way": name, "batch": mine[0].batch, "pictures_s": pictures / middle}
        line["loading_s"] = statistics.median(cost.loading_s for cost in mine)
        line["drawing_s"] = statistics.median(cost.drawing_s for cost in mine)
        for ours in OURS:
            pairs = list(zip(mine, costs[ours], strict=True))
            line[f"of_{ours}"] = statistics.median(its.seconds / our.seconds for its, our in pairs)
            line[f"drawing_of_{ours}"] = statistics.median(its.drawing_s / our.drawing_s for its, our in pairs)
        line["held_bytes"] = max(cost.held_bytes for cost in mine)
        lines.append({key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()})
    return lines


def _short(curve: Mapping[int, float]) -> dict[int, float]:
    return {size: round(value, 4) for size, value in curve.items()}


def _attentions(unet: Any) -> int:
    from diffusers.models.attention_processor import Attention

    return sum(isinstance(module, Attention) for module in unet.modules())
