"""Polygons in a product's own coordinates: x to the right, y down, the product within about -1..1.

Every function returns its corners in order, shape (n, 2), float64. Angles are radians, clockwise on screen from +x.
"""

from functools import cache

import numpy as np

Points = np.ndarray

FULL_TURN = 2 * np.pi


def corners(*points: tuple[float, float]) -> Points:
    """The polygon through `points`."""
    return np.array(points, dtype=float)


def join(*parts: Points) -> Points:
    """One polygon that runs through all `parts` in turn."""
    return np.concatenate(parts)


@cache
def _unit_arc(count: int, start: float, end: float) -> Points:
    angles = np.linspace(start, end, count)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    arc.flags.writeable = False
    return arc


def arc(  # noqa: PLR0917 - numbers in a row, as in any drawing language
    x: float, y: float, radius_x: float, radius_y: float, count: int = 30, start: float = 0.0, end: float = FULL_TURN
) -> Points:
    """`count` points of an ellipse around (x, y), from angle `start` to `end`; the whole ellipse by default."""
    return _unit_arc(count, start, end) * (radius_x, radius_y) + (x, y)


def rounded_box(left: float, top: float, right: float, bottom: float, radius: float) -> Points:
    """A rectangle with rounded corners; the radius shrinks where the box is too small for it."""
    radius = min(radius, (right - left) / 2, (bottom - top) / 2)
    quarter = np.pi / 2
    centers = (
        (right - radius, bottom - radius),
        (left + radius, bottom - radius),
        (left + radius, top + radius),
        (right - radius, top + radius),
    )
    return join(
        *(arc(x, y, radius, radius, 5, turn * quarter, (turn + 1) * quarter) for turn, (x, y) in enumerate(centers))
    )


def band(  # noqa: PLR0917 - as above
    x: float, y: float, radius_x: float, radius_y: float, width: float, start: float, end: float
) -> Points:
    """A bent strip `width` wide along an ellipse: handles and straps."""
    half = width / 2
    outer = arc(x, y, radius_x + half, radius_y + half, 18, start, end)
    return join(outer, arc(x, y, radius_x - half, radius_y - half, 18, start, end)[::-1])


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """A straight strip from (x0, y0) to (x1, y1)."""
    across = np.array([y0 - y1, x1 - x0])
    across = across / (np.hypot(*across) + 1e-9) * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.array([start + across, end + across, end - across, start - across])


def star(x: float, y: float, radius: float) -> Points:
    """A star of five points, one of them upwards."""
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
    return np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)


def heart(x: float, y: float, radius: float) -> Points:
    """A heart, its tip downwards."""
    t = np.linspace(0, FULL_TURN, 30)
    across = 16 * np.sin(t) ** 3
    down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x + radius * across / 16, y + radius * down / 15], axis=1)


def hand(turn: float, length: float) -> tuple[float, float]:
    """The tip of a clock's hand `length` long that starts at the origin, `turn` of a full turn (0..1) from +x."""
    return float(length * np.cos(FULL_TURN * turn)), float(length * np.sin(FULL_TURN * turn))
