"""The palette: every colour word as a hue, and how one product's shade of it is drawn."""

import colorsys

import numpy as np

Rgb = tuple[int, int, int]

BLACK: Rgb = (25, 25, 28)
PAPER: Rgb = (238, 238, 232)

# hue, saturation, value in 0..1; the keys are vocabulary.COLORS
_HSV: dict[str, tuple[float, float, float]] = {
    "red": (0.99, 0.9, 0.8),
    "orange": (0.075, 0.95, 0.98),
    "yellow": (0.152, 0.8, 0.98),
    "green": (0.37, 0.8, 0.56),
    "blue": (0.61, 0.85, 0.84),
    "purple": (0.765, 0.68, 0.6),
    "pink": (0.915, 0.45, 0.98),
    "brown": (0.06, 0.68, 0.5),
    "white": (0.1, 0.03, 0.95),
    "black": (0.6, 0.15, 0.11),
}


def shade(name: str, rng: np.random.Generator) -> Rgb:
    """One product's shade of the colour `name`: near enough to be called by its name. Three draws from `rng`."""
    hue, saturation, value = _HSV[name]
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1
    # A change of saturation would give black and white a tint that their names deny.
    change = rng.uniform(-0.05, 0.05)
    saturation = saturation + change if saturation > 0.2 else saturation
    value = value + rng.uniform(-0.05, 0.05)
    red, green, blue = colorsys.hsv_to_rgb(hue, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return int(255 * red), int(255 * green), int(255 * blue)


def ink(color: Rgb) -> Rgb:
    """Near-black, or near-white on a `color` so dark that black would be lost on it."""
    red, green, blue = color
    return BLACK if 0.3 * red + 0.59 * green + 0.11 * blue > 75 else PAPER


def darken(color: Rgb, factor: float) -> Rgb:
    """`color` with every channel times `factor` (0..1)."""
    red, green, blue = color
    return int(red * factor), int(green * factor), int(blue * factor)


def lighten(color: Rgb, share: float) -> Rgb:
    """`color` moved towards white by `share` (0..1)."""
    red, green, blue = color
    return int(red + (255 - red) * share), int(green + (255 - green) * share), int(blue + (255 - blue) * share)
