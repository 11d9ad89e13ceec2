"""The judge that knows the product: it finds it, and orders damaged pictures as a person does."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageFilter

from perfusion_ops.mini.oracle.judge import judge, judge_all
from perfusion_ops.mini.oracle.search import ALONE, MISFIT, PAIR, SMALL, Templates, draw, explained, find
from perfusion_ops.mini.world.products import HELD_OUT, Product, product
from perfusion_ops.mini.world.scene import Placed, Scene, pair, photograph, render
from perfusion_ops.mini.world.vocabulary import CATEGORIES, EMBLEMS

# One product of each pattern, in different categories and views.
PATTERNS = ("plain", "striped", "dotted", "checked", "star", "heart")
OTHER = {"plain": "checked", "striped": "dotted", "dotted": "striped", "checked": "plain", "star": "heart"}


@cache
def item(number: int) -> Product:
    return product(CATEGORIES[2 * number], HELD_OUT + 60_000 + number, pattern=PATTERNS[number])


@cache
def templates(number: int) -> Templates:
    return Templates(item(number), SMALL if scene(number).framing == "small" else ALONE)


@cache
def scene(number: int) -> Scene:
    return photograph(item(number), 1)


@cache
def photo(number: int) -> np.ndarray:
    return render(scene(number)).pixels


def instead(number: int, other: Product) -> np.ndarray:
    """The same photo with another product in the same place and pose."""
    return render(replace(scene(number), placed=(Placed(other, scene(number).placed[0].view),))).pixels


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def smeared(picture: np.ndarray, seed: int = 0, by: float = 2.0) -> np.ndarray:
    """Each pixel taken from a place up to some pixels away, as a melting drawing: colours stay, lines do not."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.uniform(-by, by, (16, 16)).astype(np.float32)) for _ in range(2)]
    down, across = (np.asarray(each.resize((64, 64), Image.Resampling.BICUBIC)) for each in coarse)
    y, x = np.mgrid[0:64, 0:64]
    return picture[np.clip(np.rint(y + down), 0, 63).astype(int), np.clip(np.rint(x + across), 0, 63).astype(int)]


def test_the_product_is_found_where_it_is():
    found = 0
    for number in range(6):
        view = scene(number).placed[0].view
        fit = find(templates(number), (photo(number) / 255).astype(np.float32))[0]
        near = abs(fit.view.x - view.x) < 1.5 and abs(fit.view.y - view.y) < 1.5
        # A squeezed view and a smaller one may look the same: compare heights.
        heights = fit.view.scale * fit.view.squeeze[1] / (view.scale * view.squeeze[1])
        found += near and 0.9 < heights < 1.1
    assert found >= 5


@pytest.mark.parametrize("number", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 4, 5))])
def test_damage_is_ordered_as_a_person_orders_it(number):
    true = item(number)
    look = true.look
    recolored = product(
        look.category, true.instance, colors=(look.accent, look.primary, look.secondary), pattern=look.pattern
    )
    colors = (look.primary, look.secondary, look.accent)
    repatterned = product(look.category, true.instance, colors=colors, pattern=OTHER.get(look.pattern, "star"))
    seen = {
        "clean": photo(number),
        "soft": blurred(photo(number), 1),
        "softer": blurred(photo(number), 2),
        "smeared": smeared(photo(number)),
        "recolored": instead(number, recolored),
        "repatterned": instead(number, repatterned),
        "another": instead(number, product(look.category, true.instance + 1)),
    }
    scores = {name: judge(templates(number), picture) for name, picture in seen.items()}
    overall = {name: score.overall for name, score in scores.items()}
    assert overall["clean"] > 0.8, overall
    assert overall["clean"] > overall["soft"] > overall["softer"], overall
    assert max(overall[name] for name in ("smeared", "recolored", "another")) < overall["soft"], overall
    # One emblem instead of another changes a few pixels.
    assert overall["repatterned"] < overall["clean" if look.pattern in EMBLEMS else "soft"], overall
    assert scores["clean"].legible
    assert not scores["repatterned"].legible
    assert scores["smeared"].pattern < 0.7 * scores["clean"].pattern


def test_a_picture_without_the_product_scores_low():
    empty = render(photograph(product("guitar", HELD_OUT + 61_000), 2)).pixels
    assert judge(templates(0), empty).overall < 0.5


def test_two_products_are_judged_at_places_of_their_own():
    first, second = item(3), item(1)
    both = [Templates(first, PAIR), Templates(second, PAIR)]
    together = judge_all(both, render(pair("beside", first, second, "snow", 5)).pixels)
    assert min(each.overall for each in together) > 0.75
    one = product(second.look.category, second.instance + 7)
    mistaken = judge_all(both, render(pair("beside", first, one, "snow", 5)).pixels)
    assert mistaken[0].overall > 0.75
    assert mistaken[1].overall < 0.6


def test_what_a_view_explains_is_the_sum_over_the_whole_picture():
    image = (photo(3) / 255).astype(np.float32)
    seen = scene(3).placed[0].view
    for view in (seen, replace(seen, x=2.0), replace(seen, x=-90.0), replace(seen, scale=9.0, angle=0.4)):
        drawn = draw(item(3), view, image)
        naive = (drawn.cover * (MISFIT - ((image - drawn.colors) ** 2).sum(2))).astype(np.float64).sum()
        assert explained(item(3), view, image) == pytest.approx(naive, rel=1e-5, abs=1e-6)
    assert explained(item(3), seen, image) > 10
