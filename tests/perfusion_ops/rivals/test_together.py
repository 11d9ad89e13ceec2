"""Several products of a rival in one picture: adapters add up, tokens stand side by side."""

from dataclasses import replace

import pytest
import torch

from perfusion_ops.rivals.lora import Lora, train_lora
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.parts import encodings
from perfusion_ops.rivals.textual_inversion import TextualInversion, train_textual_inversion
from perfusion_ops.rivals.together import joined, merged
from perfusion_ops.text import encode, tokenize
from tests.support.rivals import example, small_rival_parts
from tests.support.runs import PIXELS_APART

BUDGET = Budget(steps=3, batch=2)


@pytest.fixture(scope="module")
def parts():
    return small_rival_parts()


@pytest.fixture(scope="module")
def adapters(parts):
    second = replace(example(1), superclass="hat")
    return [
        train_lora(parts, learned, BUDGET, Lora(rank=2, lr=0.05, identifier=word))
        for learned, word in ((example(0), "b"), (second, "c"))
    ]


def test_one_merged_adapter_draws_as_alone(adapters):
    [alone] = adapters[0].draw(["a photo of a {} on the beach"], [3], guidance=2.0, steps=2)
    [found] = merged(adapters[:1]).draw("a photo of a {0} on the beach", [3], guidance=2.0, steps=2)
    assert abs(alone.astype(int) - found.astype(int)).max() <= PIXELS_APART


def test_merged_adapters_change_the_weights_by_their_sum(parts, adapters):
    every = merged(adapters)
    assert every.phrases == ("b mug", "c hat")
    base = parts.unet.state_dict()
    single = [merged([each]).unet.state_dict() for each in adapters]
    changed = 0
    for name, weight in every.unet.state_dict().items():
        change = sum(each[name] - base[name] for each in single)
        torch.testing.assert_close(weight - base[name], change, rtol=1e-4, atol=1e-6)
        changed += bool(change.any())
    assert changed == sum(name.endswith("lora_A.default.weight") for name in adapters[0].unet.state_dict())


def test_a_scale_shrinks_every_adapters_change(parts, adapters):
    base, whole = parts.unet.state_dict(), merged(adapters).unet.state_dict()
    for name, weight in merged(adapters, scale=0.25).unet.state_dict().items():
        torch.testing.assert_close(weight - base[name], 0.25 * (whole[name] - base[name]), rtol=1e-4, atol=1e-6)


def test_joined_tokens_each_have_their_own_embedding(parts):
    first, second = (
        train_textual_inversion(parts, replace(example(seed), superclass=noun), BUDGET, TextualInversion(lr=0.1))
        for seed, noun in ((0, "mug"), (1, "hat"))
    )
    every = joined([first, second])
    seen = []

    def keep(_module, _arguments, named, _result):
        seen.append(named["encoder_hidden_states"])

    handle = parts.unet.register_forward_hook(keep, with_kwargs=True)
    try:
        every.draw("a {1} next to a {0}", [1], guidance=2.0, steps=2)
    finally:
        handle.remove()
    told = encode(
        parts.text_encoder,
        [tokenize(parts.tokenizer, "a {1} next to a {0}")],
        torch.stack([first.embedding, second.embedding])[None],
    )
    torch.testing.assert_close(seen[0][-1:], told)
    alone = encodings(parts, ["a {0} next to a"], second.embedding)
    torch.testing.assert_close(told[:, :4], alone[:, :4])


def test_a_denoiser_of_its_own_cannot_be_joined(adapters):
    with pytest.raises(ValueError, match="merge them"):
        joined(adapters)
