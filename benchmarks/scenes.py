"""Scenes on the embedded model: a product put into a given scene, and a real product whose background is drawn.

Twelve products, five places each: 60 pictures of each kind. The scorers of the embedded world say how much a picture
shows the product (cosine to its four photographs) and whether it shows the place that the prompt names. Concepts of
both recipes are put into scenes. Intervals are 95 % bootstrap intervals over products. Trained concepts are kept in
`.bench/scenes`, with the contact picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import perfusion_ops
from benchmarks.measure import finish, show
from perfusion_ops.base_model import Base
from perfusion_ops.compare.intervals import bootstrap
from perfusion_ops.concept import Concept
from perfusion_ops.conditioning import PromptRow, prompt_row
from perfusion_ops.config import Recipe
from perfusion_ops.metric import Metric
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.methods.sets import PHOTOS, photos
from perfusion_ops.mini.world.products import HELD_OUT, Product, product
from perfusion_ops.mini.world.scene import Scene as World
from perfusion_ops.mini.world.scene import render as drawn
from perfusion_ops.mini.world.vocabulary import CATEGORIES, CONTEXTS, superclass
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.scenes.scene import Scene, around_product, box_region, into_scene
from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.models import load_scorers
from perfusion_ops.scoring.protocols import Scorers

Picture = NDArray[np.uint8]

_OUT = Path(".bench/scenes")
_FIRST = HELD_OUT + 560_000  # products that no other measurement uses
_PLACES = 5
_BOX = (0.125, 0.125, 0.875, 0.9375)  # as large as most products of this world
_SHOWN = 6
_BARS = {"into_identity": 0.65, "into_context": 0.95, "keep_context": 0.95, "keep_identical": 1.0}
_RESAMPLES = 4000
_WORD, _PAPER = "superclass word", "paper"


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bars are met."""
    base = perfusion_ops.load_base("mini")
    metric = perfusion_ops.estimate_metric(base, 2000)
    folder = base_folder().parent / "scorers"
    choice = choose_scorers(text=str(folder / "dual"), image=str(folder / "identity"), reader=str(folder / "reader"))
    scorers = load_scorers(choice, device="cpu")
    _OUT.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[list[float]]] = {}
    columns: list[list[Picture]] = []
    for number in range(options.rows or len(CATEGORIES)):
        item = product(CATEGORIES[number % len(CATEGORIES)], _FIRST + number)
        concepts = [_concept(base, metric, item, number, recipe) for recipe in ("offset", "paper")]
        found = _pictures(base, metric, item, concepts, number)
        for name, values in _judged(scorers, item, number, found).items():
            scores.setdefault(name, []).append(values)
        if number < _SHOWN:
            columns.append([_boxed(found["scene"][0]), found["into"][0], found["photo"][0], found["keep"][0]])
        show(f"{item.look.category}: " + ", ".join(f"{name} {np.mean(each[-1]):.3f}" for name, each in scores.items()))
    _sheet(columns).save(_OUT / "scenes.png")
    figures = {"products": len(next(iter(scores.values()))), "pictures": sum(map(len, next(iter(scores.values()))))}
    intervals = {name: _interval([float(np.mean(each)) for each in values]) for name, values in scores.items()}
    means = {name: float(np.mean(np.concatenate(values))) for name, values in scores.items()}
    return finish("scenes", {**figures, **means, "intervals": intervals}, _BARS)


def _concept(base: Base, metric: Metric, item: Product, number: int, recipe: Recipe) -> Concept:
    path = _OUT / f"{base.folder.digest[:8]}-{recipe}-{number}.safetensors"
    if not path.exists():
        show(f"training concept {number + 1}: {item.look.category}, recipe {recipe}")
        pictures, masks = zip(*photos(item, PHOTOS), strict=True)
        words = superclass(item.look.category)
        concept = perfusion_ops.train_concept(base, metric, words, pictures, masks=masks, recipe=recipe)
        perfusion_ops.save_concept(concept, path)
    return perfusion_ops.load_concept(base, metric, path)


def _places(number: int) -> list[str]:
    names = list(CONTEXTS)
    return [names[(5 * number + 3 * turn) % len(names)] for turn in range(_PLACES)]


def _pictures(
    base: Base, metric: Metric, item: Product, concepts: Sequence[Concept], number: int
) -> dict[str, list[Picture]]:
    """The pictures of a product by kind, one for each of its places.

    Args:
        base: the base model.
        metric: its metric.
        item: the product.
        concepts: of recipe `offset` and of recipe `paper`.
        number: of the product.
    """
    side = base.resolution
    words, places = superclass(item.look.category), _places(number)
    grounds = [
        Image.fromarray(drawn(World(place, (_FIRST, number, turn), ())).pixels) for turn, place in enumerate(places)
    ]
    shots = [photos(item, PHOTOS)[turn % PHOTOS] for turn in range(_PLACES)]
    region = box_region(side, side, _BOX)
    into = [into_scene(ground, region, side, side, factor=base.latent_factor) for ground in grounds]
    keep = [around_product(photo, mask, side, side) for photo, mask in shots]
    texts = [f"a photo of a {{0}} {CONTEXTS[place][0]}" for place in places]
    own, paper = (
        [prompt_row(text, [concept], bias=0.7, temperature=0.15, lock="local", combine="regional") for text in texts]
        for concept in concepts
    )
    word = [PromptRow(text.replace("{0}", words)) for text in texts]
    asked: dict[str, tuple[Sequence[PromptRow], Sequence[Scene]]] = {
        "into": (own, into),
        f"into, {_PAPER}": (paper, into),
        f"into, {_WORD}": (word, into),
        "keep": (word, keep),
        "keep, concept": (own, keep),
    }
    sampler = Sampler(side, side, 20, 4.5, "ddim")
    found: dict[str, list[Picture]] = {
        "scene": [np.asarray(ground) for ground in grounds],
        "photo": [scene.pixels for scene in keep],
        "stays": [np.asarray(scene.stays == 1) for scene in keep],
    }
    for name, (prompts, scenes) in asked.items():
        rows = [
            RenderRow(prompt, PromptRow(""), 1000 * number + turn, scene)
            for turn, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True))
        ]
        found[name] = [picture for picture in render(base, metric, rows, sampler) if picture is not None]
    return found


def _judged(scorers: Scorers, item: Product, number: int, found: dict[str, list[Picture]]) -> dict[str, list[float]]:
    """Scores of each picture by name."""
    image, reader = scorers.image, scorers.reader
    assert image is not None
    assert reader is not None
    own = image.embed_images(np.stack([np.asarray(photo) for photo, _ in photos(item, PHOTOS)]))
    labels = reader.heads["context"]
    scores: dict[str, list[float]] = {}
    for name in ("into", f"into, {_PAPER}", f"into, {_WORD}", "keep", "keep, concept", "photo"):
        pictures = np.stack(found[name])
        kind, _, which = name.partition(", ")
        suffix = f"_of_{which.replace(' ', '_')}" if which else ""
        scores[f"{kind}_identity{suffix}"] = [
            float(cosine) for cosine in (image.embed_images(pictures) @ own.T).mean(1)
        ]
        seen = reader.read(pictures)["context"].argmax(1)
        scores[f"{kind}_context{suffix}"] = [
            float(labels[int(one)] == place) for one, place in zip(seen, _places(number), strict=True)
        ]
    kept = zip(found["keep"], found["photo"], found["stays"], strict=True)
    scores["keep_identical"] = [float(np.array_equal(one[stays], photo[stays])) for one, photo, stays in kept]
    return scores


def _interval(means: list[float]) -> list[float]:
    found = bootstrap(means, resamples=_RESAMPLES)
    return [round(found.low, 4), round(found.high, 4)]


def _boxed(picture: Picture) -> Picture:
    shown = Image.fromarray(picture)
    left, top, right, bottom = (round(share * length) for share, length in zip(_BOX, shown.size * 2, strict=True))
    ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline="white")
    return np.asarray(shown)


def _sheet(columns: list[list[Picture]]) -> Image.Image:
    """Columns of pictures, at twice their size with white between them."""
    framed = [[np.pad(each.repeat(2, 0).repeat(2, 1), ((3, 3), (3, 3), (0, 0)), constant_values=255) for each in column]
              for column in columns]  # fmt: skip
    return Image.fromarray(np.concatenate([np.concatenate(column, 0) for column in framed], 1))
