"""Products and prompts: who is in which set, and that a real scene shows what a prompt asks for."""

from collections import Counter

import numpy as np
import pytest

from perfusion_ops.mini.methods.sets import PROMPTS, asks, photos, products, real_scene, strangers
from perfusion_ops.mini.world.contexts import named_context
from perfusion_ops.mini.world.grammar import MAX_TOKENS, captions
from perfusion_ops.mini.world.products import HELD_OUT
from perfusion_ops.mini.world.scene import photograph, render
from perfusion_ops.mini.world.vocabulary import CATEGORIES, superclass

SETS = ("tuning", "a", "b")


def test_sets_are_disjoint_and_cover_all_classes():
    found = {name: products(name, 24) for name in SETS}
    for items in found.values():
        assert Counter(item.look.category for item in items) == dict.fromkeys(CATEGORIES, 2)
        assert len({item.instance for item in items}) == 24
    others = [item for category in CATEGORIES for item in strangers(category, 50)]
    numbers = [{item.instance for item in items} for items in (*found.values(), others)]
    assert sum(len(each) for each in numbers) == len(set.union(*numbers))
    assert min(min(each) for each in numbers) >= HELD_OUT
    assert products("a", 5) == found["a"][:5]


def test_prompts_ask_for_every_kind_and_differ_between_products():
    items = products("a", 24)
    asked = [asks(item, PROMPTS) for item in items]
    for item, each in zip(items, asked, strict=True):
        assert Counter(ask.kind for ask in each) == {"context": 10, "angle": 2, "color": 2, "framing": 4, "other": 2}
        assert len({ask.background for ask in each}) >= 12
        assert all(ask.other != item.look.category for ask in each)
        assert all(ask.color not in {item.look.primary, item.look.secondary} for ask in each)
        assert asks(item, 5) == each[:5]
    assert {ask.kind for ask in asked[0][:5]} == {"context", "color", "other", "framing"}
    assert len({tuple(ask.prompt for ask in each) for each in asked}) == 24


def test_prompts_are_in_words_of_the_grammar():
    known = {word for line in captions(20_000, seed=5) for word in line.replace(",", " ").split()}
    for item in products("b", 12):
        for ask in asks(item, PROMPTS):
            text = ask.prompt.replace("{}", superclass(item.look.category))
            assert named_context(ask.prompt) == ask.background
            assert ask.prompt.count("{}") == 1
            assert set(text.split()) <= known
            assert len(text.split()) <= MAX_TOKENS


@pytest.mark.parametrize("number", range(PROMPTS))
def test_real_scenes_show_what_is_asked(number):
    for item in products("tuning", 12):
        ask = asks(item, PROMPTS)[number]
        scene = real_scene(item, ask, 0)
        assert scene == real_scene(item, ask, 0) != real_scene(item, ask, 1)
        has = scene.describe()
        assert has.background == ask.background
        assert (has.angle, has.framing) == (ask.angle, ask.framing)
        own = next(placed.product for placed in scene.placed if placed.product.look.category == item.look.category)
        assert (own == item) == ask.same_look
        if ask.color:
            assert own.look.primary == ask.color
            assert (own.shape, own.look.pattern) == (item.shape, item.look.pattern)
        assert {look.category for look in has.looks} == {item.look.category} | ({ask.other} if ask.other else set())


def test_photos_are_photographs_with_their_masks():
    [item] = products("a", 1)
    taken = photos(item, 2)
    for number, (picture, mask) in enumerate(taken):
        drawn = render(photograph(item, number))
        np.testing.assert_array_equal(np.asarray(picture), drawn.pixels)
        assert np.abs(np.asarray(mask) / 255 - drawn.masks[0]).max() < 0.003
    assert len(photos(item, 1)) == 1
