"""Captions: distinct, seeded, true, and within what the embedded base can read."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from perfusion_ops.mini import base_folder
from perfusion_ops.mini.world import grammar
from perfusion_ops.mini.world.grammar import MAX_TOKENS, caption, captions
from perfusion_ops.mini.world.scene import sample_scene
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, PATTERNS, phrases, superclass

CONTEXT = 32


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(base_folder() / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="module")
def many():
    return list(captions(100_000, seed=0))


def test_captions_are_distinct_and_as_many_as_asked_for(many):
    assert len(many) == len(set(many)) == 100_000


def test_every_word_of_every_caption_is_one_token(many, tokenizer):
    words = {word for line in many for word in line.replace(",", " ,").split(" ")}
    vocabulary = json.loads((base_folder() / "tokenizer" / "vocab.json").read_text())
    assert {word for word in words if f"{word}</w>" not in vocabulary} == set()
    encoded = tokenizer.encode_batch(many[:20_000])
    assert all(
        len(line.ids) == len(text.replace(",", " ,").split()) + 2
        for line, text in zip(encoded, many[:20_000], strict=True)
    )


def test_no_caption_overflows_the_context(many):
    lengths = [line.count(" ") + 1 + line.count(",") for line in many]
    assert max(lengths) <= MAX_TOKENS == CONTEXT - 2
    assert min(lengths) <= 3


def test_captions_over_the_limit_are_left_out(monkeypatch):
    # The longest captions of the grammar come once in millions, so the limit is moved to where they are common.
    monkeypatch.setattr(grammar, "MAX_TOKENS", 12)
    lengths = [line.count(" ") + 1 + line.count(",") for line in captions(2000)]
    assert len(lengths) == 2000
    assert max(lengths) == 12


def test_captions_cover_what_users_type(many):
    text = "\n".join(many)
    words = set(text.replace("\n", " ").replace(",", "").split(" "))
    assert words >= {"my", "this", "the", "product", "toy", "item", "wearing", "beside", "next", "closeup", "bear"}
    assert words >= {*CATEGORIES, *COLORS, *PATTERNS}
    for place in BACKGROUNDS:
        assert any(phrase in text for phrase in phrases(place)), place
    assert sum("a photo of" in line for line in many) > 10_000
    for line in many:
        assert line == line.strip()
        assert "  " not in line
        assert not any(f" a {vowel}" in f" {line}" for vowel in "aeiou"), line


def test_longer_stream_starts_with_the_shorter_and_seeds_differ():
    assert list(islice(captions(1000, seed=3), 50)) == list(captions(50, seed=3))
    assert list(captions(50, seed=3)) != list(captions(50, seed=4))
    assert list(captions(0)) == []


def test_captions_do_not_depend_on_the_process():
    program = (
        "import hashlib; from perfusion_ops.mini.world.grammar import captions\n"
        "print(hashlib.sha256('\\n'.join(captions(2000, seed=5)).encode()).hexdigest())"
    )
    here = hashlib.sha256("\n".join(captions(2000, seed=5)).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        other = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        assert other.stdout.strip() == here


@pytest.mark.parametrize("count", [-1, 10_000_001])
def test_count_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match="captions are out of range"):
        captions(count)


@settings(max_examples=400)
@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_captions_of_a_scene_are_true(seed, style):
    scene = sample_scene(seed).describe()
    text = caption(scene, Random(style))
    words = text.replace(",", "").split(" ")
    assert len(words) + text.count(",") <= MAX_TOKENS
    place = [phrase for phrase in phrases(scene.background) if phrase in text]
    rest = text.replace(place[0], "").split(" ") if place else words
    named = {color for look in scene.looks for color in (look.primary, look.secondary, look.emblem_color)}
    assert set(rest) & set(COLORS) <= named
    assert set(rest) & set(PATTERNS) <= {look.pattern for look in scene.looks}
    assert set(rest) & set(CATEGORIES) <= {look.category for look in scene.looks}
    assert set(rest) & {
        *(look.category for look in scene.looks),
        "object",
        "product",
        "item",
        "thing",
        "toy",
        "furniture",
        "clothing",
    }
    categories = [look.category for look in scene.looks]
    for side, left_comes_first in (("left", True), ("right", False)):
        if side in words:
            said_first = min(categories, key=words.index)
            assert (categories.index(said_first) == 0) == (scene.first_is_left == left_comes_first)
    if "closeup" in words:
        assert scene.framing == "big"
    if {"small", "tiny"} & set(words):
        assert scene.framing == "small"
    for word, angle in (("side", "side"), ("above", "above"), ("tilted", "tilted"), ("top", "above")):
        if word in rest and scene.relation is None:
            assert scene.angle == angle
    for word in ("wearing", "inside", "beside"):
        if word in words:
            assert scene.relation == word
    if "top" in rest and scene.relation is not None:
        assert scene.relation == "on"


def test_superclass_is_what_captions_say(many):
    assert superclass("teddy") == "teddy bear"
    assert superclass("mug") == "mug"
    assert all(any(f"{superclass(category)} " in line for line in many) for category in CATEGORIES)
