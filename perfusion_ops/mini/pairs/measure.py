"""Draws each group of products and judges every product of a picture at its own place.

The judge that knows the true products finds each of them (`oracle.judge_all`). The identity scorer sees the square cut
out around that place, and must find it nearer to the product's own photographs than to those of every stranger of the
class.
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

_AROUND = 1.3  # half the side of the square cut out, in units of the product's half height


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
                    _own(judges, item, group.items, cut(picture, each))
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


def cut(picture: Pictures, found: Judgement) -> Pictures:
    """The square around a product as found, enlarged to the picture's size."""
    side = picture.shape[0]
    half = min(_AROUND * found.scale, side / 2)
    x, y = (min(max(at, half), side - half) for at in (found.x, found.y))
    box = (x - half, y - half, x + half, y + half)
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def _own(judges: Judges, item: Product, items: Sequence[Product], picture: Pictures) -> bool:
    """Whether a cut-out is nearest to `item` among the strangers and twins of its class."""
    [seen] = judges.image.embed_images(picture[None])
    own, *twins = (
        each / np.linalg.norm(each)
        for each in (
            judges.image.embed_images(photographs(other)).mean(0)
            for other in (item, *(one for one in items if one != item and one.look.category == item.look.category))
        )
    )
    others = [*stranger_photographs(judges, item.look.category), *twins]
    return bool(seen @ own > max(float(seen @ other) for other in others))


@lru_cache(maxsize=64)
def _templates(item: Product) -> Templates:
    return Templates(item, PAIR)
