"""A photo at the size of its render, and which of its pixels stay.

Two kinds: `into_scene` draws inside a region of a scene, and `around_product` draws everything but a product. In both,
pixels with the weight 1 are those of the resized photo, to the bit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from perfusion_ops.errors import PerfusionError

Box = tuple[float, float, float, float]
Bools = NDArray[np.bool_]

# A product's border is seldom that of latents: of those on it, the ones that show more of the product stay.
_HALF = 0.5


class EmptyRegionError(PerfusionError, ValueError):
    """No pixel of the render is in the region of the scene, or shows the product."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo and what of it stays.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, at the size of the render.
        stays: (H, W) float32 in 0..1: the share of the photo in each pixel of the render. 1: the photo's own pixel.
        strength: above 0 and at most 1: how much noise the drawn part starts from. At 1 nothing of the photo is left
            there. Less keeps its composition, as in img2img, and takes this share of the steps.
        latent_share: a latent stays if more than this share of its pixels does.
    """

    pixels: NDArray[np.uint8]
    stays: NDArray[np.float32]
    strength: float = 1.0
    latent_share: float = 0.0


def into_scene(
    photo: Image.Image, region: Image.Image, width: int, height: int, *, factor: int, strength: float = 1.0
) -> Scene:
    """Draw inside a region of a photo, whose other pixels stay.

    The photo is cut about its middle to the shape of the render. Inside the region, it fades out over the width of a
    latent, and latents on the border stay: so no edge is seen.

    Args:
        photo: RGB, of any size.
        region: mode L, of the photo's size; drawn is where it has at least half of its brightest value.
        width: of the render, in pixels.
        height: of the render, in pixels.
        factor: pixels per latent along one side.
        strength: see `Scene`.

    Raises:
        EmptyRegionError: the region has no latent in the render.
    """
    size = width, height
    pixels = np.asarray(ImageOps.fit(photo, size, Image.Resampling.LANCZOS))
    inside = _marked(ImageOps.fit(_brightest(region), size, Image.Resampling.BOX))
    rows, columns = height // factor, width // factor
    blocks = inside[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    if not blocks.all(axis=(1, 3)).any():
        raise EmptyRegionError(f"no {factor} x {factor} pixels of the render are in the region")
    return Scene(pixels, _faded(inside, factor), strength)


def around_product(photo: Image.Image, mask: Image.Image, width: int, height: int, *, strength: float = 1.0) -> Scene:
    """Draw everything but the product of a photo.

    The photo is scaled to fit into the render as a whole, so that nothing of the product is cut off. What it leaves
    free is drawn too.

    Args:
        photo: RGB, of any size.
        mask: mode L, of the photo's size; the product is where it has at least half of its brightest value.
        width: of the render, in pixels.
        height: of the render, in pixels.
        strength: see `Scene`.

    Raises:
        EmptyRegionError: the mask marks nothing at the size of the render.
    """
    scale = min(width / photo.width, height / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    before = (width - size[0]) // 2, (height - size[1]) // 2
    margins = [
        (start, total - length - start) for start, length, total in zip(before, size, (width, height), strict=True)
    ]
    pixels = np.asarray(photo.resize(size, Image.Resampling.LANCZOS))
    product = _marked(_brightest(mask).resize(size, Image.Resampling.BOX))
    pixels = np.pad(pixels, (margins[1], margins[0], (0, 0)), mode="edge")
    return Scene(pixels, np.pad(product, (margins[1], margins[0])).astype(np.float32), strength, _HALF)


def box_region(width: int, height: int, box: Box) -> Image.Image:
    """The region of a box, in mode L.

    Args:
        width: of the photo, in pixels.
        height: of the photo, in pixels.
        box: left, top, right, bottom as shares (0..1) of the photo.
    """
    left, top, right, bottom = (
        round(share * length) for share, length in zip(box, (width, height, width, height), strict=True)
    )
    region = Image.new("L", (width, height))
    region.paste(255, (left, top, max(right, left + 1), max(bottom, top + 1)))
    return region


def _brightest(mask: Image.Image) -> Image.Image:
    """The mask scaled so that its brightest value is white."""
    _, brightest = mask.getextrema()
    if not isinstance(brightest, int | float) or not brightest:
        raise EmptyRegionError("the mask is black everywhere")
    return mask.point([min(255, round(level * 255 / brightest)) for level in range(256)])


def _marked(mask: Image.Image) -> Bools:
    marked = np.asarray(mask) >= 128
    if not marked.any():
        raise EmptyRegionError("the mask marks no pixel of the render: it is too small, or it is cut off")
    return marked


def _faded(inside: Bools, width: int) -> NDArray[np.float32]:
    """1 outside of a region, falling to 0 over `width` pixels inside it; the picture's own border is no edge."""
    layers = np.zeros(inside.shape, dtype=np.int32)
    for _ in range(width):
        layers += inside
        inside = _shrunk(inside)
    return (1 - layers / width).astype(np.float32)


def _shrunk(marked: Bools) -> Bools:
    wide = np.pad(marked, 1, constant_values=True)
    return marked & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]
