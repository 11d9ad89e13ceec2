"""The product world: the same everywhere, complete, visible, and as the embedded base has learnt it."""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perfusion_ops.mini.world.backgrounds import background
from perfusion_ops.mini.world.colors import shade
from perfusion_ops.mini.world.products import BASE_INSTANCES, HELD_OUT, SCORER_INSTANCES, product
from perfusion_ops.mini.world.scene import Placed, Scene, photograph, portrait, render, sample_scene, sample_view
from perfusion_ops.mini.world.sprites import View
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, PATTERNS

SEEDS = st.integers(0, 2**40)
MIDDLE = View(32, 36, 20)

# Mean colour of each background: the embedded base's weights know these and no others.
BACKGROUND_MEANS = {
    "beach": (167, 198, 195),
    "snow": (196, 207, 217),
    "grass": (118, 190, 135),
    "city": (58, 54, 62),
    "wood": (166, 111, 62),
    "brick": (181, 113, 95),
    "forest": (75, 92, 55),
    "desert": (229, 182, 114),
    "underwater": (59, 144, 171),
    "kitchen": (157, 182, 182),
    "space": (29, 20, 40),
    "mountains": (99, 136, 147),
    "sunset": (162, 81, 99),
    "library": (122, 85, 66),
    "garden": (135, 179, 132),
    "road": (134, 167, 154),
    "studio-red": (182, 41, 45),
    "studio-blue": (50, 86, 182),
    "studio-green": (55, 150, 77),
    "studio-yellow": (218, 191, 68),
    "studio-white": (218, 218, 218),
    "studio-purple": (123, 68, 155),
    "studio-gray": (123, 123, 125),
}
COLOR_MEANS = {
    "red": (203, 20, 29),
    "orange": (248, 120, 11),
    "yellow": (248, 232, 49),
    "green": (28, 142, 54),
    "blue": (31, 92, 213),
    "purple": (110, 48, 152),
    "pink": (248, 136, 192),
    "brown": (126, 72, 40),
    "white": (241, 238, 234),
    "black": (23, 25, 27),
}
# Share of the picture that each category covers, seen as MIDDLE, on average over twenty products.
CATEGORY_AREAS = {
    "mug": 0.243,
    "chair": 0.205,
    "teddy": 0.246,
    "bottle": 0.146,
    "shoe": 0.207,
    "bag": 0.209,
    "lamp": 0.174,
    "hat": 0.188,
    "clock": 0.26,
    "car": 0.207,
    "duck": 0.223,
    "guitar": 0.142,
}


def alone(item, place="studio-gray", view=MIDDLE, seed=0):
    return Scene(place, (seed,), (Placed(item, view),))


def digest(seeds):
    whole = hashlib.sha256()
    for seed in seeds:
        picture = render(sample_scene(seed))
        whole.update(picture.pixels.tobytes() + picture.masks.tobytes())
    return whole.hexdigest()


def test_another_process_draws_the_same_bytes_whatever_it_drew_before():
    program = (
        "from perfusion_ops.mini.world.scene import render, sample_scene; import hashlib\n"
        "pictures = {n: render(sample_scene(n)) for n in reversed(range(40))}\n"
        "whole = hashlib.sha256()\n"
        "for n in range(40): whole.update(pictures[n].pixels.tobytes() + pictures[n].masks.tobytes())\n"
        "print(whole.hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(range(40)) == digest(range(40))
    assert digest(range(1, 41)) != digest(range(40))


@pytest.mark.parametrize("place", BACKGROUNDS)
def test_backgrounds_keep_the_look_that_the_base_was_trained_on(place):
    drawn = [background(place, np.random.default_rng(seed)).clip(0, 255) for seed in range(20)]
    assert drawn[0].shape == (64, 64, 3)
    assert np.mean(drawn, axis=(0, 1, 2)) == pytest.approx(BACKGROUND_MEANS[place], abs=1)
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("color", COLORS)
def test_colors_keep_the_shades_that_the_base_was_trained_on(color):
    shades = [shade(color, np.random.default_rng(seed)) for seed in range(200)]
    assert np.mean(shades, axis=0) == pytest.approx(COLOR_MEANS[color], abs=1)
    assert len(set(shades)) > 20


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_angle_is_seen(category):
    item = product(category, 5)

    def box(angle):
        mask = render(alone(item, view=sample_view(np.random.default_rng(1), "mid", angle))).masks[0] > 0.5
        return np.ptp(np.flatnonzero(mask.any(axis=0))), np.ptp(np.flatnonzero(mask.any(axis=1)))

    (front_width, front_height), (side_width, _), (_, above_height) = box("front"), box("side"), box("above")
    assert side_width < 0.8 * front_width
    assert above_height < 0.8 * front_height
    turned = sample_view(np.random.default_rng(1), "mid", "tilted").angle
    assert 0.4 < abs(turned) < 0.7


@pytest.mark.parametrize("category", CATEGORIES)
def test_products_keep_the_proportions_that_the_base_was_trained_on(category):
    areas = [render(alone(product(category, number))).masks[0].mean() for number in range(20)]
    assert np.mean(areas) == pytest.approx(CATEGORY_AREAS[category], abs=0.002)
    assert len(set(areas)) == 20  # no two outlines alike


@pytest.mark.parametrize("place", BACKGROUNDS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_product_stands_out_from_every_background(category, place):
    for number in range(2):
        scene = alone(product(category, number), place, seed=number)
        picture, empty = render(scene), render(replace(scene, placed=()))
        inside = picture.masks[0] > 0.5
        changed = np.abs(picture.pixels.astype(int) - empty.pixels)[inside].max(axis=1) > 30
        assert changed.mean() > 0.25


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_pattern_is_seen_on_every_category(category):
    colors = ("yellow", "blue", "red")
    drawn = {p: render(alone(product(category, 3, colors=colors, pattern=p))) for p in PATTERNS}
    for first, second in itertools.combinations(PATTERNS, 2):
        differs = np.abs(drawn[first].pixels.astype(int) - drawn[second].pixels).max(axis=2) > 60
        assert differs.sum() >= 15, (first, second)
        assert drawn[first].masks[0][differs].min() > 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_second_colour_stands_out_against_the_main_one(category):
    for instance in range(40):
        item = product(category, instance)
        light, dark = (np.dot(color, (0.299, 0.587, 0.114)) for color in (item.primary, item.secondary))
        assert abs(light - dark) > 25, (item.look, item.primary, item.secondary)


@pytest.mark.parametrize("pattern", ["striped", "dotted", "checked"])
def test_the_main_colour_covers_at_least_half_of_a_body_with_a_pattern(pattern):
    item = product("bag", 3, colors=("red", "white", "black"), pattern=pattern)
    plain = product("bag", 3, colors=("red", "white", "black"), pattern="plain")
    drawn, body = (render(alone(each)).pixels.astype(int) for each in (item, plain))
    red = (drawn[..., 0] - drawn[..., 1] > 80).sum() / (body[..., 0] - body[..., 1] > 80).sum()
    assert 0.45 < red < 0.8


@settings(max_examples=60)
@given(SEEDS)
@example(6541)  # a small clock, wide of its kind
@example(16007)  # a small mug, wide of its kind
@example(12918)  # a big mug, wide of its kind
def test_masks_say_where_each_product_is_seen(seed):
    scene = sample_scene(seed)
    picture = render(scene)
    assert picture.pixels.shape == (64, 64, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.masks.shape == (len(scene.placed), 64, 64)
    assert picture.masks.min() >= 0
    assert picture.masks.sum(axis=0).max() <= 1 + 1e-6
    areas = picture.masks.mean(axis=(1, 2))
    assert areas.min() > 0.01
    if scene.relation is not None:
        return
    # How much a product covers depends on its own outline; the framing says how much more or less that is than usual.
    [item] = scene.placed
    usual = render(alone(item.product)).masks[0].mean()
    drawn = areas[0] / usual
    # The edge of the picture cuts a part off some big products.
    assert 0.8 < drawn / ((item.view.scale / MIDDLE.scale) ** 2 * np.prod(item.view.squeeze)) < 1.1
    assert scene.framing != "big" or drawn > 1.5
    assert scene.framing != "small" or drawn < 0.5


@settings(max_examples=40)
@given(SEEDS, st.sampled_from(BACKGROUNDS))
def test_mask_of_one_hides_the_background_and_of_none_the_product(seed, place):
    scene = sample_scene(seed)
    picture = render(scene)
    elsewhere = render(replace(scene, background=place))
    covered = picture.masks.sum(axis=0) >= 1
    assert np.array_equal(picture.pixels[covered], elsewhere.pixels[covered])
    assert np.array_equal(picture.masks, elsewhere.masks)

    def recolored(item):
        look = item.product.look
        colors = (look.secondary, look.accent, look.primary)
        return replace(item, product=product(look.category, item.product.instance, colors=colors, pattern=look.pattern))

    other = render(replace(scene, placed=tuple(recolored(item) for item in scene.placed)))
    free = picture.masks.sum(axis=0) == 0
    assert np.array_equal(picture.pixels[free], other.pixels[free])
    assert not np.array_equal(picture.pixels, other.pixels)


@settings(max_examples=60)
@given(SEEDS)
def test_descriptions_are_true(seed):
    scene = sample_scene(seed)
    words = scene.describe()
    masks = render(scene).masks
    assert [item.product.look for item in scene.placed] == list(words.looks)
    assert (words.relation is None) == (len(words.looks) == 1)
    if words.relation is None:
        return
    assert words.looks[0].category != words.looks[1].category
    columns = [float((mask.sum(axis=0) * np.arange(64)).sum() / mask.sum()) for mask in masks]
    rows = [float((mask.sum(axis=1) * np.arange(64)).sum() / mask.sum()) for mask in masks]
    if words.relation == "beside":
        assert words.first_is_left == (columns[0] < columns[1] - 20)
    if words.relation == "wearing":
        assert words.looks[1].category == "hat"
        assert rows[1] < rows[0]
    if words.relation in {"on", "inside"}:
        assert rows[0] < rows[1]
        alone_masks = render(replace(scene, placed=scene.placed[:1])).masks
        hidden = 1 - masks[0].sum() / alone_masks[0].sum()
        assert hidden > 0.05 if words.relation == "inside" else hidden < 0.12


@pytest.mark.parametrize("instances", [BASE_INSTANCES, SCORER_INSTANCES, range(HELD_OUT, HELD_OUT + 10)])
def test_scenes_hold_only_products_of_their_split(instances):
    items = [item.product for seed in range(300) for item in sample_scene(seed, instances).placed]
    assert all(item.instance in instances for item in items)
    assert sample_scene(0, instances) != sample_scene(1, instances)


def test_splits_have_nothing_in_common():
    assert BASE_INSTANCES.stop <= SCORER_INSTANCES.start
    assert SCORER_INSTANCES.stop <= HELD_OUT
    assert sample_scene(0).background_seed != sample_scene(0, SCORER_INSTANCES).background_seed


def test_scenes_come_in_the_shares_that_the_base_was_trained_on():
    scenes = [sample_scene(seed) for seed in range(3000)]
    shares = {"beside": 0.13, "on": 0.06, "wearing": 0.06, "inside": 0.05}
    for relation, share in shares.items():
        assert np.mean([s.relation == relation for s in scenes]) == pytest.approx(share, abs=0.02)
    alone_ones = [s for s in scenes if s.relation is None]
    assert np.mean([s.framing == "mid" for s in alone_ones]) == pytest.approx(0.76, abs=0.03)
    assert np.mean([s.angle == "front" for s in alone_ones]) == pytest.approx(0.772, abs=0.03)
    assert np.mean([s.background.startswith("studio-") for s in scenes]) == pytest.approx(0.2, abs=0.03)
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {s.placed[0].product.look.category for s in scenes} == set(CATEGORIES)


def test_larger_pictures_show_the_same_scene():
    for seed in range(20):
        small, large = render(sample_scene(seed)), render(sample_scene(seed), 128)
        halved = large.pixels.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small.pixels).mean() < 8
        assert large.masks.mean() == pytest.approx(small.masks.mean(), rel=0.1)
    assert render(sample_scene(0), 100).pixels.shape == (100, 100, 3)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=f"size {size} is out of range"):
        render(sample_scene(0), size)


@pytest.mark.parametrize("view", [View(200, 32, 10), View(32, -90, 20), View(-50, -50, 5)])
def test_product_outside_the_picture_changes_nothing_in_it(view):
    scene = alone(product("car", 1), "space", view)
    picture = render(scene)
    assert picture.masks.max() == 0
    assert np.array_equal(picture.pixels, render(replace(scene, placed=())).pixels)


def test_product_at_the_edge_is_cut_off_where_the_picture_ends():
    item = product("mug", 5)
    whole = render(alone(item, view=View(32, 32, 12))).masks[0]
    half = render(alone(item, view=View(0, 32, 12))).masks[0]
    assert half[:, :20] == pytest.approx(whole[:, 32:52], abs=0.2)
    assert half[:, :20].sum() == pytest.approx(whole[:, 32:52].sum(), rel=0.01)


def test_mirrored_view_is_the_mirror_image():
    item = product("shoe", 2)
    left, right = (render(alone(item, view=View(32, 32, 20, mirrored=flag))).masks[0] for flag in (False, True))
    assert np.abs(left[:, ::-1] - right).mean() < 0.02
    assert np.abs(left - right).mean() > 0.02


def test_portraits_of_a_product_differ_in_view_and_background():
    item = product("teddy", HELD_OUT + 11)
    scenes = [portrait(item, number) for number in range(4)]
    assert [scene.background for scene in scenes] == ["studio-white", "wood", "grass", "studio-gray"]
    masks = [render(scene).masks[0] for scene in scenes]
    assert all(np.abs(a - b).mean() > 0.01 for a, b in itertools.combinations(masks, 2))
    assert portrait(item, 0) == scenes[0]


def test_photographs_of_a_product_show_it_anywhere():
    scenes = [photograph(product("teddy", HELD_OUT + 11), number) for number in range(60)]
    assert {scene.placed[0].product for scene in scenes} == {product("teddy", HELD_OUT + 11)}
    assert len({scene.background for scene in scenes}) > 12
    assert {scene.angle for scene in scenes} == {"front", "side", "above", "tilted"}
    assert photograph(product("teddy", HELD_OUT + 11), 3) == scenes[3]


def test_product_is_a_function_of_category_and_instance():
    assert product("mug", 7) == product("mug", 7)
    assert product("mug", 7).shape != product("mug", 8).shape
    assert product("mug", 7).shape != product("car", 7).shape
    named = product("mug", 7, colors=("green", "pink", "yellow"), pattern="dotted")
    assert (named.look.primary, named.look.secondary, named.look.accent) == ("green", "pink", "yellow")
    assert named.look.pattern == "dotted"
    assert named.shape == product("mug", 7).shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"category": "boat", "instance": 1}, "category 'boat' is not in the product world"),
        ({"category": "mug", "instance": -1}, "instance -1 is negative"),
        ({"category": "mug", "instance": 1, "pattern": "zebra"}, "pattern 'zebra' is not in the product world"),
        ({"category": "mug", "instance": 1, "colors": ("red", "red", "blue")}, "must be three different ones"),
        ({"category": "mug", "instance": 1, "colors": ("red", "teal", "blue")}, "must be three different ones"),
    ],
)
def test_unknown_products_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        product(**arguments)
