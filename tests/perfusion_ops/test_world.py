"""The product world: the same everywhere, complete, visible, and as the embedded base has learnt it."""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.mini.backgrounds import background
from perfusion_ops.mini.colors import shade
from perfusion_ops.mini.products import HELD_OUT, TRAINING_INSTANCES, product
from perfusion_ops.mini.scene import Placed, Scene, portrait, render, sample_scene, sample_view
from perfusion_ops.mini.sprites import View
from perfusion_ops.mini.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, PATTERNS

SEEDS = st.integers(0, 2**40)
MIDDLE = View(32, 36, 20)

# Mean colour of each background: the embedded base's weights know these and no others.
BACKGROUND_MEANS = {
    "beach": (186, 202, 191),
    "snow": (214, 224, 234),
    "grass": (114, 181, 128),
    "city": (43, 42, 57),
    "wood": (160, 108, 62),
    "brick": (173, 107, 91),
    "forest": (59, 72, 40),
    "desert": (232, 167, 95),
    "underwater": (60, 136, 169),
    "kitchen": (169, 178, 186),
    "space": (27, 20, 38),
    "studio-red": (182, 41, 45),
    "studio-blue": (50, 86, 182),
    "studio-green": (55, 150, 77),
    "studio-yellow": (218, 191, 68),
    "studio-white": (218, 218, 218),
    "studio-purple": (123, 68, 155),
    "studio-gray": (123, 123, 125),
}
COLOR_MEANS = {
    "red": (216, 33, 42),
    "orange": (241, 123, 23),
    "yellow": (245, 220, 35),
    "green": (38, 157, 59),
    "blue": (42, 99, 216),
    "purple": (133, 64, 172),
    "pink": (247, 142, 191),
    "brown": (121, 74, 42),
    "white": (245, 241, 235),
    "black": (34, 36, 40),
}
# Share of the picture that each category covers, seen as MIDDLE, on average over twenty products.
CATEGORY_AREAS = {
    "mug": 0.197,
    "chair": 0.180,
    "teddy": 0.205,
    "bottle": 0.118,
    "shoe": 0.175,
    "bag": 0.158,
    "lamp": 0.143,
    "hat": 0.146,
    "clock": 0.230,
    "car": 0.167,
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
        "from perfusion_ops.mini.scene import render, sample_scene; import hashlib\n"
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


def test_pairs_stand_apart():
    rng = np.random.default_rng(0)
    views = [(sample_view(rng, "pair").x, sample_view(rng, "pair", right=True).x) for _ in range(50)]
    assert all(left < 20 and right > 44 for left, right in views)


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


@settings(deadline=None, max_examples=60)
@given(SEEDS)
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
    assert areas.max() < 0.6
    if scene.framing == "big":
        assert areas[0] > 0.1
    if scene.framing == "small":
        assert areas[0] < 0.12


@settings(deadline=None, max_examples=40)
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


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_descriptions_are_true_and_training_never_meets_a_held_out_product(seed):
    scene = sample_scene(seed)
    words = scene.describe()
    masks = render(scene).masks
    assert all(item.product.instance < TRAINING_INSTANCES for item in scene.placed)
    assert words.wears_hat == any(item.worn for item in scene.placed)
    if words.framing == "pair":
        columns = [float((mask.sum(axis=0) * np.arange(64)).sum() / mask.sum()) for mask in masks]
        assert words.first_is_left == (columns[0] < columns[1])
    if words.wears_hat:
        assert words.looks[-1].category == "hat"
        rows = [float((mask.sum(axis=1) * np.arange(64)).sum() / mask.sum()) for mask in masks]
        assert rows[1] < rows[0]


def test_scenes_come_in_the_shares_that_the_base_was_trained_on():
    scenes = [sample_scene(seed) for seed in range(3000)]
    assert np.mean([s.framing == "pair" for s in scenes]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([s.placed[-1].worn for s in scenes]) == pytest.approx(0.063, abs=0.015)
    assert np.mean([s.background.startswith("studio-") for s in scenes]) == pytest.approx(0.25, abs=0.03)
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
    assert np.array_equal(half[:, :20], whole[:, 32:52])


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
