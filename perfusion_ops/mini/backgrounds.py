"""Eighteen places for a product to stand: eleven contexts and seven studio backdrops.

Each is painted on a grid of 64 x 64 whatever the picture's size, because its textures are made of single pixels.
"""

from collections.abc import Callable

import numpy as np

from perfusion_ops.mini.textures import Grain, noise
from perfusion_ops.mini.vocabulary import STUDIO_PREFIX

GRID = 64

# Pixel coordinates that broadcast against each other and a channel axis: (64, 1, 1) and (1, 64, 1).
grid_y = np.arange(GRID, dtype=np.float32)[:, None, None]
grid_x = np.arange(GRID, dtype=np.float32)[None, :, None]

_Color = tuple[float, float, float]


def background(name: str, rng: np.random.Generator) -> np.ndarray:
    """Paint the place `name` (one of vocabulary.BACKGROUNDS): (64, 64, 3) float32, about 0..255, not clipped."""
    if name.startswith(STUDIO_PREFIX):
        return _studio(_STUDIO[name.removeprefix(STUDIO_PREFIX)], rng)
    return _CONTEXTS[name](rng)


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array((red, green, blue), dtype=np.float32)


def _blend(start: _Color, end: _Color, share: np.ndarray) -> np.ndarray:
    return _rgb(*start) * (1 - share) + _rgb(*end) * share


def _full(image: np.ndarray) -> np.ndarray:
    return np.array(np.broadcast_to(image, (GRID, GRID, 3)), dtype=np.float32)


def _grain(kind: Grain, rng: np.random.Generator) -> np.ndarray:
    return noise(kind, GRID, rng)[:, :, None]


def _beach(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(16, 24)
    shore = horizon + rng.uniform(7, 12)
    sky = _blend((120, 190, 245), (215, 238, 250), np.clip(grid_y / horizon, 0, 1))
    sea = _blend((25, 105, 185), (70, 185, 205), np.clip((grid_y - horizon) / (shore - horizon), 0, 1))
    sea = sea + _grain("mid", rng) * 45 * (np.sin(grid_y * 2.2) > 0)
    sand = _rgb(232, 208, 150) + _grain("fine", rng) * 26
    sand += _grain("soft", rng) * 30
    edge = shore + 2.0 * np.sin(grid_x * rng.uniform(0.1, 0.2) + rng.uniform(0, 6))
    image = np.where(grid_y < horizon, sky, np.where(grid_y < edge, sea, sand))
    return np.where(np.abs(grid_y - edge) < 1, np.float32(248), image)


def _snow(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(18, 27)
    image = _full(_blend((165, 185, 210), (220, 230, 240), np.clip(grid_y / horizon, 0, 1)))
    for _ in range(rng.integers(3, 7)):
        center, height = rng.uniform(0, 64), rng.uniform(9, 17)
        tree = (np.abs(grid_x - center) < (grid_y - (horizon - height)) * 0.38) & (grid_y < horizon + 1)
        image[tree[:, :, 0]] = (70, 105, 100)
    ground = _rgb(240, 244, 252) + _grain("soft", rng) * 40 * _rgb(1.2, 0.9, 0.3)
    image = np.where(grid_y > horizon + 1.5 * np.sin(grid_x * 0.15 + rng.uniform(0, 6)), ground, image)
    image[rng.random((GRID, GRID)) < 0.025] = 255
    return image


def _grass(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(18, 28)
    sky = _blend((95, 165, 240), (190, 222, 250), np.clip(grid_y / horizon, 0, 1))
    cloud = np.clip(_grain("soft", rng) * 5 - 0.2, 0, 1)
    sky = sky * (1 - cloud) + 255 * cloud
    blades = _grain("fine", rng) * 60
    blades = blades + _grain("mid", rng) * 40
    blades = (blades + np.roll(blades, 1, 0)) / 1.6
    image = np.where(grid_y > horizon, _rgb(80, 165, 55) + blades * _rgb(0.7, 1, 0.5), sky)
    rows, columns = rng.integers(int(horizon) + 3, GRID, 10), rng.integers(0, GRID, 10)
    image[rows, columns] = (250, 240, 130) if rng.uniform() < 0.5 else (250, 180, 200)
    return image


def _city(rng: np.random.Generator) -> np.ndarray:
    image = _full(_blend((10, 12, 38), (48, 36, 82), grid_y / 60))
    street = int(48 + rng.uniform(-3, 3))
    left = 0
    while left < GRID:
        width, roof = int(rng.uniform(7, 14)), int(rng.uniform(8, 32))
        image[roof:street, left : left + width - 1] = _rgb(24, 26, 44) * np.float32(rng.uniform(0.8, 1.5))
        for top in range(roof + 2, street - 2, 4):
            for side in range(left + 1, min(left + width - 2, GRID - 1), 3):
                if rng.random() < 0.55:
                    image[top : top + 2, side : side + 2] = (255, 215, 110) if rng.random() < 0.8 else (150, 210, 255)
        left += width
    image[street:] = _rgb(50, 50, 58) + _grain("fine", rng)[street:] * 12
    image[street + 7 : street + 9, int(rng.uniform(0, 6)) :: 12] = (200, 190, 120)
    return image


def _wood(rng: np.random.Generator) -> np.ndarray:
    fibre = np.repeat(_grain("mid", rng)[:, ::8], 8, axis=1)
    image = _rgb(166, 112, 64) + fibre * 60 + _grain("soft", rng) * 30
    plank, offset = rng.uniform(9, 13), rng.uniform(0, 12)
    image = image * (1 + 0.1 * np.sin(np.floor((grid_y + offset) / plank) * 7.3))
    return np.where((grid_y + offset) % plank < 1, image * np.float32(0.55), image)


def _brick(rng: np.random.Generator) -> np.ndarray:
    width, height = 12, 6
    offset = rng.uniform(0, 6)
    course = np.floor((grid_y + offset) / height)
    along = grid_x + (course % 2) * width / 2 + rng.uniform(0, 12)
    burn = np.sin(course * 12.9 + np.floor(along / width) * 78.2)
    wall = _rgb(172, 78, 58) * (1 + 0.14 * burn) + _grain("fine", rng) * 24
    mortar = ((grid_y + offset) % height < 1) | (along % width < 1)
    wall = np.where(mortar, _rgb(205, 195, 182), wall)
    pavement = rng.uniform(54, 60)
    return np.where(grid_y > pavement, _rgb(125, 122, 118) + _grain("fine", rng) * 20, wall)


def _forest(rng: np.random.Generator) -> np.ndarray:
    image = _blend((48, 92, 52), (24, 50, 30), grid_y / GRID) + _grain("mid", rng) * 50 * _rgb(0.6, 1, 0.5)
    for _ in range(rng.integers(5, 9)):
        center, width = rng.uniform(0, 64), rng.uniform(1.5, 4)
        bark = _rgb(84, 58, 38) * np.float32(rng.uniform(0.6, 1.2)) + _grain("fine", rng) * 22
        image = np.where(np.abs(grid_x - center) < width, bark, image)
    leaves = _grain("mid", rng) > rng.uniform(0, 0.1)
    image = np.where(leaves & (grid_y < 18 + 6 * np.sin(grid_x * 0.3)), _rgb(62, 128, 58), image)
    ground = rng.uniform(46, 54)
    return np.where(grid_y > ground, _rgb(72, 66, 36) + _grain("fine", rng) * 45, image)


def _desert(rng: np.random.Generator) -> np.ndarray:
    image = _blend((250, 165, 85), (255, 225, 160), np.clip(grid_y / 28, 0, 1))
    sun_x, sun_y = rng.uniform(8, 56), rng.uniform(6, 14)
    image = np.where((grid_x - sun_x) ** 2 + (grid_y - sun_y) ** 2 < 22, _rgb(255, 250, 215), image)
    ripple = np.sin(grid_y * 1.3 + grid_x * 0.15) * 5
    for top, color in ((22, (214, 138, 70)), (31, (226, 154, 80)), (42, (236, 172, 96))):
        swell, pitch, phase = rng.uniform(2, 5), rng.uniform(0.06, 0.12), rng.uniform(0, 6)
        crest = top + swell * np.sin(grid_x * pitch + phase)
        image = np.where(grid_y > crest, _rgb(*color) * (1 - 0.004 * (grid_y - crest)) + ripple, image)
    return image


def _underwater(rng: np.random.Generator) -> np.ndarray:
    slant = rng.uniform(-0.5, 0.5)
    rays = np.clip(np.sin((grid_x + grid_y * slant) * 0.28 + rng.uniform(0, 6)), 0, 1) * np.clip(1 - grid_y / 45, 0, 1)
    image = _blend((70, 190, 215), (8, 48, 110), grid_y / GRID) + rays * 45
    for _ in range(rng.integers(7, 14)):
        center_x, center_y, radius = rng.uniform(0, 64), rng.uniform(0, 58), rng.uniform(1, 2.8)
        rim = np.abs(np.hypot(grid_x - center_x, grid_y - center_y) - radius) < 0.7
        image[rim[:, :, 0]] = (200, 240, 250)
    for _ in range(3):
        center = rng.uniform(0, 64)
        weed = (np.abs(grid_x - center - 2 * np.sin(grid_y * 0.4)) < 1.2) & (grid_y > rng.uniform(38, 48))
        image[weed[:, :, 0]] = (20, 110, 70)
    return np.where(grid_y > 58 + 2 * np.sin(grid_x * 0.15 + rng.uniform(0, 6)), _rgb(120, 130, 110), image)


def _kitchen(rng: np.random.Generator) -> np.ndarray:
    tile = 8
    color = _rgb(*((208, 232, 228), (236, 236, 226), (196, 216, 236))[rng.integers(3)])
    image = color + _grain("soft", rng) * 20
    offset = rng.uniform(0, 8)
    joint = ((grid_y + offset) % tile < 1) | ((grid_x + offset) % tile < 1)
    image = np.where(joint, color * np.float32(0.78), image)
    counter = rng.uniform(40, 47)
    stone = _rgb(112, 112, 120) + _grain("fine", rng) * 16
    stone = np.where(grid_y < counter + 2, _rgb(70, 70, 76), stone + _grain("soft", rng) * 30)
    return np.where(grid_y > counter, stone, image)


def _space(rng: np.random.Generator) -> np.ndarray:
    image = _rgb(8, 6, 20) + np.clip(_grain("soft", rng), 0, 1) * 130 * _rgb(0.9, 0.25, 1.1)
    stars = rng.random((GRID, GRID))
    image[stars < 0.02] = (235, 235, 255)
    image[stars < 0.006] = 255
    center_x = float(rng.choice([rng.uniform(4, 16), rng.uniform(48, 60)]))
    center_y, radius = rng.uniform(6, 16), rng.uniform(6, 10)
    color = _rgb(*((210, 140, 90), (120, 170, 220), (200, 190, 130))[rng.integers(3)])
    planet = color * (1 + 0.02 * (center_x - grid_x)) * (0.85 + 0.15 * np.sin(grid_y * 0.9))
    image = np.where(np.hypot(grid_x - center_x, grid_y - center_y) < radius, planet, image)
    ring = (np.abs(grid_y - center_y - 0.25 * (grid_x - center_x)) < 0.9) & (np.abs(grid_x - center_x) < radius * 1.6)
    return np.where(ring, _rgb(230, 215, 180), image)


def _studio(color: _Color, rng: np.random.Generator) -> np.ndarray:
    light_x, light_y = rng.uniform(20, 44), rng.uniform(15, 45)
    distance = np.hypot(grid_x - light_x, grid_y - light_y) / 60
    return _rgb(*color) * (rng.uniform(0.98, 1.1) - 0.3 * distance)


_CONTEXTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "beach": _beach,
    "snow": _snow,
    "grass": _grass,
    "city": _city,
    "wood": _wood,
    "brick": _brick,
    "forest": _forest,
    "desert": _desert,
    "underwater": _underwater,
    "kitchen": _kitchen,
    "space": _space,
}
_STUDIO: dict[str, _Color] = {
    "red": (200, 45, 50),
    "blue": (55, 95, 200),
    "green": (60, 165, 85),
    "yellow": (240, 210, 75),
    "white": (240, 240, 240),
    "purple": (135, 75, 170),
    "gray": (135, 135, 138),
}
