"""Prompts of several chunks: divided at words, encoded as the text encoder encodes each chunk, and edited in each."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.base.chunks import capacity, divide
from perfusion_ops.base.folder import describe
from perfusion_ops.base.tokenizer import load_tokenizer
from perfusion_ops.conditioning import PromptRow, condition, count_chunks
from perfusion_ops.families.family import POOLED
from perfusion_ops.mini import base_folder
from perfusion_ops.pipelines import make_pipeline
from perfusion_ops.regions import condition_regions, row_regions
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import PromptTooLongError, substitute, tokenize
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric, small_base
from tests.support.tiny_pixart import pixart_base
from tests.support.tiny_xl import WIDTH, xl_base

TOKENIZER = load_tokenizer(describe(base_folder()))
LIMIT = TOKENIZER.model_max_length
FIRST = "a photo of a red mug on a wooden table in the snow with a blue hat and a green chair beside it and a lamp"
SECOND = "and a teddy bear in the forest"
SAMPLER = Sampler(16, 16, 3, 4.0, "ddim")


@st.composite
def bodies(draw):
    count = draw(st.integers(0, 14))
    glued = [draw(st.booleans()) and draw(st.booleans()) for _ in range(count)]
    inside = [draw(st.booleans()) for _ in range(count)]
    if count:
        glued[0] = inside[0] = False
    return glued, [a or b for a, b in zip(glued, inside, strict=True)]


def divisions(count, chunks, room, barred):
    """All divisions of tokens into chunks, none of which begins at a barred token."""
    places = [place for place in range(1, count) if not barred[place]]
    for number in range(chunks):
        for chosen in combinations(places, number):
            edges = [0, *chosen, count]
            if all(stop - start <= room for start, stop in pairwise(edges)):
                yield edges


@settings(deadline=None, max_examples=400)
@given(bodies(), st.integers(1, 4), st.integers(1, 5))
def test_a_division_is_whole_and_divides_words_only_if_it_must(body, chunks, room):
    glued, inside = body
    found = divide(glued, inside, chunks, room)
    count = len(glued)
    possible = count == 0 or any(True for _ in divisions(count, chunks, room, glued))
    assert (found is not None) == possible
    if found is None:
        return
    assert len(found) == chunks
    assert [found[0][0], found[-1][1]] == [0, count]
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(stop - start <= room for start, stop in found)
    begun = [start for start, stop in found[1:] if stop > start]
    assert not any(glued[start] for start in begun)
    if any(True for _ in divisions(count, chunks, room, inside)):
        assert not any(inside[start] for start in begun)


def test_a_prompt_that_fits_is_laid_out_as_ever_and_an_empty_chunk_follows():
    one, two = tokenize(TOKENIZER, "a {0} in the snow"), tokenize(TOKENIZER, "a {0} in the snow", chunks=2)
    empty = tokenize(TOKENIZER, "")
    assert (two.ids, two.slots) == (one.ids + empty.ids, one.slots + empty.slots)
    assert two.length == one.length


def test_words_and_concepts_with_their_superclass_stay_in_one_chunk():
    for padding in range(24, 31):
        prompt = "a " * padding + "{0} photographed"
        tokens = tokenize(TOKENIZER, prompt, ["wooden teddy bear"], chunks=2)
        place = tokens.slots.index(0)
        group = tokens.nouns.index(0)
        assert place // LIMIT == group // LIMIT
        assert group - place == len(TOKENIZER("wooden teddy bear", add_special_tokens=False)["input_ids"])


def test_a_prompt_that_fits_no_number_of_chunks_says_what_would():
    long = "a " * (2 * (LIMIT - 2) + 1)
    with pytest.raises(PromptTooLongError, match=f"has {2 * (LIMIT - 2) + 3} tokens .* 2 chunks take {2 * LIMIT - 2}"):
        tokenize(TOKENIZER, long, chunks=2)
    assert tokenize(TOKENIZER, long, chunks=3).chunks == 3
    assert capacity(LIMIT, 2) == 2 * LIMIT - 2


@pytest.mark.parametrize("spelt", [False, True])
@pytest.mark.parametrize("padding", [0, 20, 26, 27, 28, 29, 30, 31])
def test_positions_are_aligned_within_their_chunk(padding, spelt):
    nouns = ["teddy bear", "mug"] if spelt else []
    prompt = "a " * padding + "{0} next to a {1} in the snow and a {0}"
    tokens = tokenize(TOKENIZER, prompt, nouns, chunks=2)
    plain, align = substitute(TOKENIZER, prompt, ["teddy bear", "mug"], nouns, chunks=2)
    assert len(align) == len(tokens.ids) == 2 * LIMIT
    words = tokenize(TOKENIZER, prompt.format("teddy bear", "mug"), chunks=2)
    assert sorted(plain.ids) == sorted(words.ids)
    for place, (token, slot) in enumerate(zip(tokens.ids, tokens.slots, strict=True)):
        there = plain.ids[align[place]]
        if slot < 0 and token != TOKENIZER.eos_token_id:
            assert there == token
        elif slot >= 0:
            assert there == TOKENIZER(("bear", "mug")[slot], add_special_tokens=False)["input_ids"][-1]


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def parts():
    """Two texts that fill a chunk each, so that their sum is divided between them."""
    first = FIRST
    while len(tokenize(TOKENIZER, first, chunks=2).ids) and tokenize(TOKENIZER, first, chunks=2).length < LIMIT:
        try:
            tokenize(TOKENIZER, f"{first} a")
        except PromptTooLongError:
            break
        first += " a"
    return first, SECOND


def reference(base, prompts):
    """Encodings of chunks by the text encoder itself, side by side."""
    encoder = base.texts.models[0].encoder
    ids = base.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    return torch.cat([*encoder(ids).last_hidden_state], 0)[None]


def test_without_concepts_it_is_the_unmodified_pipeline_on_the_encodings_of_the_chunks(base, metric):
    first, second = parts()
    row = RenderRow(PromptRow(f"{first} {second}", chunks=2), PromptRow("dark", chunks=2), 3)
    pipe = make_pipeline(base, "ddim")
    wanted = pipe(
        prompt_embeds=reference(base, [first, second]) @ base.stack.weight.mT,
        negative_prompt_embeds=reference(base, ["dark", ""]) @ base.stack.weight.mT,
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(3)],
        output_type="pt",
    ).images[0]
    [found] = render(base, metric, [row], SAMPLER)
    assert (found == (wanted * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_chunk_is_edited_as_a_prompt_of_its_own(base, metric, lock, weighted):
    """The edit acts position by position, and the text encoder never sees two chunks at once."""
    first, _ = parts()
    second = "and a (red)1.5 {0} in the snow" if weighted else "and a red {0} in the snow"
    acting = PromptRow("", (gated_concept(base, metric, 1),), (0.3,), (0.15,), lock, weighted=weighted)
    both = condition(base, metric, [replace(acting, prompt=f"{first} {second}", chunks=2)]).kv[0]
    alone = condition(base, metric, [replace(acting, prompt=text) for text in (first, second)]).kv
    torch.testing.assert_close(both, alone.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_a_mixed_batch_of_one_and_two_chunks_equals_its_rows(base, metric):
    mug, bear = gated_concept(base, metric, 1), offset_concept(base, metric, 2, "teddy bear")
    first, second = parts()
    acting = {"bias": (0.3,), "temperature": (0.15,)}
    told = [
        PromptRow("a {0} in the snow", (mug,), **acting),
        PromptRow(f"{first} a {{0}} {second}", (mug,), chunks=2, **acting),
        PromptRow(f"{first} a {{0}} {second}", (bear,), chunks=2, **acting),
        PromptRow(f"{first} {second}", chunks=2),
        PromptRow("a mug"),
        PromptRow(
            f"{first} a {{0}} beside a {{1}}", (mug, bear), (0.3, 0.3), (0.15, 0.15), combine="regional", chunks=2
        ),
    ]
    rows = [RenderRow(row, PromptRow("dark", chunks=row.chunks), seed) for seed, row in enumerate(told)]
    together = render(base, metric, rows, SAMPLER)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(alone.astype(int) - picture.astype(int)).max() <= 1
    short = [RenderRow(told[place], PromptRow("dark"), place) for place in (0, 4)]
    for picture, place in zip(render(base, metric, short, SAMPLER), (0, 4), strict=True):
        assert abs(picture.astype(int) - together[place].astype(int)).max() <= 1


def test_the_noun_of_a_second_chunk_is_where_attention_is_read(base, metric):
    first, second = parts()
    row = PromptRow(
        f"{first} {second} a {{0}}", (offset_concept(base, metric, 2, "teddy bear"),), (0.3,), (0.15,), chunks=2
    )
    regions = row_regions(base, [row])
    tokens = base.texts.tokenize(row.prompt, ["teddy bear"], chunks=2)
    [place] = regions.nouns[0, 0].nonzero().flatten().tolist()
    assert place == tokens.nouns.index(0) > LIMIT
    conditioning, found = condition_regions(base, metric, [row])
    assert conditioning.kv.shape[1] == found.nouns.shape[2] == 2 * LIMIT


def test_a_prompt_and_its_negative_prompt_have_equal_chunks(base, metric):
    with pytest.raises(ValueError, match="different numbers of chunks"):
        render(base, metric, [RenderRow(PromptRow("a", chunks=2), PromptRow(""), 1)], SAMPLER)


def test_as_few_chunks_as_every_prompt_of_a_row_needs(base, metric):
    bear = gated_concept(base, metric, 1, "wooden teddy bear")
    most = "a " * (LIMIT - 3)
    local = PromptRow(most + "{0}", (bear,), (0.3,), (0.15,))
    assert count_chunks(base, [PromptRow("a mug")], 4) == 1
    assert count_chunks(base, [local], 4) == 1
    assert count_chunks(base, [replace(local, lock="global")], 4) == 2  # with the words of the superclass
    assert count_chunks(base, [local, PromptRow(2 * most)], 4) == 2
    with pytest.raises(PromptTooLongError):
        count_chunks(base, [PromptRow(2 * most)], 1)


def test_sdxl_pools_the_first_chunk(tmp_path):
    base = xl_base(tmp_path)
    metric = random_metric(WIDTH, base_digest=base.folder.metric_digest)
    first, second = parts()
    both = condition(base, metric, [PromptRow(f"{first} {second}", chunks=2)])
    alone = condition(base, metric, [PromptRow(first), PromptRow(second)])
    torch.testing.assert_close(both.kv[0], alone.kv.flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.extra[POOLED][0], alone.extra[POOLED][0], rtol=1e-5, atol=1e-5)
    row = RenderRow(PromptRow(f"{first} {second}", chunks=2), PromptRow("", chunks=2), 3)
    [picture] = render(base, metric, [row], replace(SAMPLER, scheduler="euler"))
    assert picture.shape == (16, 16, 3)


def test_an_encoder_that_ignores_padding_reads_one_piece(tmp_path):
    base = pixart_base(tmp_path)
    with pytest.raises(ValueError, match="set prompt_chunks to 1"):
        base.texts.tokenize("a mug", chunks=2)
