"""Quality's arithmetic against naive references, its prompts against the grammar, and one whole run."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perfusion_ops.mini import base_folder
from perfusion_ops.mini.build import dual, identity, reader, scorers
from perfusion_ops.mini.build.recipe import TINY
from perfusion_ops.mini.build.words import write_tokenizer
from perfusion_ops.mini.quality import __main__ as command
from perfusion_ops.mini.quality.figures import (
    Reading,
    equal_error_rate,
    frechet_distance,
    pair_likenesses,
    reading,
    recall_at_1,
)
from perfusion_ops.mini.quality.prompts import Shown, requests, scene_of, shown
from perfusion_ops.mini.world.contexts import named_context
from perfusion_ops.mini.world.grammar import MAX_TOKENS, captions
from perfusion_ops.mini.world.products import HELD_OUT
from perfusion_ops.mini.world.scene import render, sample_scene
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, PATTERNS, phrases, superclass

likeness = st.lists(st.integers(-8, 8).map(lambda tenth: tenth / 8), min_size=1, max_size=25)


@settings(max_examples=100)
@given(same=likeness, different=likeness)
def test_equal_error_rate_is_the_best_threshold_of_all(same, different):
    thresholds = [*same, *different, 9.0]
    naive = min(
        max(sum(s < t for s in same) / len(same), sum(d >= t for d in different) / len(different)) for t in thresholds
    )
    assert equal_error_rate(np.array(same), np.array(different)) == pytest.approx(naive)


def test_equal_error_rate_of_known_distributions():
    rng = np.random.default_rng(0)
    # Two unit Gaussians two apart cross at one standard deviation: 15.87 % of each lie beyond.
    assert equal_error_rate(rng.normal(2, 1, 40_000), rng.normal(0, 1, 40_000)) == pytest.approx(0.1587, abs=0.005)
    assert equal_error_rate(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 0
    assert equal_error_rate(np.array([0.1, 0.2]), np.array([0.9, 0.8])) == 1


def test_pairs_are_each_counted_once():
    vectors = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0][:, :3]
    labels = np.array([0, 0, 1, 1, 1, 2, 3])
    same, different = pair_likenesses(vectors, labels)
    naive = {True: [], False: []}
    for i in range(7):
        for j in range(i):
            naive[bool(labels[i] == labels[j])].append(vectors[i] @ vectors[j])
    np.testing.assert_allclose(np.sort(same), np.sort(naive[True]))
    np.testing.assert_allclose(np.sort(different), np.sort(naive[False]))


def test_frechet_distance_of_gaussians_that_one_can_work_out():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(20_000, 3))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + np.array([3, 0, -4])) == pytest.approx(25, rel=1e-6)
    # Doubling every deviation: the sum over axes of (2s - s)^2.
    deviations = features.std(0, ddof=1)
    assert frechet_distance(features, features * 2 - features.mean(0)) == pytest.approx((deviations**2).sum(), rel=1e-3)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 6))
def test_frechet_distance_equals_the_definition(seed, width):
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(size=(50, width)) @ rng.normal(size=(width, width)) for _ in range(2))
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    naive = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(first, second) == pytest.approx(naive, rel=1e-5, abs=1e-6)
    assert frechet_distance(second, first) == pytest.approx(naive, rel=1e-5, abs=1e-6)


def test_recall_counts_both_directions():
    pictures, captions = np.eye(4), np.eye(4)
    assert recall_at_1(pictures, captions) == 1
    # Caption 0 points at picture 1: of the captions 3 of 4 find theirs; picture 0 ties at zero and is found first.
    captions = captions[[1, 1, 2, 3]]
    by_caption = np.mean([(pictures @ captions[n]).argmax() == n for n in range(4)])
    by_picture = np.mean([(captions @ pictures[n]).argmax() == n for n in range(4)])
    assert recall_at_1(pictures, captions) == (by_caption + by_picture) / 2 < 1


HEADS = {
    "class": CATEGORIES, "context": BACKGROUNDS, "color": COLORS, "pattern": PATTERNS,
    "angle": ("front", "side", "above", "tilted"), "relation": ("none", "beside", "on", "wearing", "inside"),
}  # fmt: skip


def certain(asked):
    """What a reader that is always right says of pictures that show what was asked."""
    found = {head: np.zeros((len(asked), len(labels))) for head, labels in HEADS.items()}
    for row, want in enumerate(asked):
        found["class"][row, [CATEGORIES.index(category) for category in want.categories]] = (1.0, 0.6)[
            : len(want.categories)
        ]
        chosen = {"context": want.background, "relation": want.relation or "none", "color": want.color}
        for head, label in (chosen | {"pattern": want.pattern, "angle": want.angle}).items():
            if label is not None:
                found[head][row, HEADS[head].index(label)] = 1
    return found


def test_reading_counts_what_was_asked_and_nothing_else():
    asked = [shown(sample_scene(number).describe()) for number in range(200)]
    found = certain(asked)
    assert set(reading(found, HEADS, asked).model_dump().values()) == {1.0}
    alone = [row for row, want in enumerate(asked) if len(want.categories) == 1]
    both = [row for row, want in enumerate(asked) if len(want.categories) == 2]
    found["color"][alone[:3]] = np.roll(found["color"][alone[:3]], 1, axis=1)
    found["color"][both] = 1 / 7  # nobody asked
    found["class"][both[:2]] = 0
    found["class"][both[:2], 0] = 1  # the second best is then any other
    read = reading(found, HEADS, asked)
    assert read.color_share == pytest.approx(1 - 3 / len(alone))
    assert read.class_share == 1
    assert read.both_share < 1
    assert reading(found, HEADS, [Shown(("mug",), "beach")] * 200).color_share is None


def test_prompts_cover_every_category_before_every_background_evenly():
    asked = requests(1000, seed=3)
    assert asked == requests(1000, seed=3) != requests(1000, seed=4)
    alone = [request.shown for request in asked if request.shown.relation is None]
    assert len(alone) == 600
    places = Counter((want.categories[0], want.background) for want in alone)
    assert len(places) == len(CATEGORIES) * len(BACKGROUNDS)
    assert set(places.values()) == {2, 3}
    for words, all_words in (("color", COLORS), ("pattern", PATTERNS)):
        counts = Counter(getattr(want, words) for want in alone)
        assert counts.pop(None) == 300
        assert set(counts) == set(all_words)
        assert max(counts.values()) - min(counts.values()) <= 1
    relations = Counter(request.shown.relation for request in asked if request.shown.relation)
    assert set(relations.values()) == {100}
    with pytest.raises(ValueError, match="take 24 or more"):
        requests(23)


def test_prompts_say_what_is_asked_in_words_of_the_grammar():
    known = {word for line in captions(20_000, seed=5) for word in line.replace(",", " ").split()}
    for request in requests(600, seed=1):
        want = request.shown
        assert named_context(request.prompt) == want.background
        scene = re.sub("|".join(map(re.escape, phrases(want.background))), "", request.prompt)
        assert all(superclass(category) in scene for category in want.categories)
        assert [color for color in COLORS if re.search(rf"\b{color}\b", scene)] == ([want.color] if want.color else [])
        assert [pattern for pattern in PATTERNS if pattern in scene] == ([want.pattern] if want.pattern else [])
        if want.relation:
            first, second = (superclass(category) for category in want.categories)
            assert re.search(rf"\b{first}\b.*\b{second}\b", scene)
        assert set(request.prompt.split()) <= known
        assert len(request.prompt.split()) <= MAX_TOKENS


def test_real_scenes_show_what_was_asked_with_unseen_products():
    for number, request in enumerate(requests(400, seed=2)):
        want, scene = request.shown, scene_of(request.shown, number)
        has = shown(scene.describe())
        assert has.categories == want.categories
        assert (has.background, has.relation) == (want.background, want.relation)
        assert want.color in {None, has.color}
        assert want.pattern in {None, has.pattern}
        assert all(item.product.instance >= HELD_OUT for item in scene.placed)
        assert scene == scene_of(request.shown, number) != scene_of(request.shown, number + 1)
        for item in scene.placed:
            look = item.product.look
            assert len({look.primary, look.secondary, look.accent}) == 3
    picture = render(scene_of(Shown(("duck", "mug"), "beach", relation="inside"), 5))
    assert picture.masks[0].sum() > 20
    assert picture.masks[1].sum() > 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole measurement of the embedded base with untrained scorers."""
    home, out = tmp_path_factory.mktemp("scorers"), tmp_path_factory.mktemp("out")
    tokenizer = write_tokenizer(home / "dual-tokenizer")
    torch.manual_seed(0)
    scorers.write(reader.build(TINY), home / "reader")
    scorers.write(identity.build(TINY), home / "identity")
    scorers.write(dual.build(TINY, tokenizer), home / "dual")
    tokenizer.save_pretrained(home / "dual")
    return command.measure(base_folder(), home, out, prompts=24, scenes=240), home, out


def test_a_measurement_writes_figures_and_a_sheet_and_fails_an_untrained_model(run):
    quality, _, out = run
    assert json.loads((out / "quality.json").read_text()) == json.loads(quality.model_dump_json())
    assert not quality.ok
    assert quality.model.prompts == 24
    assert quality.scorer.pictures == 240
    assert quality.scorer.identity_equal_error_rate > 0.1
    assert quality.scorer.dual_recall_at_1_of_200 < 0.1
    shares = {**quality.model.drawn.model_dump(), **quality.model.ceiling.model_dump()}
    assert {name for name, share in shares.items() if share is None} == {"angle_share"}  # no prompt names one
    assert 0 < quality.model.frechet_distance_of_real < quality.model.frechet_distance
    with Image.open(out / "contact.png") as sheet:
        assert sheet.width == 8 * (sheet.height // 3 - 77 + 12) == 8 * 140
    for figure in ("class_share", "frechet distance", "identity", "dual"):
        assert figure in command.table(quality)


def test_every_bar_decides(run):
    quality = run[0]
    reached = dict.fromkeys(Reading.model_fields, 1.0)

    def outcome(eer=0.0, **shares):
        scorer = quality.scorer.model_copy(update={"identity_equal_error_rate": eer})
        return command.met(scorer, quality.model.model_copy(update={"drawn": Reading(**(reached | shares))}))

    assert outcome()
    assert outcome(0.03, **command.AT_LEAST)
    assert not outcome(0.031)
    for name, bar in command.AT_LEAST.items():
        assert not outcome(**{name: bar - 0.001})
        assert not outcome(**{name: None})


def test_a_bad_folder_ends_with_a_message(run, tmp_path, capsys):
    _, home, _ = run
    for arguments, message in (
        (["--base", str(tmp_path), "--scorers", str(home)], "is not a base model"),
        (["--base", str(base_folder()), "--scorers", str(tmp_path)], "there is no folder"),
        (["--base", str(base_folder()), "--scorers", str(home), "--prompts", "5"], "take 24 or more"),
    ):
        with pytest.raises(SystemExit) as exit_:
            command.main([*arguments, "--out", str(tmp_path / "out")])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
