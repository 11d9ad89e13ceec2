"""Which words of a caption are a product's own, and captions in which they are others."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.mini import base_folder
from perfusion_ops.mini.build.denoiser import conditioned
from perfusion_ops.mini.build.owners import altered, owners, split
from perfusion_ops.mini.build.words import CONTEXT, load_tokenizer
from perfusion_ops.mini.world.grammar import caption
from perfusion_ops.mini.world.products import HELD_OUT
from perfusion_ops.mini.world.scene import sample_scene
from perfusion_ops.mini.world.vocabulary import COLORS, EMBLEMS, PATTERNS

SEEN = range(HELD_OUT, HELD_OUT + 1_000_000)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(base_folder() / "tokenizer")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a photo of a red checked mug on the beach", "0000111000"),
        ("an image of this teddy bear with a blue star in the snow", "0000110011000"),
        ("a red and white striped hat with a heart", "011111001"),
        ("the photo of a green lamp wearing the black hat on a red background", "00001100220000"),
        ("in a green field , a picture of a duck and a plain toy", "00000000010022"),
        ("a mug with a red hat", "010022"),
        ("clock", "1"),
    ],
)
def test_examples(line, expected):
    assert "".join(map(str, owners(line.split()))) == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6))
def test_every_product_of_a_caption_has_its_own_words(number):
    scene = sample_scene(number, SEEN).describe()
    words = split(caption(scene, Random(number)))
    found = owners(words)
    assert max(found) == len(scene.looks)
    texts = [{word for word, owner in zip(words, found, strict=True) if owner == place} for place in (1, 2)]
    told = texts if scene.relation != "beside" or scene.looks[0].category in texts[0] else texts[::-1]
    for look, text in zip(scene.looks, told, strict=False):
        if look.category in text or "bear" in text:
            assert text & set(COLORS) <= {look.primary, look.secondary}
            assert text & set(PATTERNS) <= {look.pattern}
    # Emblems belong to no place and no camera.
    assert all(owner for word, owner in zip(words, found, strict=True) if word in EMBLEMS)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_altered_captions_differ_in_the_words_of_other_products_alone(number, but):
    words = split(caption(sample_scene(number, SEEN).describe(), Random(number)))
    found = owners(words)
    made = altered(words, found, but, Random(number))
    assert len(made) == len(words)
    for before, after, owner in zip(words, made, found, strict=True):
        assert (before == after) == (owner in {0, but} or before == "and")


def test_each_position_is_read_from_the_caption_of_its_product(tokenizer):
    lines = ["a red mug next to a blue hat with a star in the snow", "a mug on the beach", ""]
    ids, owner = conditioned(tokenizer, lines, [True, False, False], Random(1))
    assert ids.shape == (3, 3, CONTEXT)
    plain = tokenizer(lines, padding="max_length", max_length=CONTEXT, return_tensors="pt")["input_ids"]
    assert owner[1:].sum() == 0
    assert torch.equal(ids[1:, 0], plain[1:])
    assert owner[0, :15].tolist() == [0, 0, 1, 1, 0, 0, 0, 2, 2, 0, 0, 2, 0, 0, 0]
    own = ids[0].gather(0, owner[0][None])[0]
    # Read at its own places, the caption is the true one; read anywhere else, no product is.
    assert torch.equal(own[owner[0] > 0], plain[0][owner[0] > 0])
    assert (ids[0, 0][owner[0] > 0] != plain[0][owner[0] > 0]).all()
    assert torch.equal(ids[0, 0][owner[0] == 0], plain[0][owner[0] == 0])
