"""The words of the product world: its products, colours, patterns and backgrounds, and their names.

Pure data without numpy, so that captions can be written without a renderer. The embedded base model was trained on
these names: a new name needs a new base model.
"""

from dataclasses import dataclass
from typing import Literal

CATEGORIES = (
    "mug", "chair", "teddy", "bottle", "shoe", "bag", "lamp", "hat", "clock", "car", "duck", "guitar",
)  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked", "star", "heart")
EMBLEMS = frozenset({"star", "heart"})
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")

# What something can stand in, and what can stand in it.
CONTAINERS = ("mug", "bag", "shoe")
CONTENTS = ("teddy", "duck", "bottle", "guitar")
# What other things can stand on.
SUPPORTS = ("car", "bag", "clock", "mug")

# Each context with every way of saying where the product is.
CONTEXTS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on a beach", "at the beach"),
    "snow": ("in the snow", "on the snow"),
    "grass": ("on the grass", "in a green field", "on green grass"),
    "city": ("in the city at night", "in a city at night"),
    "wood": ("on a wooden table", "on a wooden floor"),
    "brick": ("in front of a brick wall", "against a brick wall"),
    "forest": ("in the forest", "in a forest"),
    "desert": ("in the desert", "on a sand dune in the desert"),
    "underwater": ("underwater", "under the sea"),
    "kitchen": ("in the kitchen", "in a kitchen"),
    "space": ("in space", "in outer space"),
    "mountains": ("in the mountains", "in front of the mountains"),
    "sunset": ("at sunset", "in front of a sunset"),
    "library": ("in the library", "in a library", "in front of a bookshelf"),
    "garden": ("in the garden", "in a garden", "among the flowers"),
    "road": ("on the road", "on a road"),
}
STUDIO_COLORS = ("red", "blue", "green", "yellow", "white", "purple", "gray")
STUDIO_PREFIX = "studio-"
BACKGROUNDS = (*CONTEXTS, *(STUDIO_PREFIX + color for color in STUDIO_COLORS))

Framing = Literal["mid", "big", "small"]
Relation = Literal["beside", "on", "wearing", "inside"]
Angle = Literal["front", "side", "above", "tilted"]


@dataclass(frozen=True)
class Look:
    """What words can say about a product: its category, three distinct colours and a pattern."""

    category: str
    primary: str
    secondary: str
    accent: str
    pattern: str

    @property
    def emblem_color(self) -> str:
        """Colour in which a star or heart is drawn: the one that stands out where the category carries it."""
        return self.primary if self.category == "clock" else self.secondary


@dataclass(frozen=True)
class Description:
    """What words can say about a scene.

    Attributes:
        looks: One product, or two of different categories: the first beside, on, wearing or inside the second.
        background: One of BACKGROUNDS.
        framing: How much of the picture a product alone fills.
        angle: Where the camera stands to a product alone.
        relation: How the first of two products stands to the second; None for a product alone.
        first_is_left: Of two side by side, whether the first stands to the left.
    """

    looks: tuple[Look, ...]
    background: str
    framing: Framing = "mid"
    angle: Angle = "front"
    relation: Relation | None = None
    first_is_left: bool = True


def superclass(category: str) -> str:
    """The words that captions use for a category: "teddy bear" for teddy, otherwise the category itself."""
    return "teddy bear" if category == "teddy" else category


def phrases(background: str) -> tuple[str, ...]:
    """Every way of saying that a product stands before `background` (one of BACKGROUNDS)."""
    if background.startswith(STUDIO_PREFIX):
        color = background.removeprefix(STUDIO_PREFIX)
        return (f"on a {color} background", f"in front of a {color} background", f"in a {color} studio")
    return CONTEXTS[background]
