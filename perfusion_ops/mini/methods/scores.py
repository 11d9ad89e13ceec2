"""What is said of each picture: by the embedded scorers, and by the judge that knows the true product."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.sets import PHOTOS, Ask, photos, strangers
from perfusion_ops.mini.oracle.judge import judge
from perfusion_ops.mini.oracle.search import ALONE, ANY, PAIR, Templates
from perfusion_ops.mini.world.products import Product
from perfusion_ops.mini.world.vocabulary import superclass
from perfusion_ops.scoring.protocols import DualEmbedder, ImageEmbedder, Reader

Pictures = NDArray[np.uint8]
Floats = NDArray[np.floating]

_BATCH = 64
# Half the product's height in pixels, as the judge finds it, between the world's small (11 to 13), usual (20 to 25) and
# large (29 to 32) products.
_SMALL_BELOW, _BIG_ABOVE = 16.0, 27.0


class Score(Frozen):
    """Scores of one picture; None where the prompt does not ask for it.

    Attributes:
        identity: mean cosine to the product's photographs, in the identity scorer's space; product alone, own look.
        nearest: the product's mean photograph is nearer than that of every stranger of the class; as above.
        context: the reader names the place that the prompt names.
        noun: the reader names the product's class.
        text: cosine to the prompt with the superclass, in the dual scorer's space.
        attribute: the angle, colour, size or other product that the prompt names is there.
        obeyed: context, class and attribute are all right.
        color, pattern, edges, overall: see `oracle.judge.Judgement`; product in its own look.
        legible: as there.
    """

    identity: float | None
    nearest: bool | None
    context: bool
    noun: bool
    text: float
    attribute: bool | None
    obeyed: bool
    color: float | None
    pattern: float | None
    edges: float | None
    overall: float | None
    legible: bool | None


@dataclass(frozen=True, eq=False)
class Judges:
    """The scorers of a measurement.

    Attributes:
        image: identity scorer.
        text: dual scorer.
        reader: labels places, classes, colours and angles.
        strangers: how many products of the same class a picture is compared with.
    """

    image: ImageEmbedder
    text: DualEmbedder
    reader: Reader
    strangers: int

    def score(self, item: Product, asks: Sequence[Ask], pictures: Pictures) -> list[Score]:
        """Judge B pictures (B, 64, 64, 3) of one product, each with what was asked."""
        embedded = _embedded(self.image, pictures)
        read = _read(self.reader, pictures)
        seen = _embedded(self.text, pictures)
        told = self.text.embed_texts([ask.prompt.replace("{}", superclass(item.look.category)) for ask in asks])
        own = _embedded(self.image, photographs(item))
        nearest = (embedded @ _unit(own.mean(0))) > (embedded @ self._strangers(item.look.category).T).max(1)
        labels = {head: _named(self.reader, read, head) for head in ("context", "class", "angle", "color")}
        scores = []
        for n, ask in enumerate(asks):
            judged = judge(_templates(item, _scales(ask)), pictures[n]) if ask.same_look else None
            likely = {name: float(p) for name, p in zip(self.reader.heads["class"], read["class"][n], strict=True)}
            category = item.look.category
            right = labels["class"][n] == category if ask.other is None else likely[category] > 0.5
            attribute = {
                "context": None,
                "angle": labels["angle"][n] == ask.angle,
                "color": labels["color"][n] == ask.color,
                "framing": judged is not None and _framed(ask, judged.scale),
                "other": likely.get(ask.other or "", 0.0) > 0.5,
            }[ask.kind]
            context = labels["context"][n] == ask.background
            scores.append(
                Score(
                    identity=float((own @ embedded[n]).mean()) if ask.alone else None,
                    nearest=bool(nearest[n]) if ask.alone else None,
                    context=context,
                    noun=right,
                    text=float(seen[n] @ told[n]),
                    attribute=attribute,
                    obeyed=context and right and attribute is not False,
                    color=judged.color if judged else None,
                    pattern=judged.pattern if judged else None,
                    edges=judged.edges if judged else None,
                    overall=judged.overall if judged else None,
                    legible=judged.legible if judged else None,
                )
            )
        return scores

    def _strangers(self, category: str) -> Floats:
        return stranger_photographs(self, category)


@lru_cache(maxsize=64)
def stranger_photographs(judges: Judges, category: str) -> Floats:
    """The mean photograph of each stranger of a class as a unit vector: (strangers, D)."""
    pictures = np.concatenate([photographs(item) for item in strangers(category, judges.strangers)])
    return _unit(_embedded(judges.image, pictures).reshape(judges.strangers, PHOTOS, -1).mean(1))


@lru_cache(maxsize=4)
def _templates(item: Product, scales: tuple[float, ...]) -> Templates:
    return Templates(item, scales)


def _scales(ask: Ask) -> tuple[float, ...]:
    """The sizes that the judge looks for; a product that should be small must be allowed not to be."""
    if ask.other is not None:
        return PAIR
    return ANY if ask.framing == "small" else ALONE


def photographs(item: Product) -> Pictures:
    """What a product is judged against: its first photographs, (PHOTOS, 64, 64, 3)."""
    return np.stack([np.asarray(picture) for picture, _ in photos(item, PHOTOS)])


def _framed(ask: Ask, scale: float) -> bool:
    return scale < _SMALL_BELOW if ask.framing == "small" else scale > _BIG_ABOVE


def _named(reader: Reader, read: dict[str, Floats], head: str) -> list[str]:
    return [reader.heads[head][place] for place in read[head].argmax(1)]


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _embedded(embedder: ImageEmbedder, pictures: Pictures) -> Floats:
    return np.concatenate([embedder.embed_images(pictures[n : n + _BATCH]) for n in range(0, len(pictures), _BATCH)])


def _read(reader: Reader, pictures: Pictures) -> dict[str, Floats]:
    parts = [reader.read(pictures[n : n + _BATCH]) for n in range(0, len(pictures), _BATCH)]
    return {head: np.concatenate([part[head] for part in parts]) for head in reader.heads}
