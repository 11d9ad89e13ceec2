"""How each category is drawn: a product as coloured polygons from back to front.

Every drawing reads its proportions from `product.shape`, eight numbers in 0..1, so that no two products of a category
have quite the same outline. Coordinates as in `shapes`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perfusion_ops.mini.colors import BLACK, Rgb, darken, lighten
from perfusion_ops.mini.products import Product
from perfusion_ops.mini.shapes import FULL_TURN, Points, arc, band, bar, corners, heart, join, rounded_box, star
from perfusion_ops.mini.vocabulary import EMBLEMS

_HALF, _QUARTER = FULL_TURN / 2, FULL_TURN / 4
_GLASS: Rgb = (170, 215, 235)
_HEADLIGHT: Rgb = (255, 240, 160)
_PAPER: Rgb = (235, 235, 230)
_EMBLEM_SCALE = 1.1


@dataclass(frozen=True)
class Layer:
    """A filled polygon.

    Attributes:
        points: Its corners, (n, 2).
        fill: Its RGB; None for the body, which takes the primary colour and the pattern.
        emblem: Whether it is printed on the product: without an outline, and nothing beyond the product's own edge.
    """

    points: Points
    fill: Rgb | None = None
    emblem: bool = False


def drawing(product: Product) -> list[Layer]:
    """The polygons of `product` from back to front."""
    look = product.look
    layers, (x, y, radius) = _DRAWINGS[look.category](product)
    if look.pattern in EMBLEMS:
        outline = star if look.pattern == "star" else heart
        colors = {look.primary: product.primary, look.secondary: product.secondary, look.accent: product.accent}
        layers.append(Layer(outline(x, y, radius * _EMBLEM_SCALE), colors[look.emblem_color], emblem=True))
    return layers


# Layers, and where an emblem goes: its centre and radius.
_Parts = tuple[list[Layer], tuple[float, float, float]]


def _mug(product: Product) -> _Parts:
    s = product.shape
    center = -0.12
    width, height, taper = 0.48 + 0.16 * s[0], 0.62 + 0.3 * s[1], 0.16 * s[2] - 0.03
    handle = band(
        width * 0.98 + center, 0.05, 0.22 + 0.2 * s[3], 0.3 + 0.2 * s[4], 0.17, -_QUARTER - 0.2, _QUARTER + 0.2
    )
    body = join(
        corners((width + center, -height), (width + center - taper, height - 0.1)),
        arc(center, height - 0.1, width - taper, 0.14, 12, 0, _HALF),
        corners((-width + center, -height)),
    )
    layers = [
        Layer(handle, product.secondary),
        Layer(body),
        Layer(arc(center, -height, width, 0.17), lighten(product.primary, 0.35)),
        Layer(arc(center, -height + 0.02, width - 0.09, 0.11), darken(product.accent, 0.75)),
    ]
    return layers, (center, 0.15, 0.36)


def _chair(product: Product) -> _Parts:
    s = product.shape
    width, back, leg = 0.48 + 0.14 * s[0], 0.9 + 0.15 * s[1], 0.11 + 0.08 * s[2]
    layers = [
        Layer(bar(x, 0.2, x, 0.85, leg * 0.9), darken(product.accent, 0.7)) for x in (-width + 0.12, width - 0.12)
    ]
    if s[3] > 0.5:
        layers.append(Layer(rounded_box(-width, -back, width, 0.08, 0.08 + 0.3 * s[4])))
    else:
        slats = (-width + 0.08, -width / 2.6, width / 2.6, width - 0.08)
        layers += [Layer(rounded_box(x - 0.08, -back, x + 0.08, 0.1, 0.05)) for x in slats]
        layers.append(Layer(rounded_box(-width - 0.03, -back - 0.02, width + 0.03, -back + 0.4, 0.1)))
    seat = corners((-width, 0.05), (width, 0.05), (width + 0.2, 0.34), (-width - 0.2, 0.34))
    layers.append(Layer(seat, product.secondary))
    layers.append(Layer(rounded_box(-width - 0.2, 0.32, width + 0.2, 0.43, 0.04), darken(product.secondary, 0.75)))
    layers += [
        Layer(bar(x, 0.42, x * (1 + 0.12 * s[5]), 1.0, leg), product.accent) for x in (-width - 0.1, width + 0.1)
    ]
    return layers, (0.0, -back + 0.42, 0.3)


def _teddy(product: Product) -> _Parts:
    s = product.shape
    ear, head, belly = 0.17 + 0.1 * s[0], 0.44 + 0.06 * s[1], 0.42 + 0.12 * s[2]
    fur, limb = product.primary, darken(product.primary, 0.88)
    layers = []
    for side in (-1, 1):
        layers += [
            Layer(arc(side * 0.36, -0.8, ear, ear), fur),
            Layer(arc(side * 0.36, -0.8, ear * 0.55, ear * 0.55), product.secondary),
            Layer(arc(side * (belly + 0.08), 0.22, 0.16, 0.3), limb),
            Layer(arc(side * 0.34, 0.82, 0.24, 0.2), limb),
            Layer(arc(side * 0.36, 0.84, 0.12, 0.1), product.secondary),
        ]
    layers.append(Layer(arc(0, 0.38, belly, 0.5)))
    if product.look.pattern == "plain":
        layers.append(Layer(arc(0, 0.42, belly * 0.6, 0.32), product.secondary))
    layers += [
        Layer(arc(0, -0.46, head, 0.42), fur),
        Layer(arc(0, -0.32, 0.23, 0.18), lighten(product.secondary, 0.3)),
        Layer(arc(0, -0.39, 0.09, 0.065), BLACK),
        Layer(arc(-0.19, -0.56, 0.06, 0.07), BLACK),
        Layer(arc(0.19, -0.56, 0.06, 0.07), BLACK),
    ]
    if s[3] > 0.5:
        bow = corners((-0.28, -0.1), (0, 0), (0.28, -0.1), (0.28, 0.12), (0, 0.02), (-0.28, 0.12))
        layers.append(Layer(bow, product.accent))
    return layers, (0.0, 0.42, 0.3)


def _bottle(product: Product) -> _Parts:
    s = product.shape
    width, neck, shoulder, top = 0.27 + 0.17 * s[0], 0.1 + 0.07 * s[1], -0.35 + 0.3 * s[2], -0.85
    body = join(
        corners((neck, top), (neck, shoulder - 0.22)),
        arc(width - 0.12, shoulder + 0.05, 0.12, 0.14, 5, -_QUARTER, 0),
        arc(width - 0.1, 0.9, 0.1, 0.1, 4, 0, _QUARTER),
        arc(-width + 0.1, 0.9, 0.1, 0.1, 4, _QUARTER, _HALF),
        arc(-width + 0.12, shoulder + 0.05, 0.12, 0.14, 5, _HALF, 3 * _QUARTER),
        corners((-neck, shoulder - 0.22), (-neck, top)),
    )
    layers = [Layer(body), Layer(rounded_box(-neck - 0.05, -1.02, neck + 0.05, -0.8, 0.04), product.accent)]
    if product.look.pattern == "plain" or product.look.pattern in EMBLEMS or s[4] > 0.6:
        layers.append(Layer(rounded_box(-width, 0.1 + 0.1 * s[5], width, 0.62, 0.02), product.secondary))
    shine = rounded_box(-width + 0.07, shoulder + 0.1, -width + 0.13, 0.05 + 0.05 * s[5], 0.02)
    layers.append(Layer(shine, lighten(product.primary, 0.5)))
    return layers, (0.0, 0.38, 0.22)


def _shoe(product: Product) -> _Parts:
    s = product.shape
    height, toe = 0.35 + 0.45 * s[0], 0.1 * s[1]
    upper = join(
        corners((-0.92, 0.45), (-0.95, -height * 0.6), (-0.85, -height), (-0.35, -height - 0.02)),
        corners((-0.22, -height + 0.12), (0.1, -0.02 - toe)),
        arc(0.6, 0.42, 0.38, 0.34 + toe, 10, -_QUARTER - 0.3, 0),
        corners((0.98, 0.45)),
    )
    sole = join(corners((-0.98, 0.4), (1.02, 0.4)), arc(0.9, 0.52, 0.14, 0.13, 6, 0, _QUARTER), corners((-0.9, 0.66)))
    layers = [Layer(upper), Layer(sole, product.secondary)]
    if s[2] > 0.35:
        layers.append(Layer(arc(0.72, 0.42, 0.3, 0.27, 14, _HALF, FULL_TURN), product.secondary))
    for lace in range(3):
        x = -0.32 + lace * 0.17
        start, end = -height + 0.2 + lace * 0.3 * height, -height + 0.1 + lace * 0.34 * height
        layers.append(Layer(bar(x, start, x + 0.2, end, 0.08), product.accent))
    if s[3] > 0.5:
        layers.append(Layer(corners((-0.6, 0.25), (-0.45, 0.25), (-0.2, -0.1), (-0.32, -0.1)), product.accent))
    return layers, (-0.55, 0.0, 0.26)


def _bag(product: Product) -> _Parts:
    s = product.shape
    width, taper, top = 0.58 + 0.18 * s[0], 0.04 + 0.2 * s[1], -0.3 + 0.15 * s[2]
    handle = band(0, top + 0.02, width * (0.4 + 0.2 * s[3]), 0.42 + 0.25 * s[4], 0.13, _HALF, FULL_TURN)
    body = corners(
        (-width + taper, top), (width - taper, top), (width, 0.82), (width - 0.1, 0.92), (-width + 0.1, 0.92),
        (-width, 0.82),
    )  # fmt: skip
    layers = [Layer(handle, product.accent), Layer(body)]
    if s[5] > 0.5:
        flap = corners(
            (-width + taper, top), (width - taper, top), (width * 0.75, top + 0.42), (0, top + 0.55),
            (-width * 0.75, top + 0.42),
        )  # fmt: skip
        layers += [Layer(flap, product.secondary), Layer(arc(0, top + 0.48, 0.09, 0.09), product.accent)]
    else:
        hem = rounded_box(-width + taper - 0.04, top - 0.08, width - taper + 0.04, top + 0.14, 0.05)
        layers.append(Layer(hem, product.secondary))
    return layers, (0.0, 0.5, 0.28)


def _lamp(product: Product) -> _Parts:
    s = product.shape
    top, rim, bottom = 0.22 + 0.25 * s[0], 0.55 + 0.2 * s[1], -0.05 + 0.2 * s[2]
    stem = 0.06 + 0.05 * s[3]
    layers = [Layer(rounded_box(-stem, bottom - 0.05, stem, 0.9, 0.02), product.secondary)]
    if s[4] > 0.5:
        layers.append(Layer(arc(0, 0.5, 0.22, 0.26), product.secondary))
    dome = arc(0, 0.92, 0.42 + 0.12 * s[5], 0.22 if s[6] > 0.5 else 0.1, 14, _HALF, FULL_TURN)
    layers += [
        Layer(join(dome, corners((0.45, 1.0), (-0.45, 1.0))), product.accent),
        Layer(corners((-top, -0.95), (top, -0.95), (rim, bottom), (-rim, bottom))),
        Layer(arc(0, bottom, rim, 0.07), lighten(product.primary, 0.7)),
    ]
    return layers, (0.0, -0.42, 0.27)


def _hat(product: Product) -> _Parts:
    s = product.shape
    width, height, flare, brim = 0.45 + 0.14 * s[0], 0.45 + 0.5 * s[1], 0.1 * s[2], 0.22 + 0.12 * s[3]
    ground, ribbon = 0.55, 0.2
    crown = join(
        arc(0, ground - height - 0.1, width - flare, 0.13 + 0.2 * s[4], 14, _HALF, FULL_TURN),
        arc(0, ground, width + flare, 0.14, 14, 0, _HALF),
    )
    strip = join(
        corners((-width - flare, ground - ribbon), (width + flare, ground - ribbon)),
        arc(0, ground, width + flare, 0.14, 12, 0, _HALF),
    )
    layers = [
        Layer(arc(0, ground, 0.98, brim), darken(product.primary, 0.85)),
        Layer(crown),
        Layer(strip, product.secondary),
    ]
    if s[5] > 0.6:
        feather = corners(
            (width * 0.4, ground - 0.1), (width * 0.75, ground - 0.62), (width * 0.9, ground - 0.55),
            (width * 0.7, ground - 0.05),
        )  # fmt: skip
        layers.append(Layer(feather, product.accent))
    return layers, (0.0, ground - height * 0.65, 0.26)


def _clock(product: Product) -> _Parts:
    s = product.shape
    radius, square, center = 0.68 + 0.1 * s[0], s[1] > 0.65, 0.08
    layers = [Layer(bar(side * 0.4, 0.6, side * 0.58, 0.98, 0.15), product.accent) for side in (-1, 1)]
    if s[2] > 0.4:
        layers += [Layer(arc(side * 0.42, -0.72, 0.25, 0.2), product.secondary) for side in (-1, 1)]
        layers.append(Layer(rounded_box(-0.06, -1.0, 0.06, -0.7, 0.03), product.accent))
    face = radius * (0.66 + 0.08 * s[3])
    # A black lightened is a grey on which the hands are lost.
    paper = lighten(product.secondary, 0.72) if product.look.secondary != "black" else _PAPER
    if square:
        layers.append(Layer(rounded_box(-radius, -radius + center, radius, radius + center, 0.18)))
        layers.append(Layer(rounded_box(-face, -face + center, face, face + center, 0.12), paper))
    else:
        layers.append(Layer(arc(0, center, radius + 0.06, radius + 0.06)))
        layers.append(Layer(arc(0, center, face, face), paper))
    for hour in range(12):
        x, y = 0.84 * face * np.cos(hour * FULL_TURN / 12), 0.84 * face * np.sin(hour * FULL_TURN / 12)
        layers.append(Layer(arc(x, center + y, 0.035, 0.035, 6), BLACK))
    for turn, length, width, fill in ((s[4], 0.42, 0.1, BLACK), (s[5], 0.72, 0.07, darken(product.accent, 0.8))):
        x, y = length * face * np.cos(FULL_TURN * turn), length * face * np.sin(FULL_TURN * turn)
        layers.append(Layer(bar(0, center, x, center + y, width), fill))
    return layers, (0.0, center, 0.3)


def _car(product: Product) -> _Parts:
    s = product.shape
    height, cabin, x, wheel = 0.38 + 0.22 * s[0], 0.45 + 0.15 * s[1], -0.12 + 0.15 * s[2], 0.2 + 0.06 * s[3]
    roof = corners(
        (x - cabin, 0.02), (x - cabin + 0.22, -height - 0.05), (x + cabin - 0.3, -height - 0.05),
        (x + cabin + 0.08, 0.02),
    )  # fmt: skip
    rear = corners((x - cabin + 0.12, 0), (x - cabin + 0.27, -height + 0.05), (x - 0.04, -height + 0.05), (x - 0.04, 0))
    front = corners(
        (x + 0.04, 0), (x + 0.04, -height + 0.05), (x + cabin - 0.34, -height + 0.05), (x + cabin - 0.08, 0)
    )
    body = join(
        corners((-1, 0.45), (-1, 0.1), (-0.9, -0.02), (0.7, 0)),
        arc(0.8, 0.22, 0.22, 0.22, 6, -_QUARTER, 0),
        corners((1.02, 0.45)),
    )
    layers = [
        Layer(roof, product.secondary),
        Layer(rear, _GLASS),
        Layer(front, _GLASS),
        Layer(body),
        Layer(rounded_box(-1.04, 0.38, 1.06, 0.5, 0.05), darken(product.accent, 0.9)),
        Layer(arc(0.93, 0.2, 0.08, 0.09), _HEADLIGHT),
    ]
    for axle in (-0.55, 0.57):
        layers.append(Layer(arc(axle, 0.48, wheel + 0.05, wheel + 0.05), BLACK))
        layers.append(Layer(arc(axle, 0.48, wheel * 0.55, wheel * 0.55), product.accent))
    return layers, (x, 0.2, 0.2)


_DRAWINGS: dict[str, Callable[[Product], _Parts]] = {
    "mug": _mug,
    "chair": _chair,
    "teddy": _teddy,
    "bottle": _bottle,
    "shoe": _shoe,
    "bag": _bag,
    "lamp": _lamp,
    "hat": _hat,
    "clock": _clock,
    "car": _car,
}
