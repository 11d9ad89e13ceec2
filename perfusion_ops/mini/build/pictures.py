"""Rendered scenes on disk: written once by all cores, read by every stage through a memory map.

Scene i of a range of instances is `sample_scene(i, instances)`, so captions can be computed from its number.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from perfusion_ops.mini.world.grammar import caption
from perfusion_ops.mini.world.products import HELD_OUT, product
from perfusion_ops.mini.world.scene import SIZE, photograph, render, sample_scene
from perfusion_ops.mini.world.vocabulary import CATEGORIES, Description

HELD_OUT_INSTANCES = range(HELD_OUT, HELD_OUT + 1_000_000)
LATENT_PIXELS = 4  # pixels a side of one latent position
_CHUNK = 500


def _chunk(instances: range, start: int, stop: int) -> np.ndarray:
    return np.stack([render(sample_scene(number, instances)).pixels for number in range(start, stop)])


def _products(instances: range, start: int, stop: int) -> np.ndarray:
    masks = np.stack([render(sample_scene(number, instances)).masks.sum(0) for number in range(start, stop)])
    side = SIZE // LATENT_PIXELS
    shares = masks.reshape(-1, side, LATENT_PIXELS, side, LATENT_PIXELS).mean((2, 4))
    return np.round(255 * shares.clip(0, 1)).astype(np.uint8)


def photographed(number: int, instances: range, views: int) -> tuple[int, int]:
    """The product of picture `number` of `write_photographs`, and the number of the picture among those of it."""
    return instances.start + number // views, number % views


def _photographs(instances: range, views: int, start: int, stop: int) -> np.ndarray:
    pictures = []
    for number in range(start, stop):
        instance, view = photographed(number, instances, views)
        item = product(CATEGORIES[instance % len(CATEGORIES)], instance)
        pictures.append(render(photograph(item, view)).pixels)
    return np.stack(pictures)


def write_scenes(path: Path, count: int, instances: range, processes: int) -> np.ndarray:
    """The pictures of the scenes 0 to `count`: (count, 64, 64, 3) uint8, read-only, rendered if they are missing."""
    return _write(path, (count, SIZE, SIZE, 3), processes, _chunk, (instances,))


def write_products(path: Path, count: int, instances: range, processes: int) -> np.ndarray:
    """Where the same scenes show a product: (count, side, side) uint8, 255 if all pixels of a latent position do."""
    side = SIZE // LATENT_PIXELS
    return _write(path, (count, side, side), processes, _products, (instances,))


def write_photographs(path: Path, count: int, instances: range, views: int, processes: int) -> np.ndarray:
    """`views` pictures in a row of each product, `count` in all, as `write_scenes`; see `photographed`."""
    return _write(path, (count, SIZE, SIZE, 3), processes, _photographs, (instances, views))


def _write(
    path: Path, shape: tuple[int, ...], processes: int, draw: Callable[..., np.ndarray], arguments: tuple
) -> np.ndarray:
    if not path.exists():
        count = shape[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.npy")
        into = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            starts = range(0, count, _CHUNK)
            futures = [pool.submit(draw, *arguments, start, min(start + _CHUNK, count)) for start in starts]
            for start, future in zip(starts, futures, strict=True):
                into[start : start + _CHUNK] = future.result()
        into.flush()
        unfinished.replace(path)
    return np.load(path, mmap_mode="r")


def tensor(pictures: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) uint8 as (B, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


@lru_cache(maxsize=500_000)
def described(number: int, instances: range) -> Description:
    """The description of scene `number`."""
    return sample_scene(number, instances).describe()


def captioned(number: int, instances: range, random: Random) -> str:
    """One of the captions of scene `number`."""
    return caption(described(number, instances), random)
