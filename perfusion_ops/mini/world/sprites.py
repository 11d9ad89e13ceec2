"""A product seen from a viewpoint, as a small cut-out with a soft edge.

Only the box around the product is drawn, at three times the picture's resolution, and then averaged down. This makes
the edge soft and the renderer fast. Parts outside the picture are cut off.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from perfusion_ops.mini.world.colors import darken
from perfusion_ops.mini.world.drawings import Layer, drawing
from perfusion_ops.mini.world.products import Product

_FINE = 3  # sub-pixels along each side of a pixel

# Stripes, dots and squares per repeat of a pattern. The autoencoder loses details finer than two latent positions, and
# the denoiser does not learn them. A pattern with a random start could not be predicted from the caption.
_STRIPES, _DOTS, _CHECKS = 1.1, 1.15, 1.6
_STRIPE_WIDTH = 0.42  # of the distance between stripes: the main colour covers the larger part
_DOT_RADIUS = 0.33  # of the distance between dots


@dataclass(frozen=True)
class View:
    """Where a product stands in the picture and how the light falls on it.

    Attributes:
        x: Centre from the left, in 64ths of the picture's width.
        y: Centre from the top, in 64ths of the picture's height.
        scale: Half the product's height, in 64ths of the picture.
        angle: Turned clockwise, radians.
        mirrored: Whether left and right change places.
        light: Gain of brightness per unit of the product to the right and downwards.
        brightness: Gain of the whole product.
        squeeze: Factors of the product's width and height, before anything else: a camera at the side or above.
        shear: Rise per unit to the right of the squeezed product, before it is mirrored and turned.
    """

    x: float
    y: float
    scale: float
    angle: float = 0.0
    mirrored: bool = False
    light: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0
    squeeze: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0


@dataclass(frozen=True)
class Sprite:
    """A cut-out whose upper left pixel belongs at (top, left) of the picture.

    Attributes:
        top: Row of the picture.
        left: Column of the picture.
        color: (h, w, 3) float32, 0..255.
        alpha: (h, w) float32, 0..1: the share of each pixel that the product covers.
    """

    top: int
    left: int
    color: np.ndarray
    alpha: np.ndarray


def sprite(product: Product, view: View, size: int) -> Sprite:
    """Cut `product`, seen as `view` says, for a picture of `size` x `size` pixels; empty when it is wholly outside."""
    unit = size / 64
    x, y, scale = view.x * unit, view.y * unit, view.scale * unit
    cosine, sine = np.cos(view.angle) * scale, np.sin(view.angle) * scale
    mirror = -1 if view.mirrored else 1
    turned = np.array([[cosine * mirror, -sine], [sine * mirror, cosine]])
    matrix = turned @ np.array([[1.0, 0.0], [-view.shear, 1.0]]) @ np.diag(view.squeeze)

    layers = drawing(product)
    corners = np.concatenate([layer.points for layer in layers]) @ matrix.T + (x, y)
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, size).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, size).tolist()
    if left == right or top == bottom:
        return Sprite(0, 0, np.zeros((0, 0, 3), np.float32), np.zeros((0, 0), np.float32))

    ends = np.cumsum([len(layer.points) for layer in layers])
    outlines = np.split((corners - (left, top)) * _FINE, ends[:-1])
    shapes = [(layer, outline.ravel().tolist()) for layer, outline in zip(layers, outlines, strict=True)]
    canvas = ((right - left) * _FINE, (bottom - top) * _FINE)
    pattern = _pattern(product, np.linalg.inv(matrix), (x - left, y - top), canvas)
    colored, covered = _paint(product, shapes, pattern, canvas, max(2, round(scale * 0.13)))

    color = np.asarray(colored.reduce(_FINE), np.float32)
    across = (np.arange(left, right, dtype=np.float32) - x) / scale
    down = (np.arange(top, bottom, dtype=np.float32) - y) / scale
    gain = view.brightness * (1 + 0.22 * (view.light[0] * across[None, :] + view.light[1] * down[:, None]))
    color = np.clip(color * np.clip(gain, 0.45, 1.4)[:, :, None], 0, 255).astype(np.float32)
    return Sprite(top, left, color, np.asarray(covered.reduce(_FINE), np.float32) / 255)


def _pattern(
    product: Product, inverse: np.ndarray, origin: tuple[float, float], canvas: tuple[int, int]
) -> Image.Image | None:
    """Where the body takes the secondary colour: a mask of 0 and 255, or None for a body of one colour."""
    kind, frequency = product.look.pattern, product.frequency
    if kind not in ("striped", "dotted", "checked"):
        return None
    dx = ((np.arange(canvas[0], dtype=np.float32) + 0.5) / _FINE - origin[0])[None, :]
    dy = ((np.arange(canvas[1], dtype=np.float32) + 0.5) / _FINE - origin[1])[:, None]
    u = inverse[0, 0] * dx + inverse[0, 1] * dy
    v = inverse[1, 0] * dx + inverse[1, 1] * dy
    repeats = frequency * {"striped": _STRIPES, "dotted": _DOTS, "checked": _CHECKS}[kind]
    across, down = u * repeats + product.phase[0], v * repeats + product.phase[1]
    if kind == "striped":
        marked = np.abs(down - np.rint(down)) < _STRIPE_WIDTH / 2
    elif kind == "dotted":
        marked = (across - np.rint(across)) ** 2 + (down - np.rint(down)) ** 2 < _DOT_RADIUS**2
    else:
        marked = (np.rint(across) + np.rint(down)) % 2 > 0
    return Image.fromarray(marked.astype(np.uint8) * 255)


def _paint(
    product: Product,
    shapes: list[tuple[Layer, list[float]]],
    pattern: Image.Image | None,
    canvas: tuple[int, int],
    line: int,
) -> tuple[Image.Image, Image.Image]:
    """The colours and the coverage of a product.

    Args:
        product: What is drawn.
        shapes: Its layers from back to front, each with its polygon as x0, y0, x1, y1, ... in sub-pixels.
        pattern: Where the body takes the secondary colour.
        canvas: Width and height in sub-pixels.
        line: Width of the body's outline in sub-pixels.
    """
    # The canvas around the product has its main colour, so that averaging at the edge adds no other colour.
    colored, covered = Image.new("RGB", canvas, product.primary), Image.new("L", canvas, 0)
    brush, cover = ImageDraw.Draw(colored), ImageDraw.Draw(covered)
    for layer, polygon in shapes:
        brush.polygon(polygon, fill=layer.fill or product.primary)
        closed = polygon + polygon[:2]
        if layer.emblem:
            brush.line(closed, fill=darken(layer.fill or product.primary, 0.6), width=1)
            continue
        cover.polygon(polygon, fill=255)
        if layer.fill is None:
            if pattern is not None:
                body = Image.new("L", canvas, 0)
                ImageDraw.Draw(body).polygon(polygon, fill=255)
                colored.paste(product.secondary, (0, 0), ImageChops.darker(body, pattern))
            brush.line(closed, fill=darken(product.primary, 0.55), width=line)
        elif len(layer.points) > 8:  # parts with fewer corners are so small that an outline would cover them
            brush.line(closed, fill=darken(layer.fill, 0.6), width=max(1, line - 1))
    return colored, covered
