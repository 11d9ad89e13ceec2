"""Twenty-three backgrounds for products: sixteen contexts and seven studio backdrops.

The product hides the middle of the picture, so each context can be recognised by its corners, sides and bottom alone.
Random numbers move a horizon or a phase, but never change what is there. Every background is painted on a 64 x 64 grid,
whatever the size of the picture, and no detail is narrower than two of its pixels: an autoencoder would lose it.
"""

from collections.abc import Callable

import numpy as np

from perfusion_ops.mini.world.textures import noise
from perfusion_ops.mini.world.vocabulary import STUDIO_PREFIX

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


def _fade(start: _Color, end: _Color, top: float, bottom: float) -> np.ndarray:
    """A (64, 64, 3) picture that goes from `start` at row `top` to `end` at row `bottom`."""
    share = np.clip((grid_y - top) / (bottom - top), 0, 1).astype(np.float32)
    return np.repeat(_rgb(*start) * (1 - share) + _rgb(*end) * share, GRID, axis=1)


def _lay(image: np.ndarray, paint: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Lay `paint` where `depth`, the pixels inwards from a shape's edge, is positive; the edge is one pixel soft."""
    return image + (paint - image) * np.clip(depth + 0.5, 0, 1).astype(np.float32)


def _disc(image: np.ndarray, color: _Color, x: float, y: float, radius: float) -> np.ndarray:
    return _lay(image, _rgb(*color), radius - np.hypot(grid_x - x, grid_y - y))


def _soft(rng: np.random.Generator) -> np.ndarray:
    return noise(GRID, rng)[:, :, None]


def _wave(height: float, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """A (1, 64, 1) wave of `height` pixels and `pitch` radians a pixel, at a random phase."""
    return height * np.sin(grid_x * pitch + rng.uniform(0, 6.3))


def _side(rng: np.random.Generator, margin: float) -> float:
    """A column about `margin` pixels from the left or the right border, where a product does not hide it."""
    from_border = margin + rng.uniform(-1.5, 1.5)
    return float(from_border if rng.random() < 0.5 else GRID - 1 - from_border)


def _beach(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(14, 18)
    shore = horizon + rng.uniform(15, 18) + _wave(2, 0.16, rng)
    image = _fade((120, 195, 250), (205, 235, 252), 0, horizon)
    image = _lay(image, _fade((20, 95, 180), (60, 190, 205), horizon, horizon + 16), grid_y - horizon)
    image = _lay(image, _rgb(250, 250, 250), grid_y - shore)
    return _lay(image, _rgb(238, 214, 155) + _soft(rng) * 18, grid_y - shore - 3)


def _snow(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(28, 32)
    image = _fade((150, 165, 190), (205, 215, 228), 0, horizon)
    for left in range(1, GRID, 10):
        top = rng.integers(0, 20)
        image[top : top + 2, left : left + 2] = 255
    shift = rng.uniform(-3, 3)
    for center, height in ((5, 22), (19, 16), (33, 20), (46, 16), (59, 23)):
        from_top = grid_y - (horizon - height)
        slope = from_top * 0.26 - np.abs(grid_x - center - shift)
        image = _lay(image, _rgb(40, 85, 75), np.minimum(slope, horizon + 2 - grid_y))
        image = _lay(image, _rgb(246, 249, 255), np.minimum(slope, 6 - from_top))
    ground = _rgb(244, 247, 255) + _soft(rng) * _rgb(24, 18, 6)
    return _lay(image, ground, grid_y - horizon - _wave(1.5, 0.15, rng))


def _grass(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(22, 28) + _wave(2, 0.07, rng)
    image = _fade((85, 160, 245), (185, 222, 252), 0, 26)
    drift = rng.uniform(-4, 4)
    for x, y, radius in ((6, 9, 4), (12, 7, 5), (18, 9, 4), (46, 12, 4), (52, 10, 5), (58, 12, 4)):
        image = _disc(image, (255, 255, 255), x + drift, y, radius)
    return _lay(image, _fade((120, 205, 70), (65, 160, 45), 24, 60) + _soft(rng) * 36, grid_y - horizon)


def _city(rng: np.random.Generator) -> np.ndarray:
    image = _fade((12, 12, 45), (60, 40, 100), 0, 50)
    street = int(rng.integers(50, 54))
    left = -int(rng.integers(0, 6))
    for tower, (width, height) in enumerate(((13, 44), (13, 32), (13, 40), (13, 28), (18, 47))):
        roof = street - height
        image[roof:street, max(left, 0) : left + width - 1] = _rgb(26, 28, 50) + 10 * (tower % 2)
        for row, top in enumerate(range(roof + 3, street - 3, 6)):
            for column, edge in enumerate(range(left + 2, left + width - 3, 5)):
                if (row + 2 * column + tower) % 4:
                    image[top : top + 3, max(edge, 0) : max(edge + 3, 0)] = (255, 214, 105)
        left += width
    image[street:] = (58, 58, 68)
    image[street + 6 : street + 8] = np.where((grid_x[0] + rng.uniform(0, 12)) % 12 < 7, _rgb(235, 205, 90), 58)
    return image


def _wood(rng: np.random.Generator) -> np.ndarray:
    along = grid_y + rng.uniform(0, 12)
    plank = np.floor(along / 12)
    image = _rgb(178, 120, 68) * (1 + 0.07 * np.sin(plank * 2.1)) + _soft(rng) * 24
    return _lay(image, _rgb(98, 60, 30), 1 - np.abs(along % 12 - 1))


def _brick(rng: np.random.Generator) -> np.ndarray:
    width, height = 16, 8
    across = grid_y + int(rng.integers(0, height))
    course = np.floor(across / height)
    along = grid_x + (course % 2) * width / 2 + int(rng.integers(0, width))
    wall = _rgb(178, 72, 52) * (1 + 0.1 * np.sin(course * 2.4 + np.floor(along / width) * 1.9))
    wall = np.where((across % height < 2) | (along % width < 2), _rgb(206, 186, 168), wall)
    return _lay(wall, _rgb(128, 126, 124), grid_y - rng.uniform(55, 58))


def _forest(rng: np.random.Generator) -> np.ndarray:
    ground = rng.uniform(47, 51)
    image = _fade((95, 150, 90), (150, 190, 130), 16, 48)
    shift = rng.uniform(-3, 3)
    for number, center in enumerate((4, 15, 26, 37, 48, 59)):
        bark = _rgb(82, 54, 34) if number % 2 else _rgb(60, 40, 28)
        image = _lay(image, bark, 2.6 - np.abs(grid_x - center - shift))
    leaves = _rgb(24, 78, 38) + _soft(rng) * _rgb(20, 50, 20)
    image = _lay(image, leaves, 17 + 3 * np.abs(np.sin(grid_x * 0.28 + shift)) - grid_y)
    return _lay(image, _rgb(92, 70, 40) + _soft(rng) * 24, grid_y - ground - _wave(1, 0.2, rng))


def _desert(rng: np.random.Generator) -> np.ndarray:
    image = _fade((250, 222, 150), (255, 242, 205), 0, 28)
    image = _lay(image, _rgb(232, 168, 92), grid_y - 24 - _wave(3, 0.09, rng))
    image = _lay(image, _fade((222, 140, 66), (236, 164, 86), 36, 64), grid_y - 38 - _wave(4, 0.07, rng))
    center, top = _side(rng, 8), rng.uniform(10, 13)
    cactus = 2 - np.abs(grid_x - center)
    for reach, low, high in ((-5, 17, 8), (5, 14, 5)):
        arm = np.minimum(1.5 - np.abs(grid_x - center - reach), np.minimum(grid_y - top - high, top + low - grid_y))
        elbow = np.minimum(3.5 - np.abs(grid_x - center - reach / 2), 1.5 - np.abs(grid_y - top - low))
        cactus = np.maximum(cactus, np.maximum(arm, elbow))
    return _lay(image, _rgb(45, 125, 62), np.minimum(cactus, np.minimum(grid_y - top, 46 - grid_y)))


def _underwater(rng: np.random.Generator) -> np.ndarray:
    rays = np.clip(np.sin((grid_x + grid_y * 0.4) * 0.3 + rng.uniform(0, 6.3)), 0, 1) * np.clip(1 - grid_y / 40, 0, 1)
    image = _fade((70, 200, 220), (8, 60, 130), 0, 58) + rays * 50
    image = _lay(image, _rgb(165, 160, 120), grid_y - 57 - _wave(1.5, 0.15, rng))
    phase = rng.uniform(0, 6.3)
    for center, top in ((4, 30), (11, 40), (53, 40), (60, 30)):
        sway = np.abs(grid_x - center - 1.5 * np.sin(grid_y * 0.35 + phase))
        image = _lay(image, _rgb(20, 135, 75), np.minimum(1.6 - sway, np.minimum(grid_y - top, 60 - grid_y)))
    lift = rng.uniform(-3, 3)
    for x, y, radius in ((6, 20, 2.5), (10, 11, 2), (55, 22, 2), (58, 13, 2.5), (30, 6, 2)):
        image = _disc(image, (215, 245, 252), x, y + lift, radius)
    return image


def _kitchen(rng: np.random.Generator) -> np.ndarray:
    shift = int(rng.integers(0, 12))
    joint = ((grid_y + 10) % 12 < 2) | ((grid_x + shift) % 12 < 2)
    image = np.where(joint, _rgb(190, 214, 216), _rgb(236, 244, 240))
    shelf = int(rng.integers(12, 15))
    door = (grid_x[0] + shift) % 16
    image[:shelf] = np.where(door < 2, _rgb(30, 105, 110), _rgb(60, 160, 160))
    image[shelf - 5 : shelf - 2] = np.where((door > 10) & (door < 14), _rgb(240, 225, 150), image[shelf - 5])
    image[shelf : shelf + 2] = (30, 80, 85)
    counter = int(rng.integers(42, 46))
    image[counter:] = _rgb(150, 146, 150) + _soft(rng)[counter:] * 24
    image[counter : counter + 3] = (72, 70, 78)
    return image


def _space(rng: np.random.Generator) -> np.ndarray:
    image = _rgb(10, 8, 26) + np.clip(_soft(rng), 0, 1) * _rgb(100, 30, 120)
    shift = int(rng.integers(0, 8))
    for number in range(18):
        top, left = (number * 23 + 5 * shift) % 62, (number * 37 + shift) % 62
        image[top : top + 2, left : left + 2] = (240, 240, 255)
    x, y = _side(rng, 11), rng.uniform(9, 13)
    image = _disc(image, (225, 145, 85), x, y, 7)
    tilt = grid_y - y - 0.3 * (grid_x - x)
    return _lay(image, _rgb(250, 228, 180), np.minimum(1.2 - np.abs(tilt), 11 - np.abs(grid_x - x)))


def _mountains(rng: np.random.Generator) -> np.ndarray:
    image = _fade((70, 145, 235), (180, 215, 248), 0, 44)
    shift, lift = rng.uniform(-2, 2), rng.uniform(-2, 2)
    for center, top, rock in ((32, 12, (112, 118, 135)), (9, 7, (92, 98, 116)), (55, 9, (98, 104, 122))):
        across = grid_x - center - shift
        below = grid_y - top - lift - np.abs(across) * 1.5
        image = _lay(image, _rgb(*rock), below)
        snow_line = top + lift + 11 + 2 * np.sin(across * 1.1)
        image = _lay(image, _rgb(250, 252, 255), np.minimum(below, snow_line - grid_y))
    return _lay(image, _fade((80, 145, 70), (60, 120, 50), 48, 64), grid_y - 47 - _wave(2, 0.12, rng))


def _sunset(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(41, 45)
    image = _fade((85, 40, 130), (225, 75, 120), 0, 20)
    image = np.where(grid_y > 20, _fade((225, 75, 120), (255, 170, 60), 20, horizon), image)
    x = _side(rng, 10)
    image = _disc(image, (255, 240, 130), x, horizon - 4, 9)
    image = _lay(image, _fade((80, 35, 90), (40, 20, 60), horizon, 64), grid_y - horizon)
    glint = np.minimum(7 - np.abs(grid_x - x), 1.5 - np.abs((grid_y - horizon) % 6 - 3))
    return _lay(image, _rgb(250, 165, 80), np.minimum(glint, grid_y - horizon - 1))


def _library(rng: np.random.Generator) -> np.ndarray:
    bottom = 55 + int(rng.integers(-1, 2))
    image = np.full((GRID, GRID, 3), _rgb(52, 32, 22), dtype=np.float32)
    for number, board in enumerate(range(bottom, -1, -18)):
        book = (np.arange(GRID) + int(rng.integers(0, 35))) // 5 + 3 * number
        spine = _SPINES[book % len(_SPINES)]
        tall = np.array((13, 11, 14, 12))[book % 4][None, :, None]
        books = (grid_y < board) & (grid_y >= board - tall)
        image = np.where(books, 0.5 * spine + _rgb(52, 38, 30), image)
        image[max(board, 0) : max(board + 3, 0)] = (150, 98, 52)
    image[bottom + 3 :] = (112, 40, 44)
    return image


def _garden(rng: np.random.Generator) -> np.ndarray:
    image = _fade((150, 210, 250), (205, 235, 252), 0, 12)
    hedge = _rgb(28, 92, 48) + _soft(rng) * 24
    shift = int(rng.integers(0, 8))
    image = _lay(image, hedge, grid_y - 10 + 2 * np.abs(np.sin((grid_x + shift) * 0.39)))
    image = _lay(image, _rgb(125, 200, 85), grid_y - 37)
    slat = 2.5 - np.abs((grid_x + shift) % 8 - 4)
    image = _lay(image, _rgb(252, 252, 250), np.minimum(slat, np.minimum(grid_y - 22 - (2.5 - slat), 40 - grid_y)))
    image[28:31] = image[34:37] = (252, 252, 250)
    for row, top in enumerate((44, 54)):
        for number, left in enumerate(range(1 - shift + 5 * row, GRID, 10)):
            image[top + 4 : top + 7, max(left + 1, 0) : max(left + 3, 0)] = (40, 120, 50)
            image[top : top + 4, max(left, 0) : max(left + 4, 0)] = _PETALS[(number + row) % len(_PETALS)]
    return image


def _road(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(20, 24)
    image = _fade((110, 175, 240), (215, 232, 245), 0, horizon)
    image = _lay(image, _rgb(105, 165, 70), grid_y - horizon)
    depth = np.clip(grid_y - horizon, 0, None)
    half = 2 + 0.72 * depth
    across = np.abs(grid_x - 31.5 - rng.uniform(-2, 2))
    image = _lay(image, _rgb(92, 94, 102), np.minimum(half - across, grid_y - horizon))
    line = 0.5 + 0.05 * depth
    image = _lay(image, _rgb(250, 250, 250), np.minimum(line - np.abs(across - half + 3 * line), depth - 1))
    gap = 4 - np.abs((grid_y + rng.uniform(0, 3)) % 12 - 6)
    return _lay(image, _rgb(250, 250, 250), np.minimum(line - across, np.minimum(gap, depth - 1)))


def _studio(color: _Color, rng: np.random.Generator) -> np.ndarray:
    light_x, light_y = rng.uniform(20, 44), rng.uniform(15, 45)
    distance = np.hypot(grid_x - light_x, grid_y - light_y) / 60
    return _rgb(*color) * (rng.uniform(0.98, 1.1) - 0.3 * distance)


_SPINES = np.array(
    ((180, 45, 45), (45, 90, 160), (225, 185, 80), (50, 120, 75), (235, 225, 200), (125, 60, 125), (215, 115, 45)),
    dtype=np.float32,
)
_PETALS = ((235, 50, 70), (255, 220, 60), (250, 130, 190))
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
    "mountains": _mountains,
    "sunset": _sunset,
    "library": _library,
    "garden": _garden,
    "road": _road,
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
