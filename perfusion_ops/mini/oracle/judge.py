"""The judgement of one picture: each product that it should show, found and compared with its true drawing."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.config import Frozen
from perfusion_ops.mini.oracle.score import color_score, edge_score, mean_score, pattern_score
from perfusion_ops.mini.oracle.search import Drawn, Fit, Templates, draw, find, overlap
from perfusion_ops.mini.world.products import Product
from perfusion_ops.mini.world.vocabulary import PATTERNS

_LEGIBLE = 0.5  # of `pattern`: below, nobody can name the pattern
_HIDDEN = 0.5  # of the smaller of two products: they do not stand at the same place


class Judgement(Frozen):
    """How well a picture shows one product; all scores 0 to 1.

    Attributes:
        color: see `color_score`.
        pattern: see `pattern_score`.
        edges: see `edge_score`.
        overall: the geometric mean of the three.
        legible: the pattern or emblem can be read: the true one fits better than every other one, and well.
        scale: half the product's height in pixels, as found.
        x, y: of its middle in pixels, as found.
    """

    color: float
    pattern: float
    edges: float
    overall: float
    legible: bool
    scale: float
    x: float
    y: float


def judge(templates: Templates, picture: NDArray[np.uint8]) -> Judgement:
    """Judge a picture (64, 64, 3) of one product."""
    return judge_all([templates], picture)[0]


def judge_all(templates: Sequence[Templates], picture: NDArray[np.uint8]) -> list[Judgement]:
    """Judge each of several products that one picture (64, 64, 3) should show, at places of their own."""
    image = (picture / 255).astype(np.float32)
    found = [find(each, image) for each in templates]
    chosen = _apart([each.product for each in templates], found, image)
    return [_judge(each.product, fit, image) for each, fit in zip(templates, chosen, strict=True)]


def _apart(products: Sequence[Product], found: Sequence[Sequence[Fit]], image: NDArray[np.float32]) -> Sequence[Fit]:
    """One fit for each product, so that all together explain most and no two are at the same place."""
    if len(found) == 1:
        return [max(found[0], key=lambda fit: _trust(products[0], fit, image))]
    covers = [[draw(item, fit.view, image).cover for fit in fits] for item, fits in zip(products, found, strict=True)]

    def clear(places: tuple[int, ...]) -> bool:
        seen = [covers[number][place] for number, place in enumerate(places)]
        return all(overlap(pair) < _HIDDEN for pair in itertools.combinations(seen, 2))

    ways = list(itertools.product(*(range(len(fits)) for fits in found)))
    best = max(
        ways,
        key=lambda places: (
            clear(places),
            sum(_trust(products[n], found[n][p], image) for n, p in enumerate(places)),
        ),
    )
    return [found[number][place] for number, place in enumerate(best)]


def _trust(product: Product, fit: Fit, image: NDArray[np.float32]) -> float:
    """How much speaks for a fit. Likeness counts most, but a small drawing also suits a corner of a large product."""
    drawn = draw(product, fit.view, image)
    alike = mean_score((color_score(image, drawn), pattern_score(image, drawn), edge_score(image, drawn)))
    return alike**2 * max(fit.explained, 0.0) ** 0.5


def _judge(product: Product, fit: Fit, image: NDArray[np.float32]) -> Judgement:
    drawn = draw(product, fit.view, image)
    color, pattern, edges = color_score(image, drawn), pattern_score(image, drawn), edge_score(image, drawn)
    others = max(
        pattern_score(image, _patterned(product, name, fit, image)) for name in PATTERNS if name != product.look.pattern
    )
    return Judgement(
        color=color,
        pattern=pattern,
        edges=edges,
        overall=mean_score((color, pattern, edges)),
        legible=pattern >= _LEGIBLE and pattern > others,
        scale=fit.view.scale,
        x=fit.view.x,
        y=fit.view.y,
    )


def _patterned(product: Product, name: str, fit: Fit, image: NDArray[np.float32]) -> Drawn:
    return draw(replace(product, look=replace(product.look, pattern=name)), fit.view, image)
