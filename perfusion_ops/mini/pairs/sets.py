"""Which products one picture shows, and what the prompts ask for.

A set has one product of each class. The tuning set and the final set are different instances, and no other measurement
uses them.
"""

from dataclasses import dataclass
from typing import Literal

from perfusion_ops.mini.world.products import HELD_OUT, Product, product
from perfusion_ops.mini.world.scene import Scene, pair
from perfusion_ops.mini.world.vocabulary import CATEGORIES, CONTEXTS, Relation, superclass

SetName = Literal["tuning", "final"]

_FIRST = {"tuning": 550_000, "final": 560_000}
_TWINS = 12  # added to an instance: another product of its class
_LINKS: dict[Relation, str] = {"beside": "next to", "on": "on top of", "wearing": "wearing", "inside": "inside"}
_PAIRS: tuple[tuple[Relation, str, str], ...] = (
    ("beside", "mug", "chair"), ("on", "duck", "car"), ("beside", "teddy", "bag"), ("wearing", "teddy", "hat"),
    ("beside", "shoe", "lamp"), ("inside", "duck", "mug"), ("beside", "bottle", "clock"), ("on", "bottle", "bag"),
    ("beside", "car", "duck"), ("wearing", "duck", "hat"), ("beside", "guitar", "mug"), ("inside", "guitar", "bag"),
    ("beside", "chair", "teddy"), ("on", "teddy", "mug"), ("beside", "lamp", "bottle"), ("wearing", "bottle", "hat"),
    ("beside", "clock", "shoe"), ("on", "shoe", "clock"), ("beside", "hat", "car"), ("inside", "teddy", "shoe"),
)  # fmt: skip
_TRIPLES = (
    ("mug", "chair", "duck"), ("teddy", "bag", "shoe"), ("bottle", "clock", "car"), ("lamp", "hat", "guitar"),
    ("duck", "bottle", "teddy"), ("shoe", "mug", "hat"), ("car", "teddy", "lamp"), ("bag", "duck", "clock"),
    ("chair", "guitar", "bottle"), ("clock", "mug", "bag"),
)  # fmt: skip
_TWIN_CLASSES = ("mug", "chair", "teddy", "bottle", "shoe", "bag", "lamp", "hat", "car", "duck")
_PHASE = 7  # how far apart the contexts of two prompts are

KINDS = ("two", "three", "twins")
Kind = Literal["two", "three", "twins"]


@dataclass(frozen=True)
class Group:
    """One prompt and the products that its picture must show.

    Attributes:
        number: from 0, within its kind.
        kind: two products, three, or two of one class.
        prompt: with `{0}`, `{1}`, ... for the products.
        items: the products.
        background: one of CONTEXTS.
        relation: of the first to the second.
    """

    number: int
    kind: Kind
    prompt: str
    items: tuple[Product, ...]
    background: str
    relation: Relation

    @property
    def words(self) -> str:
        """The prompt with the products' classes."""
        return self.prompt.format(*(superclass(item.look.category) for item in self.items))


def groups(name: SetName, kind: Kind, count: int) -> list[Group]:
    """The first `count` prompts of a kind: at most 20 of two products, 10 of the others."""
    asked: list[tuple[Relation, tuple[str, ...]]]
    if kind == "two":
        asked = [(relation, (first, second)) for relation, first, second in _PAIRS]
    elif kind == "three":
        asked = [("beside", names) for names in _TRIPLES]
    else:
        asked = [("beside", (each, each)) for each in _TWIN_CLASSES]
    return [_group(name, kind, number, relation, names) for number, (relation, names) in enumerate(asked[:count])]


def _group(name: SetName, kind: Kind, number: int, relation: Relation, names: tuple[str, ...]) -> Group:
    background = list(CONTEXTS)[_PHASE * number % len(CONTEXTS)]
    place = CONTEXTS[background][number % len(CONTEXTS[background])]
    items = tuple(
        product(each, HELD_OUT + _FIRST[name] + CATEGORIES.index(each) + _TWINS * names[:n].count(each))
        for n, each in enumerate(names)
    )
    told = f"a {{0}} {_LINKS[relation]} a {{1}}" + (" and a {2}" if len(items) == 3 else "")
    return Group(number, kind, f"a photo of {told} {place}", items, background, relation)


def real_scene(group: Group, seed: int) -> Scene:
    """Scene `seed` of two products as they really look."""
    first, second = group.items
    return pair(group.relation, first, second, group.background, seed)
