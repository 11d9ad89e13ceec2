"""How a product is seen in a picture: a search over pose, size and place for the drawing that explains most of it.

For a view with coverage m and colours T, and a plane of light g(x, y) that is fitted by least squares, a view explains

    sum over pixels of m (MISFIT - |I - g T|^2)

A larger drawing explains more as long as it fits; each pixel that differs by more than MISFIT costs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.mini.world.products import Product
from perfusion_ops.mini.world.sprites import Sprite, View, sprite

Floats = NDArray[np.float32]

MISFIT = 0.15  # squared distance in RGB (each 0..1) beyond which a pixel speaks against a view
_COARSE_MISFIT = 0.3  # in the first search, whose grid is coarser than most patterns
_GAINS = (0.65, 1.4)  # of light; the world's own are 0.7 to 1.35

_COARSE = 32  # side of the first search in pixels
_PAD = 64
_COARSE_BLUR = 1.5  # standard deviation in pixels of the first search
_REACH = 15  # of the first search: a product's centre is in the picture
# Half the product's height in pixels, by what the prompt asks for: the size of a product alone, of a small one, of
# any size, and of one of two. A drawing much smaller than the product suits a plain corner of it.
ALONE = (14.0, 15.5, 17.0, 19.5, 22.5, 26.0, 30.5, 34.0)
SMALL = (9.5, 10.8, 12.0, 13.5, 15.5, 17.5)
ANY = (10.8, 12.0, 13.5, 15.5, 17.5, 20.0, 22.5, 26.0, 30.5, 34.0)
PAIR = (10.0, 11.2, 12.5, 14.5, 17.0, 19.5, 22.5)
_POSES = (
    View(32, 32, 1.0),
    View(32, 32, 1.0, squeeze=(0.6, 1.0), shear=0.22),
    View(32, 32, 1.0, squeeze=(1.0, 0.6)),
    View(32, 32, 1.0, angle=0.55),
    View(32, 32, 1.0, angle=-0.55),
)
_NEAR = 5.0  # pixels of 64: a second candidate of a similar scale is at least as far away
_ROUNDS = 4  # of refinement; the steps halve after each
_KEPT = 3  # candidates that are refined after the first round
_STEPS = {"x": 1.2, "y": 1.2, "scale": 0.08, "angle": 0.12, "wide": 0.1, "high": 0.1, "shear": 0.08}


@dataclass(frozen=True)
class Fit:
    """A view of a product, and how much of the picture it explains.

    Attributes:
        view: how the product is seen.
        explained: see the module; comparable between views and products in one picture.
    """

    view: View
    explained: float


@dataclass(frozen=True)
class Drawn:
    """A view drawn over a picture.

    Attributes:
        colors: (S, S, 3) float32 in 0..1: the product in the picture's light; zero outside.
        cover: (S, S) float32 in 0..1: the share of each pixel that it covers.
    """

    colors: Floats
    cover: Floats


class _Spectra:
    """Templates as spectra, so that all of their places in a picture are compared at once."""

    def __init__(self, colors: Floats, covers: Floats) -> None:
        weighted = colors * covers[..., None]
        self._cover = _spectrum(covers).conj()
        self._color = _spectrum(weighted.transpose(0, 3, 1, 2)).conj()
        self._square = _spectrum((weighted * colors).sum(3)).conj()

    def explained(self, picture: Floats) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """What each template explains of a picture at each lag, and its area in the picture, (K, lags, lags)."""
        image, valid = _spectrum(picture.transpose(2, 0, 1)), _spectrum(np.ones(picture.shape[:2], np.float32))
        crossed = _lagged((self._color * image).sum(1))
        energy = _lagged(self._cover * _spectrum((picture**2).sum(2)))
        square, area = _lagged(self._square * valid), _lagged(self._cover * valid)
        gain = np.clip(crossed / np.maximum(square, 1e-6), *_GAINS)
        return area * _COARSE_MISFIT - (energy - 2 * gain * crossed + gain**2 * square), area


class Templates:
    """The drawings of one product that the first search compares with a picture."""

    def __init__(self, product: Product, scales: Sequence[float] = ALONE) -> None:
        """Draw the product in all poses.

        Args:
            product: what is searched for.
            scales: ALONE, SMALL, ANY or PAIR.
        """
        self.product = product
        self.scales = (min(scales), max(scales))
        self.views = tuple(
            replace(pose, scale=scale, mirrored=mirrored)
            for pose, mirrored, scale in itertools.product(_POSES, (False, True), scales)
        )
        drawings = [_drawn(product, view, _COARSE) for view in self.views]
        colors, covers = (np.stack(each) for each in zip(*drawings, strict=True))
        self._sharp = _Spectra(colors, covers)
        self._soft = _Spectra(np.stack([blurred(*each, _COARSE_BLUR) for each in drawings]), covers)

    def candidates(self, picture: Floats, count: int) -> list[Fit]:
        """The best views of a first search, on a grid of two pixels.

        They are the best of four rankings: what explains most of the picture; the same of the blurred picture, for
        which the grid is fine enough whatever the pattern; and both of these per area that is covered.

        Args:
            picture: (64, 64, 3) in 0..1.
            count: the maximum; no two candidates have almost the same place and size.
        """
        small = picture.reshape(_COARSE, 2, _COARSE, 2, 3).mean((1, 3))
        sharp, area = self._sharp.explained(small)
        soft, _ = self._soft.explained(blurred(small, np.ones((_COARSE, _COARSE), np.float32), _COARSE_BLUR))
        per_area = np.maximum(area, 8.0) ** -0.75
        found: list[Fit] = []
        for number, ranking in enumerate((sharp, soft, sharp * per_area, soft * per_area), 1):
            self._collect(ranking, count * number // 4, found)
        return found

    def _collect(self, ranking: NDArray[np.floating], wanted: int, found: list[Fit]) -> None:
        for place in np.argsort(ranking, axis=None)[::-1]:
            if len(found) >= wanted:
                return
            number, down, across = np.unravel_index(place, ranking.shape)
            x, y = (32.0 + 2 * (int(lag) - _REACH) for lag in (across, down))
            view = replace(self.views[number], x=x, y=y)
            if not any(_close(view, other.view) for other in found):
                found.append(Fit(view, 0.0))


def find(templates: Templates, picture: Floats, *, count: int = 12) -> list[Fit]:
    """Ways in which the product may be seen, the one that explains most first.

    Args:
        templates: of the product.
        picture: (64, 64, 3) in 0..1.
        count: candidates of the first search that are refined.
    """
    fits = templates.candidates(picture, count)
    for halved in range(_ROUNDS):
        fits = [_refined(templates, picture, fit, halved) for fit in fits]
        fits = sorted(fits, key=lambda fit: fit.explained, reverse=True)
        fits = fits[:_KEPT] if len(fits) <= _KEPT else _kept(fits)
    return fits


def draw(product: Product, view: View, picture: Floats) -> Drawn:
    """The product as `view` says, in the light of the picture (64, 64, 3)."""
    side = len(picture)
    cut = sprite(product, view, side)
    colors, cover = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.float32)
    box = _box(cut)
    colors[box], cover[box] = _lit(cut, picture), cut.alpha
    return Drawn(colors, cover)


def explained(product: Product, view: View, picture: Floats) -> float:
    """See the module. Only the pixels around the product are looked at."""
    cut = sprite(product, view, len(picture))
    misfit = ((picture[_box(cut)] - _lit(cut, picture)) ** 2).sum(2)
    return float((cut.alpha * (MISFIT - misfit)).sum())


def _kept(fits: Sequence[Fit]) -> list[Fit]:
    """The best of all, and the best that explain most of what they cover."""
    dense = sorted(fits[1:], key=lambda fit: fit.explained / fit.view.scale**1.5, reverse=True)
    return [fits[0], *dense[: _KEPT - 1]]


def _refined(templates: Templates, picture: Floats, fit: Fit, halved: int) -> Fit:
    best = fit if halved else Fit(fit.view, explained(templates.product, fit.view, picture))
    for name, size in _STEPS.items():
        for sign in (1, -1):
            moved = _moved(best.view, name, sign * size / 2**halved, templates.scales)
            value = explained(templates.product, moved, picture)
            if value > best.explained:
                best = Fit(moved, value)
                break
    return best


def _moved(view: View, name: str, step: float, scales: tuple[float, float]) -> View:
    if name in ("x", "y", "angle", "shear"):
        return replace(view, **{name: getattr(view, name) + step})
    if name == "scale":
        return replace(view, scale=min(max(view.scale * (1 + step), scales[0]), scales[1]))
    wide, high = view.squeeze
    squeeze = (wide * (1 + step), high) if name == "wide" else (wide, high * (1 + step))
    return replace(view, squeeze=tuple(min(max(each, 0.5), 1.1) for each in squeeze))


def _close(one: View, other: View) -> bool:
    near = abs(one.x - other.x) < _NEAR and abs(one.y - other.y) < _NEAR
    return near and 0.8 < one.scale / other.scale < 1.25 and one.squeeze == other.squeeze


def _lit(cut: Sprite, picture: Floats) -> Floats:
    """A cut-out's colours times the plane of light that brings them nearest to the picture, (h, w, 3)."""
    colors, part = cut.color / 255, picture[_box(cut)]
    planes = _planes(len(picture))[:, *_box(cut)]
    flat, weight = planes.reshape(3, -1), cut.alpha * (colors**2).sum(2)
    left = (flat * weight.ravel()) @ flat.T + 1e-4 * np.eye(3, dtype=np.float32)
    right = flat @ (cut.alpha * (colors * part).sum(2)).ravel() + 1e-4 * np.array([1, 0, 0], np.float32)
    gain = np.clip(np.tensordot(np.linalg.solve(left, right), planes, 1), *_GAINS)
    return np.clip(colors * gain[:, :, None], 0, 1).astype(np.float32)


@cache
def _planes(side: int) -> Floats:
    """One, x and y from -0.5 to 0.5 over a picture, (3, S, S)."""
    down, across = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    return np.stack([np.ones_like(across), across, down])


def _box(cut: Sprite) -> tuple[slice, slice]:
    """The rows and columns of a picture that a cut-out takes."""
    height, width = cut.alpha.shape
    return slice(cut.top, cut.top + height), slice(cut.left, cut.left + width)


def _drawn(product: Product, view: View, side: int) -> tuple[Floats, Floats]:
    cut = sprite(product, view, side)
    color, cover = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.float32)
    color[_box(cut)], cover[_box(cut)] = cut.color / 255, cut.alpha
    return color, cover


def blurred(image: Floats, cover: Floats, sigma: float) -> Floats:
    """Gaussian blur of (S, S, 3) that takes nothing from outside `cover` (S, S)."""
    soft = _smooth(image * cover[:, :, None], sigma) / np.maximum(_smooth(cover[:, :, None], sigma), 1e-3)
    return soft.astype(np.float32)


def _smooth(image: Floats, sigma: float) -> NDArray[np.floating]:
    reach = int(3 * sigma)
    kernel = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float32) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    height, width = image.shape[:2]
    padded = np.pad(image, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    down = np.stack([padded[start : start + height] * weight for start, weight in enumerate(kernel)]).sum(0)
    padded = np.pad(down, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    return np.stack([padded[:, start : start + width] * weight for start, weight in enumerate(kernel)]).sum(0)


def _spectrum(planes: Floats) -> NDArray[np.complexfloating]:
    return np.fft.rfft2(planes, s=(_PAD, _PAD))


def _lagged(spectrum: NDArray[np.complexfloating]) -> NDArray[np.floating]:
    """Sums over all pixels by lag, from -_REACH to _REACH in both directions."""
    lags = np.arange(-_REACH, _REACH + 1)
    return np.fft.irfft2(spectrum, s=(_PAD, _PAD))[..., lags[:, None], lags]


def overlap(covers: Sequence[Floats]) -> float:
    """The share (0..1) of the smaller of two coverages that the other one covers too."""
    one, other = covers
    return float(np.minimum(one, other).sum() / max(min(one.sum(), other.sum()), 1e-6))
