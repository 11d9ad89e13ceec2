"""A catalogue of any size from the embedded world, for demos, tests and benchmarks: pictures, masks, two manifests.

    OUT/catalog.json                                the arguments; marks the folder as a catalogue
    OUT/images/<shard>/<concept id>-<k>.png         pictures of the products, 64 px
    OUT/masks/<shard>/<concept id>-<k>.png          beside each, the product's soft mask, 8-bit grey
    OUT/concepts.parquet, OUT/prompts.parquet       manifests, written last

Equal arguments give equal bytes, whatever the number of processes, and also after an interrupted attempt. The manifests
exist only while every picture that they name exists. Memory does not grow with the number of products. Products are
instances that the base model was never trained on; categories take turns. Within a category, the first 540 products
differ in body colour, second colour or pattern, the first 4,320 in one of these or the accent colour, and all in shape.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from perfusion_ops.errors import UsageError
from perfusion_ops.mini.world.products import HELD_OUT, Product, product
from perfusion_ops.mini.world.scene import portrait, render
from perfusion_ops.mini.world.vocabulary import CATEGORIES, COLORS, PATTERNS, Look, superclass

MAX_PRODUCTS = 100_000
MAX_IMAGES_PER_PRODUCT = 16
SEASONS = ("spring", "summer", "autumn", "winter")

CONCEPTS_SCHEMA = pa.schema(
    [
        ("concept_id", pa.string()),
        ("superclass", pa.string()),
        ("images", pa.list_(pa.string())),
        ("masks", pa.list_(pa.string())),
        ("category", pa.string()),
        ("color", pa.string()),
        ("pattern", pa.string()),
        ("season", pa.string()),
    ]
)
PROMPTS_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("num_images", pa.int32()),
        ("where", pa.string()),
        ("tag", pa.string()),
    ]
)

_MARKER = "catalog.json"
_MANIFESTS = ("concepts.parquet", "prompts.parquet")
_SHARD = 1000  # products in a folder, and rows in a row group
_CHUNK = 100  # products drawn by one process in one go: about half a second

# The prompt, its tag and which concepts it is for; the first product of every catalogue is a mug.
_PROMPTS = (
    ("a photo of a {product} on the beach", "beach", None),
    ("a photo of a {product} in the snow", "snow", None),
    ("a photo of a {product} on green grass", "grass", None),
    ("a photo of a {product} in the city at night", "city", None),
    ("a photo of a {product} on a wooden table", "wood", None),
    ("a photo of a {product} in front of a brick wall", "brick", None),
    ("a photo of a {product} in the forest", "forest", None),
    ("a photo of a {product} underwater", "underwater", None),
    ("a photo of a {product} in the kitchen", "kitchen", "category = 'mug'"),
)
_PAIR_PLACES = ("on the beach", "in the snow", "on a wooden table", "in the forest")


class CatalogError(UsageError, ValueError):
    """The catalogue cannot be written: a number is out of range, or the folder has other contents."""


@dataclass(frozen=True)
class CatalogSummary:
    """What `write_catalog` wrote: the paths of both manifests, and the numbers of products, prompts and pictures."""

    concepts: str
    prompts: str
    products: int
    prompt_rows: int
    images: int


@dataclass(frozen=True)
class _Order:
    """The arguments that decide every byte of a catalogue."""

    products: int
    seed: int
    images_per_product: int

    def concept_id(self, index: int) -> str:
        """Identifier of product number `index`, such as mug-00001; numbers run through the whole catalogue."""
        return f"{CATEGORIES[index % len(CATEGORIES)]}-{index + 1:05d}"

    def files(self, kind: str, index: int) -> list[str]:
        """The product's pictures (`kind` images) or masks, relative to the manifests."""
        stem = f"{kind}/{index // _SHARD:05d}/{self.concept_id(index)}"
        return [f"{stem}-{number}.png" for number in range(self.images_per_product)]


@dataclass(frozen=True)
class _Draw:
    """Draws one chunk of products; picklable, so that any process can."""

    out: Path
    order: _Order

    def __call__(self, start: int) -> int:
        """Write the files of the products from `start` on; return how many products they were."""
        stop = min(start + _CHUNK, self.order.products)
        for index in range(start, stop):
            item = catalog_product(index, seed=self.order.seed)
            pairs = zip(self.order.files("images", index), self.order.files("masks", index), strict=True)
            for number, (image, mask) in enumerate(pairs):
                picture = render(portrait(item, number))
                Image.fromarray(picture.pixels).save(self.out / image)
                Image.fromarray(np.rint(picture.masks[0] * 255).astype(np.uint8)).save(self.out / mask)
        return stop - start


def catalog_product(index: int, *, seed: int = 0) -> Product:
    """Product number `index` (0 to 99,999) of every catalogue of `seed`."""
    look = _look(index, seed)
    colors = (look.primary, look.secondary, look.accent)
    return product(look.category, HELD_OUT + seed * MAX_PRODUCTS + index, colors=colors, pattern=look.pattern)


def _look(index: int, seed: int) -> Look:
    category, rank = CATEGORIES[index % len(CATEGORIES)], index // len(CATEGORIES)
    kinds = _kinds(seed, category)
    rounds, place = divmod(rank, len(kinds))
    primary, secondary, pattern = kinds[place]
    rest = [color for color in COLORS if color not in (primary, secondary)]
    return Look(category, primary, secondary, rest[(place + rounds) % len(rest)], pattern)


@cache
def _kinds(seed: int, category: str) -> tuple[tuple[str, str, str], ...]:
    """Every combination of body colour, second colour and pattern, in an order that depends on the category."""
    rng = Random(f"{seed} {category}")  # noqa: S311
    kinds = [(*colors, pattern) for colors, pattern in itertools.product(itertools.permutations(COLORS, 2), PATTERNS)]
    return tuple(sorted(kinds, key=lambda _: rng.random()))


def write_catalog(
    out: str,
    products: int,
    *,
    seed: int = 0,
    images_per_product: int = 4,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CatalogSummary:
    """Write a catalogue of `products` products to the local folder `out`.

    The call is idempotent: it can be repeated after an interruption or a success, and writes the same bytes.

    Args:
        out: A new or empty folder, or one with this same catalogue.
        products: 1 to 100,000, the categories in turn.
        seed: From 0; catalogues of different seeds share no product.
        images_per_product: 1 to 16 pictures of each, on different plain backgrounds (which repeat after six).
        processes: Processes to draw with; default: one per core. They are spawned, so a script that asks for more than
            100 products needs the usual `if __name__ == "__main__"`, or `processes=1`.
        progress: Called with the number of products drawn so far.

    Raises:
        CatalogError: a number is out of range, or `out` has other contents.
    """
    _check_range("products", products, 1, MAX_PRODUCTS)
    _check_range("images_per_product", images_per_product, 1, MAX_IMAGES_PER_PRODUCT)
    _check_range("seed", seed, 0, 2**63 - 1)
    if processes is not None:
        _check_range("processes", processes, 1, 1024)
    order = _Order(products, seed, images_per_product)
    folder = _claim(out, order)
    for name in _MANIFESTS:
        (folder / name).unlink(missing_ok=True)
    for kind in ("images", "masks"):
        for shard in range(0, products, _SHARD):
            (folder / order.files(kind, shard)[0]).parent.mkdir(parents=True, exist_ok=True)

    done = 0
    for drawn in _drawn(_Draw(folder, order), processes or _cores()):
        done += drawn
        if progress is not None:
            progress(done)

    prompts = list(_prompts(order))
    _write(folder / "prompts.parquet", PROMPTS_SCHEMA, iter([prompts]))
    _write(folder / "concepts.parquet", CONCEPTS_SCHEMA, _concepts(order))
    return CatalogSummary(
        concepts=str(folder / "concepts.parquet"),
        prompts=str(folder / "prompts.parquet"),
        products=products,
        prompt_rows=len(prompts),
        images=products * images_per_product,
    )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CatalogError(f"{name} is {value!r}: give a whole number from {low:,} to {high:,}")


def _claim(out: str, order: _Order) -> Path:
    """Mark `out` as a catalogue with these arguments, unless it has other contents."""
    if not out or "://" in out:
        raise CatalogError(f"a catalogue cannot be written to {out!r}: give a local folder and copy it from there")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise CatalogError(f"{out} is a file: give a folder for the catalogue")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _MARKER
    wanted = json.dumps({"catalog": 1, **asdict(order)}, indent=2) + "\n"
    if marker.is_file():
        if marker.read_text(encoding="utf-8") != wanted:
            raise CatalogError(
                f"{out} holds another catalogue ({_MARKER} describes it): give another folder, or delete this one first"
            )
    elif any(folder.iterdir()):
        raise CatalogError(f"{out} is not empty and is not a catalogue: give a new or an empty folder")
    else:
        _replace(marker, lambda part: part.write_text(wanted, encoding="utf-8"))
    return folder


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drawn(draw: _Draw, processes: int) -> Iterator[int]:
    """Draw every chunk; yield the number of products of each."""
    starts = range(0, draw.order.products, _CHUNK)
    if min(processes, len(starts)) == 1:
        yield from map(draw, starts)
        return
    # Not fork: the caller may have threads, and a fork copies locks that they hold.
    with ProcessPoolExecutor(min(processes, len(starts)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, starts)


def _concepts(order: _Order) -> Iterator[list[dict[str, object]]]:
    for start in range(0, order.products, _SHARD):
        yield [_concept(order, index) for index in range(start, min(start + _SHARD, order.products))]


def _concept(order: _Order, index: int) -> dict[str, object]:
    look = _look(index, order.seed)
    return {
        "concept_id": order.concept_id(index),
        "superclass": superclass(look.category),
        "images": order.files("images", index),
        "masks": order.files("masks", index),
        "category": look.category,
        "color": look.primary,
        "pattern": look.pattern,
        # Shifted with each round of categories, so that every category has products of every season.
        "season": SEASONS[(index + index // len(CATEGORIES)) % len(SEASONS)],
    }


def _prompts(order: _Order) -> Iterator[dict[str, object]]:
    for prompt, tag, where in _PROMPTS:
        yield {"prompt": prompt, "seed": None, "num_images": 1, "where": where, "tag": tag}
    if order.products == 1:
        return
    apart = min(2, order.products - 1)
    for number, place in enumerate(_PAIR_PLACES):
        first = order.concept_id(number % order.products)
        second = order.concept_id((number + apart) % order.products)
        prompt = f"a photo of a {{{first}}} next to a {{{second}}} {place}"
        yield {"prompt": prompt, "seed": None, "num_images": 1, "where": None, "tag": "pair"}


def _write(path: Path, schema: pa.Schema, groups: Iterator[list[dict[str, object]]]) -> None:
    """Write one row group per list of rows; the file appears when it is complete."""

    def fill(part: Path) -> None:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for rows in groups:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))

    _replace(path, fill)


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    fill(part)
    part.replace(path)
