"""Each rival learns the numbers that its name says and no others, starts at the base model, and learns."""

import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.rivals import custom_diffusion, dreambooth, lora, textual_inversion
from perfusion_ops.rivals.custom_diffusion import CustomDiffusion
from perfusion_ops.rivals.dreambooth import DreamBooth
from perfusion_ops.rivals.lora import Lora, PivotalTuning
from perfusion_ops.rivals.objective import Budget, draw, row_losses
from perfusion_ops.rivals.ours import stacked, train_ours
from perfusion_ops.rivals.parts import encodings, spoken, word_embedding
from perfusion_ops.rivals.personalised import Tuned, unchanged
from perfusion_ops.rivals.prior import class_pictures
from perfusion_ops.rivals.textual_inversion import TextualInversion
from perfusion_ops.training.trainer import Trainer
from tests.support.rivals import example, small_rival_parts
from tests.support.runs import PIXELS_APART, check_alike
from tests.support.tiny_base import random_metric

RARE = "style"  # one token of the toy base
STILL = 1e-30
METHODS = {
    "textual inversion": (
        textual_inversion,
        textual_inversion.train_textual_inversion,
        TextualInversion(lr=0.05),
        {"lr": STILL},
    ),
    "textual inversion with noun": (
        textual_inversion,
        textual_inversion.train_textual_inversion,
        TextualInversion(lr=0.05, noun=True),
        {"lr": STILL},
    ),
    "custom diffusion": (
        custom_diffusion,
        custom_diffusion.train_custom_diffusion,
        CustomDiffusion(lr=0.01, start=RARE),
        {"lr": STILL, "lr_token": STILL},
    ),
    "lora 4": (lora, lora.train_lora, Lora(rank=4, lr=0.01, identifier=RARE), {"lr": STILL}),
    "lora 16": (lora, lora.train_lora, Lora(rank=16, lr=0.01, identifier=RARE), {"lr": STILL}),
    "pivotal tuning": (
        lora,
        lora.train_pivotal_tuning,
        PivotalTuning(lr=0.01, lr_token=0.02, identifier=RARE),
        {"lr": STILL, "lr_token": STILL},
    ),
    "dreambooth": (dreambooth, dreambooth.train_dreambooth, DreamBooth(lr=0.001, identifier=RARE), {"lr": STILL}),
    "dreambooth with prior": (
        dreambooth,
        dreambooth.train_dreambooth,
        DreamBooth(lr=0.001, identifier=RARE, prior_rows=1, prior_pictures=3, prior_steps=2),
        {"lr": STILL},
    ),
}
PROMPTS = ("a photo of a {} on the beach", "a {} in the snow", "a red bag")
each_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def parts():
    return small_rival_parts()


def before(parts):
    return {
        name: {key: value.clone() for key, value in module.state_dict().items()}
        for name, module in (("unet", parts.unet), ("text", parts.text_encoder), ("vae", parts.vae))
    }


def changed(base: dict, now: dict) -> set[str]:
    """Names of tensors that differ; peft puts the base's own weights under `base_layer`."""
    plain = {name.replace(".base_layer", ""): value for name, value in now.items()}
    return {name for name, value in plain.items() if name not in base or not torch.equal(base[name], value)}


@each_method
def test_only_what_is_said_is_learned(parts, name):
    module, train, settings, _ = METHODS[name]
    own, base = example(), before(parts)
    tuned = train(parts, own, Budget(steps=3, batch=4), settings)
    after = before(parts)
    assert all(not changed(base[each], after[each]) for each in base), "the base model itself was changed"
    moved = changed(base["unet"], tuned.unet.state_dict())
    expected = {
        "textual inversion": set(),
        "textual inversion with noun": set(),
        "custom diffusion": {
            each for each in base["unet"] if each.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        },
        "dreambooth": set(base["unet"]),
        "dreambooth with prior": set(base["unet"]),
    }
    if "lora" in name or "pivotal" in name:
        targets = [
            each.removesuffix(".weight") for each in base["unet"] if ".attn" in each and each.endswith(".weight")
        ]
        layers = {each for each in targets if each.endswith(("to_q", "to_k", "to_v", "to_out.0"))}
        expected[name] = {f"{each}.lora_{half}.default.weight" for each in layers for half in "AB"}
    assert moved == expected[name]
    learned = sum(tuned.unet.state_dict()[each].numel() for each in moved)
    token = 0 if tuned.embedding is None else tuned.embedding.numel()
    assert tuned.numbers == learned + token
    assert tuned.numbers == module.numbers_of(parts.unet, 24, settings)
    assert tuned.size == 2 * tuned.numbers
    if tuned.embedding is not None:
        start = word_embedding(parts, "mug" if name.startswith("textual") else RARE)
        assert not torch.equal(tuned.embedding, start)
    assert tuned.apart == (not moved)
    assert not any(parameter.requires_grad for parameter in tuned.unet.parameters())


@each_method
def test_before_training_it_draws_what_the_base_draws(parts, name):
    _, train, settings, still = METHODS[name]
    tuned = train(parts, example(), Budget(steps=1, batch=2), settings.model_copy(update=still))
    words = {"textual inversion": "mug", "textual inversion with noun": "mug mug"}.get(name, f"{RARE} mug")
    drawn = tuned.draw(PROMPTS, [5, 6, 7], guidance=3.0, steps=2)
    base = unchanged(parts, words).draw(PROMPTS, [5, 6, 7], guidance=3.0, steps=2)
    assert drawn.shape == (3, 16, 16, 3)
    assert np.abs(drawn.astype(int) - base).max() <= 1
    if tuned.embedding is None or tuned.apart:
        np.testing.assert_array_equal(drawn, base)


def held_loss(tuned: Tuned, own) -> float:
    """The loss on the same 48 rows, whatever was learned."""
    parts = tuned.parts
    rows = draw(own, templates=3, timesteps=100, rows=48, generator=torch.Generator().manual_seed(123), even=True)
    texts = [spoken(parts.folder.settings.templates[number], tuned.phrase) for number in rows.templates]
    latents, masks = own.latents[list(rows.images)], own.masks[list(rows.images)]
    noisy = DDPMScheduler.from_config(parts.scheduler.config).add_noise(latents, rows.noise, rows.timesteps)
    with torch.no_grad():
        told = encodings(parts, texts, tuned.embedding)
        return float(row_losses(tuned.unet(noisy, rows.timesteps, told).sample, rows.noise, masks).mean())


@each_method
def test_the_loss_goes_down(parts, name):
    _, train, settings, still = METHODS[name]
    own = example()
    first = train(parts, own, Budget(steps=1, batch=2), settings.model_copy(update=still))
    tuned = train(parts, own, Budget(steps=25, batch=4), settings)
    assert len(tuned.losses) == 25
    assert held_loss(tuned, own) < held_loss(first, own)


@each_method
def test_the_same_seed_trains_the_same(parts, name):
    _, train, settings, _ = METHODS[name]
    one, other, third = (train(parts, example(), Budget(steps=2, batch=3, seed=seed), settings) for seed in (4, 4, 5))
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    assert third.losses != pytest.approx(other.losses, rel=1e-4)
    pictures = [each.draw(PROMPTS[:1], [1], guidance=2.0, steps=2).astype(int) for each in (one, other)]
    assert abs(pictures[0] - pictures[1]).max() <= PIXELS_APART


def test_the_pivot_rests_after_its_share(parts):
    settings = PivotalTuning(lr=0.01, lr_token=0.02, identifier=RARE, token_share=0.25)
    after_one = lora.train_pivotal_tuning(parts, example(), Budget(steps=1, batch=3), settings)
    after_four = lora.train_pivotal_tuning(parts, example(), Budget(steps=4, batch=3), settings)
    check_alike(after_one.embedding, after_four.embedding)
    always = settings.model_copy(update={"token_share": 1.0})
    moved = lora.train_pivotal_tuning(parts, example(), Budget(steps=4, batch=3), always)
    assert not torch.equal(after_one.embedding, moved.embedding)


def test_the_prior_s_pictures_are_the_base_s_own(parts):
    latents, told = class_pictures(parts, "mug", 3, steps=2, guidance=2.0)
    assert latents.shape == (3, 4, 8, 8)
    torch.testing.assert_close(told, encodings(parts, ["a photo of a mug"])[0])
    again, _ = class_pictures(parts, "mug", 3, steps=2, guidance=2.0)
    assert again is latents
    drawn = unchanged(parts, "mug").draw(["a photo of a {}"], [2], guidance=2.0, steps=2)
    decoded = parts.vae.decode(latents[2:] / parts.vae.config.scaling_factor).sample
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels.astype(int) - drawn).max() <= 1


def test_a_prior_leaves_a_row_for_the_product(parts):
    with pytest.raises(ValueError, match="4 of 4 rows show the class, and none is left"):
        dreambooth.train_dreambooth(parts, example(), Budget(steps=1, batch=4), DreamBooth(prior_rows=4))


def test_a_token_starts_at_a_word(parts):
    with pytest.raises(ValueError, match="has no token"):
        word_embedding(parts, " ")
    with pytest.raises(ValueError, match="names a learned token, and this method has none"):
        encodings(parts, ["a photo of a {0}"])


def test_without_peft_the_message_says_how_to_get_it(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install 'peft"):
        lora.train_lora(parts, example(), Budget(steps=1, batch=1))


def test_ours_is_the_trainer_s_concept(parts):
    base, metric, own = stacked(parts), random_metric(24), example()
    training = TrainingConfig(steps=3, batch=4, seed=2)
    ours = train_ours(base, metric, own, training, SamplingConfig(bias=0.6))
    trainer = Trainer(base, metric, [example(config=training)])
    trainer.run()
    check_alike(ours.concept.embedding, trainer.states[0].embedding.detach())
    check_alike(ours.concept.value_target, trainer.states[0].value_target.detach())
    assert ours.numbers == 24 + base.stack.key_rows
    assert 2 * ours.numbers < ours.size < 2 * ours.numbers + 2000
    assert ours.apart
    drawn = ours.draw(PROMPTS, [5, 6, 7], guidance=3.0, steps=2)
    plain = unchanged(parts, "mug").draw(PROMPTS, [5, 6, 7], guidance=3.0, steps=2)
    assert np.abs(drawn[2].astype(int) - plain[2]).max() <= 1
    assert np.abs(drawn[0].astype(int) - plain[0]).max() > 1
    assert all(not name.endswith("to_k.projection") for name, _ in parts.unet.named_modules())
