"""How each category is drawn: a product as coloured polygons from back to front.

Every drawing reads its proportions from `product.shape`, eight numbers in 0..1, so that no two products of a category
have the same outline. Coordinates are those of `shapes`. The body is the largest part of every product, and nothing on
it is narrower than a pixel or two at 64 pixels: whatever a caption says about a product must be visible.
"""

from collections.abc import Callable
from dataclasses import dataclass

from perfusion_ops.mini.world.colors import BLACK, PAPER, Rgb, darken, ink, lighten
from perfusion_ops.mini.world.products import Product
from perfusion_ops.mini.world.shapes import (
    FULL_TURN,
    Points,
    arc,
    band,
    bar,
    corners,
    hand,
    heart,
    join,
    rounded_box,
    star,
)
from perfusion_ops.mini.world.vocabulary import EMBLEMS

_HALF, _QUARTER = FULL_TURN / 2, FULL_TURN / 4
_GLASS: Rgb = (170, 215, 235)
_HEADLIGHT: Rgb = (255, 240, 160)


@dataclass(frozen=True)
class Layer:
    """A filled polygon.

    Attributes:
        points: Its corners, (n, 2).
        fill: Its RGB; None for the body, which takes the primary colour and the pattern.
        emblem: Whether it is printed on the product: nothing of it shows beyond the product's own edge.
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
        # A star covers less of its circle than a heart does.
        reach = radius * 1.12 if look.pattern == "star" else radius
        layers.append(Layer(outline(x, y, reach), colors[look.emblem_color], emblem=True))
    return layers


# Layers, and where an emblem goes: its centre and radius.
_Parts = tuple[list[Layer], tuple[float, float, float]]


def _mug(product: Product) -> _Parts:
    s = product.shape
    center = -0.18
    width, height, taper = 0.6 + 0.12 * s[0], 0.68 + 0.22 * s[1], 0.14 * s[2] - 0.03
    handle = band(
        width * 0.95 + center, 0.08, 0.3 + 0.1 * s[3], 0.34 + 0.14 * s[4], 0.2, -_QUARTER - 0.2, _QUARTER + 0.2
    )
    body = join(
        corners((width + center, -height), (width + center - taper, height - 0.08)),
        arc(center, height - 0.08, width - taper, 0.14, 12, 0, _HALF),
        corners((-width + center, -height)),
    )
    layers = [
        Layer(handle, product.secondary),
        Layer(body),
        Layer(arc(center, -height, width, 0.17), lighten(product.primary, 0.2)),
        Layer(arc(center, -height + 0.01, width - 0.1, 0.1), darken(product.accent, 0.75)),
    ]
    return layers, (center, 0.14, 0.44)


def _chair(product: Product) -> _Parts:
    s = product.shape
    width, top, leg = 0.56 + 0.1 * s[0], -0.98 + 0.12 * s[1], 0.15 + 0.06 * s[2]
    layers = [Layer(bar(x, 0.3, x, 0.85, leg), darken(product.accent, 0.65)) for x in (-width + 0.2, width - 0.2)]
    lower = 0.2
    if s[3] > 0.5:
        lower = 0.02
        layers += [Layer(bar(x, -0.2, x, 0.3, 0.14), product.accent) for x in (-width + 0.18, width - 0.18)]
    layers.append(Layer(rounded_box(-width, top, width, lower, 0.06 + 0.3 * s[4])))
    seat = corners((-width, 0.14), (width, 0.14), (width + 0.22, 0.36), (-width - 0.22, 0.36))
    layers.append(Layer(seat, product.secondary))
    layers.append(Layer(rounded_box(-width - 0.22, 0.34, width + 0.22, 0.48, 0.04), darken(product.secondary, 0.75)))
    layers += [Layer(bar(x, 0.46, x * (1 + 0.1 * s[5]), 1.0, leg), product.accent) for x in (-width - 0.1, width + 0.1)]
    return layers, (0.0, (top + lower) / 2, 0.41)


def _teddy(product: Product) -> _Parts:
    s = product.shape
    ear, head, belly = 0.21 + 0.07 * s[0], 0.48 + 0.06 * s[1], 0.52 + 0.08 * s[2]
    fur = product.primary
    layers = []
    for side in (-1, 1):
        layers += [
            Layer(arc(side * 0.4, -0.78, ear, ear), fur),
            Layer(arc(side * 0.4, -0.78, ear * 0.5, ear * 0.5), product.secondary),
            Layer(arc(side * (belly + 0.1), 0.2, 0.2, 0.32)),
            Layer(arc(side * 0.42, 0.8, 0.3, 0.22), fur),
            Layer(arc(side * 0.45, 0.82, 0.15, 0.12), product.secondary),
        ]
    layers += [
        Layer(arc(0, 0.36, belly, 0.54)),
        Layer(arc(0, -0.46, head, 0.44), fur),
        Layer(arc(0, -0.29, 0.25, 0.2), product.secondary),
        Layer(arc(0, -0.36, 0.1, 0.08), ink(product.secondary)),
        Layer(arc(-0.22, -0.57, 0.08, 0.09), ink(fur)),
        Layer(arc(0.22, -0.57, 0.08, 0.09), ink(fur)),
    ]
    if s[3] > 0.5 and product.look.pattern not in EMBLEMS:
        bow = corners((-0.34, -0.12), (0, 0), (0.34, -0.12), (0.34, 0.18), (0, 0.06), (-0.34, 0.18))
        layers.append(Layer(bow, product.accent))
    return layers, (0.0, 0.42, 0.4)


def _bottle(product: Product) -> _Parts:
    s = product.shape
    width, neck, shoulder, top = 0.38 + 0.12 * s[0], 0.14 + 0.05 * s[1], -0.3 + 0.2 * s[2], -0.8
    body = join(
        corners((neck, top), (neck, shoulder - 0.24)),
        arc(width - 0.14, shoulder + 0.05, 0.14, 0.16, 5, -_QUARTER, 0),
        arc(width - 0.1, 0.9, 0.1, 0.1, 4, 0, _QUARTER),
        arc(-width + 0.1, 0.9, 0.1, 0.1, 4, _QUARTER, _HALF),
        arc(-width + 0.14, shoulder + 0.05, 0.14, 0.16, 5, _HALF, 3 * _QUARTER),
        corners((-neck, shoulder - 0.24), (-neck, top)),
    )
    layers = [Layer(body), Layer(rounded_box(-neck - 0.07, -1.02, neck + 0.07, -0.74, 0.05), product.accent)]
    if product.look.pattern == "plain":
        layers.append(Layer(rounded_box(-width, 0.22 + 0.1 * s[5], width, 0.62, 0.02), product.secondary))
    return layers, (0.0, 0.4, width * 0.92)


def _shoe(product: Product) -> _Parts:
    s = product.shape
    height, toe = 0.6 + 0.22 * s[0], 0.1 * s[1]
    upper = join(
        corners((-0.95, 0.42), (-1.0, -height), (-0.6, -height + 0.1), (-0.22, -height)),
        corners((-0.1, -height * 0.6), (0.3, -0.12 - toe)),
        arc(0.62, 0.4, 0.38, 0.44 + toe, 10, -_QUARTER - 0.3, 0),
    )
    sole = join(corners((-1.0, 0.36), (1.04, 0.36)), arc(0.88, 0.5, 0.18, 0.18, 6, 0, _QUARTER), corners((-0.96, 0.68)))
    layers = [Layer(upper), Layer(sole, product.secondary)]
    if s[2] > 0.5:
        cap = join(arc(0.72, 0.38, 0.3, 0.28 + toe, 14, _HALF, FULL_TURN), corners((1.0, 0.38)))
        layers.append(Layer(cap, product.secondary))
    for lace in range(3):
        x, y = -0.16 + lace * 0.2, -height * 0.66 + lace * (height * 0.66 - 0.14 - toe) / 2
        layers.append(Layer(bar(x - 0.17, y + 0.16, x + 0.09, y - 0.02, 0.11), product.accent))
    return layers, (-0.52, -0.06, 0.36)


def _bag(product: Product) -> _Parts:
    s = product.shape
    width, taper, top = 0.7 + 0.14 * s[0], 0.02 + 0.18 * s[1], -0.32 + 0.1 * s[2]
    handle = band(0, top + 0.04, width * (0.45 + 0.15 * s[3]), 0.46 + 0.14 * s[4], 0.17, _HALF, FULL_TURN)
    body = corners(
        (-width + taper, top), (width - taper, top), (width, 0.84), (width - 0.1, 0.95), (-width + 0.1, 0.95),
        (-width, 0.84),
    )  # fmt: skip
    layers = [Layer(handle, product.accent), Layer(body)]
    if product.look.pattern == "plain" and s[5] > 0.5:
        flap = corners(
            (-width + taper, top), (width - taper, top), (width * 0.7, top + 0.38), (0, top + 0.52),
            (-width * 0.7, top + 0.38),
        )  # fmt: skip
        layers += [Layer(flap, product.secondary), Layer(arc(0, top + 0.46, 0.12, 0.12), product.accent)]
    else:
        hem = rounded_box(-width + taper - 0.05, top - 0.1, width - taper + 0.05, top + 0.12, 0.05)
        layers.append(Layer(hem, product.secondary))
    return layers, (0.0, 0.38, 0.46)


def _lamp(product: Product) -> _Parts:
    s = product.shape
    top, rim, bottom = 0.3 + 0.16 * s[0], 0.74 + 0.14 * s[1], 0.1 + 0.14 * s[2]
    stem = 0.09 + 0.04 * s[3]
    layers = [Layer(rounded_box(-stem, bottom - 0.05, stem, 0.9, 0.02), product.secondary)]
    if s[4] > 0.5:
        layers.append(Layer(arc(0, 0.52, 0.2, 0.2), product.secondary))
    dome = arc(0, 0.94, 0.45 + 0.12 * s[5], 0.24 if s[6] > 0.5 else 0.14, 14, _HALF, FULL_TURN)
    layers += [
        Layer(join(dome, corners((0.48, 1.0), (-0.48, 1.0))), product.accent),
        Layer(corners((-top, -0.98), (top, -0.98), (rim, bottom), (-rim, bottom))),
    ]
    return layers, (0.0, -0.32, 0.41)


def _hat(product: Product) -> _Parts:
    s = product.shape
    width, height, flare, brim = 0.52 + 0.08 * s[0], 1.1 + 0.22 * s[1], 0.1 * s[2] - 0.02, 0.17 + 0.06 * s[3]
    ground, ribbon = 0.55, 0.26
    crown = join(
        arc(0, ground - height, width - flare, 0.08 + 0.2 * s[4], 14, _HALF, FULL_TURN),
        arc(0, ground, width + flare, 0.1, 14, 0, _HALF),
    )
    strip = join(
        corners((-width - flare * 0.7, ground - ribbon), (width + flare * 0.7, ground - ribbon)),
        arc(0, ground, width + flare, 0.1, 12, 0, _HALF),
    )
    layers = [Layer(arc(0, ground + 0.04, 1.0, brim), product.primary), Layer(crown), Layer(strip, product.secondary)]
    if s[5] > 0.5:
        layers.append(Layer(rounded_box(-0.16, ground - ribbon - 0.02, 0.16, ground + 0.08, 0.03), product.accent))
    return layers, (0.0, ground - ribbon - 0.42, 0.41)


def _clock(product: Product) -> _Parts:
    s = product.shape
    radius, square, center = 0.78 + 0.06 * s[0], s[1] > 0.65, 0.1
    layers = [Layer(bar(side * 0.4, 0.6, side * 0.62, 1.0, 0.2), product.accent) for side in (-1, 1)]
    bell = 0.26 + 0.08 * s[2]
    layers += [Layer(arc(side * 0.5, -0.7, bell, bell * 0.8), product.secondary) for side in (-1, 1)]
    emblem = product.look.pattern in EMBLEMS
    if emblem:
        paper = product.secondary
    else:  # a black lightened is a grey on which the hands are lost
        paper = lighten(product.secondary, 0.75) if product.look.secondary != "black" else PAPER
    face = radius * (0.66 if emblem else 0.54 + 0.06 * s[3])
    if square:
        side = radius * 0.94
        layers.append(Layer(rounded_box(-side, -side + center, side, side + center, 0.2)))
    else:
        layers.append(Layer(arc(0, center, radius, radius)))
    layers.append(Layer(arc(0, center, face, face), paper))
    for quarter in range(4):
        start, end = hand(quarter / 4, face * 0.74), hand(quarter / 4, face * 0.98)
        layers.append(Layer(bar(start[0], center + start[1], end[0], center + end[1], 0.1), ink(paper)))
    if not emblem:
        for turn, length, width in ((s[4], 0.5, 0.14), (s[5], 0.74, 0.1)):
            x, y = hand(turn, length * face)
            layers.append(Layer(bar(0, center, x, center + y, width), BLACK))
    return layers, (0.0, center, face * 0.68)


def _car(product: Product) -> _Parts:
    s = product.shape
    height, cabin, x, wheel = 0.62 + 0.12 * s[0], 0.5 + 0.12 * s[1], -0.14 + 0.15 * s[2], 0.22 + 0.05 * s[3]
    waist = -0.16
    roof = corners(
        (x - cabin - 0.06, waist + 0.04), (x - cabin + 0.16, -height), (x + cabin - 0.26, -height),
        (x + cabin + 0.12, waist + 0.04),
    )  # fmt: skip
    rear = corners(
        (x - cabin + 0.12, waist), (x - cabin + 0.25, -height + 0.12), (x - 0.06, -height + 0.12), (x - 0.06, waist)
    )
    front = corners(
        (x + 0.06, waist), (x + 0.06, -height + 0.12), (x + cabin - 0.32, -height + 0.12), (x + cabin - 0.08, waist)
    )
    body = join(
        corners((-1, 0.5), (-1, waist + 0.1), (-0.92, waist), (0.66, waist)),
        arc(0.78, waist + 0.24, 0.24, 0.24, 6, -_QUARTER, 0),
        corners((1.02, 0.5)),
    )
    layers = [
        Layer(roof, product.secondary),
        Layer(rear, _GLASS),
        Layer(front, _GLASS),
        Layer(body),
        Layer(arc(0.92, 0.1, 0.1, 0.11), _HEADLIGHT),
    ]
    for axle in (-0.58, 0.6):
        layers.append(Layer(arc(axle, 0.48, wheel + 0.05, wheel + 0.05), BLACK))
        layers.append(Layer(arc(axle, 0.48, wheel * 0.6, wheel * 0.6), product.accent))
    return layers, (0.02, 0.18, 0.32)


def _duck(product: Product) -> _Parts:
    s = product.shape
    head, neck, tail, depth = 0.36 + 0.06 * s[0], 0.32 + 0.1 * s[1], -0.2 - 0.2 * s[2], 0.84 + 0.1 * s[3]
    crown = -0.58
    body = join(
        corners((-0.98, tail), (-0.62, -0.02), (-0.2, -0.14)),
        arc(neck - 0.02, 0.3, 0.54, 0.5, 7, -_QUARTER, 0),
        arc(neck - 0.08, 0.42, 0.6, depth - 0.42, 8, 0, _QUARTER),
        arc(-0.25, 0.3, 0.7, depth - 0.3, 9, _QUARTER, _HALF),
    )
    bill = 0.2 + 0.06 * s[4]
    beak = join(
        corners((neck + head * 0.6, crown - 0.1)),
        arc(neck + head + bill - 0.05, crown + 0.12, 0.14, 0.1, 6, -_QUARTER, _QUARTER),
        corners((neck + head * 0.55, crown + 0.3)),
    )
    layers = [
        Layer(body),
        Layer(beak, product.accent),
        Layer(arc(neck, crown + 0.06, head, head), product.primary),
        Layer(arc(neck + 0.12, crown - 0.04, 0.12, 0.13), PAPER),
        Layer(arc(neck + 0.15, crown - 0.04, 0.07, 0.09), BLACK),
    ]
    if product.look.pattern == "plain":
        wing = join(arc(-0.16, 0.34, 0.36, 0.24, 10, -_QUARTER, _QUARTER), corners((-0.66, 0.34 - 0.24 * s[5])))
        layers.append(Layer(wing, product.secondary))
    return layers, (0.02, 0.38, 0.42)


def _guitar(product: Product) -> _Parts:
    s = product.shape
    lower, upper, shoulder = 0.62 + 0.1 * s[0], 0.44 + 0.1 * s[1], -0.3 + 0.08 * s[2]
    waist = upper * (0.7 + 0.1 * s[3])
    right = join(
        arc(0, shoulder + 0.26, upper, 0.26, 8, -_QUARTER, 0.5),
        corners((waist, 0.18)),
        arc(0, 0.56, lower, 0.42, 12, -0.6, _QUARTER),
    )
    body = join(right, (right * (-1, 1))[::-1])
    head = 0.16 + 0.06 * s[4]
    layers = [
        Layer(body),
        Layer(arc(0, shoulder + 0.3, 0.17, 0.17), ink(product.primary)),
        Layer(rounded_box(-0.1, -0.8, 0.1, shoulder + 0.26, 0.02), product.secondary),
        Layer(corners((-head, -1.02), (head, -1.02), (0.12, -0.7), (-0.12, -0.7)), product.accent),
    ]
    if product.look.pattern == "plain":
        layers.append(Layer(rounded_box(-0.25, 0.62, 0.25, 0.74, 0.02), product.accent))
    return layers, (0.0, 0.56, 0.4)


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
    "duck": _duck,
    "guitar": _guitar,
}
