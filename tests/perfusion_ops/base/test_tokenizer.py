"""Token counts are those of the tokenizer itself, and a base model's files say which texts it can read."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer, words
from perfusion_ops.mini import base_folder
from tests.support.tokenizer_folders import small_clip

MINI = load_tokenizer(describe(base_folder()))
ODD = [
    "mug's",
    "é",
    "e\u0301",
    "\u0301",
    "杯子",
    "😀",
    "<|endoftext|>",
    "<|startoftext|>x",
    "İ",
    "ß",
    "Σ",
    "!!",
    "a1b2",
    "\u3000",
    "\u200b",
    ",",
]
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["a", "mug", "hat", *ODD])), max_size=12)


@pytest.mark.parametrize("tokenizer", [MINI, small_clip()], ids=["mini", "clip"])
@pytest.mark.parametrize("glue", [" ", ""])
def test_a_count_is_what_the_tokenizer_makes_of_the_text(tokenizer, glue):
    counter = TokenCounter(tokenizer)

    @settings(deadline=None, max_examples=300)
    @given(TEXT)
    def check(parts):
        text = glue.join(parts)
        assert counter.count(text) == len(words(tokenizer, text))

    check()


def test_an_added_token_with_a_blank_is_counted_whole():
    tokenizer = load_tokenizer(describe(base_folder()))
    tokenizer.add_tokens(["teddy bear"])
    assert TokenCounter(tokenizer).count("a teddy bear") == len(words(tokenizer, "a teddy bear")) == 2


def test_characters_outside_the_vocabulary_are_unknown():
    mini, clip = TokenCounter(MINI), TokenCounter(small_clip())
    assert [mini.knows(text) for text in ("mug", "杯子", "😀", "mug 😀", "<|endoftext|>")] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert [clip.knows(text) for text in ("mug", "杯子", "😀", "\u00a0")] == [True, True, True, False]


def test_the_tokenizer_is_the_one_that_the_model_is_loaded_with():
    from perfusion_ops.base_model import load_base

    loaded = load_base(describe(base_folder())).tokenizer
    assert type(loaded) is type(MINI)
    assert (loaded.get_vocab(), loaded.model_max_length) == (MINI.get_vocab(), MINI.model_max_length)


def _edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda base: shutil.rmtree(base / "tokenizer"), "has no tokenizer"),
        (lambda base: shutil.rmtree(base / "scheduler"), "scheduler_config.json is missing"),
        (
            lambda base: _edit(base / "scheduler/scheduler_config.json", prediction_type="flow"),
            "prediction_type 'flow'",
        ),
        (lambda base: (base / "tokenizer/tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
        (lambda base: _edit(base / "tokenizer/tokenizer_config.json", model_max_length=77), "77 tokens and the text"),
        (lambda base: _edit(base / "perfusion.json", templates=["a photo"]), "holds {} once"),
        (lambda base: _edit(base / "perfusion.json", templates=["a {} on a {}"]), "holds {} once"),
        (lambda base: _edit(base / "perfusion.json", training={"stepz": 1}), "stepz"),
        (lambda base: _edit(base / "perfusion.json", sampling={"width": 100}), "multiple of 8"),
        (lambda base: _edit(base / "perfusion.json", resolution=100), "multiple of 8"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_before_it_is_loaded(tmp_path, spoil, why):
    shutil.copytree(base_folder(), tmp_path / "base")
    spoil(tmp_path / "base")
    with pytest.raises(BaseError, match=why):
        load_tokenizer(describe(tmp_path / "base"))
