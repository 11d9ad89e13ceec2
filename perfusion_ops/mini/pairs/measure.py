"""Draws each group of products and judges every product of a picture at its own place.

The judge that knows the true products finds each of them (`oracle.judge_all`). The identity scorer sees squares of four
sizes cut out around that place, because other products hide parts of it, and must find one of them nearer to the
product's own photographs than to those of every stranger of the class. Real renders pass in 95 % of the products, real
renders of other products of the same classes in 5 % (40 each, 2026-11-26).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.scores import Judges, photographs, stranger_photographs
from perfusion_ops.mini.oracle.judge import Judgement, judge_all
from perfusion_ops.mini.oracle.search import PAIR, Templates
from perfusion_ops.mini.pairs.sets import Group
from perfusion_ops.mini.world.products import Product

Pictures = NDArray[np.uint8]
Draw = Callable[[Group, Sequence[int]], Pictures]

_AROUND = (0.8, 1.0, 1.3, 1.6)  # half the side of each square cut out, in units of the product's half height


class Row(Frozen):
    """One picture of a group.

    Attributes:
        method, kind, number, seed: which picture.
        relation: that was asked for.
        classes: the likeliest classes are the ones asked for.
        own: of each product, whether it is nearer to its own photographs than to those of every stranger.
        overall: of each product, the judge's score.
        context: the reader names the place that the prompt names.
        related: the reader names the relation that the prompt names; None for three products.
    """

    method: str
    kind: str
    number: int
    seed: int
    relation: str
    classes: bool
    own: tuple[bool, ...]
    overall: tuple[float, ...]
    context: bool
    related: bool | None

    @property
    def success(self) -> bool:
        """All classes and all identities are right."""
        return self.classes and all(self.own)


def measure(judges: Judges, method: str, draw: Draw, groups: Sequence[Group], seeds: int) -> tuple[list[Row], Pictures]:
    """Rows and pictures (N, 64, 64, 3) of one method, groups in order, `seeds` pictures of each."""
    rows, drawn = [], []
    for group in groups:
        numbers = [group.number * 100 + seed for seed in range(seeds)]
        pictures = draw(group, numbers)
        rows += _judged(judges, method, group, numbers, pictures)
        drawn.append(pictures)
    return rows, np.concatenate(drawn)


def _judged(judges: Judges, method: str, group: Group, seeds: Sequence[int], pictures: Pictures) -> list[Row]:
    read, heads = judges.reader.read(pictures), judges.reader.heads
    wanted = {item.look.category for item in group.items}
    templates = [_templates(item) for item in group.items]
    rows = []
    for n, (seed, picture) in enumerate(zip(seeds, pictures, strict=True)):
        found = judge_all(templates, picture)
        order = np.argsort(read["class"][n])[::-1][: len(wanted)]
        rows.append(
            Row(
                method=method,
                kind=group.kind,
                number=group.number,
                seed=seed,
                relation=group.relation,
                classes={heads["class"][place] for place in order} == wanted,
                own=tuple(
                    _own(judges, item, group.items, np.stack([cut(picture, each, around) for around in _AROUND]))
                    for item, each in zip(group.items, found, strict=True)
                ),
                overall=tuple(each.overall for each in found),
                context=heads["context"][int(read["context"][n].argmax())] == group.background,
                related=heads["relation"][int(read["relation"][n].argmax())] == group.relation
                if len(group.items) == 2
                else None,
            )
        )
    return rows


def cut(picture: Pictures, found: Judgement, around: float) -> Pictures:
    """The square around a product as found, `around` times its height wide, enlarged to the picture's size."""
    side = picture.shape[0]
    half = min(around * found.scale, side / 2)
    x, y = (min(max(at, half), side - half) for at in (found.x, found.y))
    box = (x - half, y - half, x + half, y + half)
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def _own(judges: Judges, item: Product, items: Sequence[Product], squares: Pictures) -> bool:
    """Whether one of the squares (S, H, W, 3) is nearest to `item` among the strangers and twins of its class."""
    seen = judges.image.embed_images(squares)
    twins = [_photographed(judges, one) for one in items if one != item and one.look.category == item.look.category]
    others = np.stack([*stranger_photographs(judges, item.look.category), *twins])
    return bool((seen @ _photographed(judges, item) > (seen @ others.T).max(1)).any())


@lru_cache(maxsize=64)
def _photographed(judges: Judges, item: Product) -> NDArray[np.floating]:
    """The mean photograph of a product as a unit vector, (D,)."""
    mean = judges.image.embed_images(photographs(item)).mean(0)
    return mean / np.linalg.norm(mean)


@lru_cache(maxsize=64)
def _templates(item: Product) -> Templates:
    return Templates(item, PAIR)
