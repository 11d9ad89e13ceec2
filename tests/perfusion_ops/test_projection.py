"""The stacked projection leaves an unmodified diffusers pipeline unmodified, to the bit."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from perfusion_ops.projection import install
from tests.support.tiny_base import small_parts


def pipeline(parts):
    pipe = StableDiffusionPipeline(
        vae=parts["vae"],
        text_encoder=None,
        tokenizer=None,
        unet=parts["unet"],
        scheduler=parts["scheduler"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pre_projected_conditioning_equals_the_ordinary_pipeline_bit_for_bit():
    parts = small_parts()
    generator = torch.Generator().manual_seed(3)
    prompt, negative = torch.randn(2, 32, 24, generator=generator), torch.randn(2, 32, 24, generator=generator)

    def images(p, n):
        return pipeline(parts)(
            prompt_embeds=p,
            negative_prompt_embeds=n,
            num_inference_steps=4,
            guidance_scale=4.0,
            width=16,
            height=16,
            generator=[torch.Generator().manual_seed(s) for s in (1, 2)],
            output_type="latent",
        ).images

    ordinary = images(prompt, negative)
    stack = install(parts["unet"])
    assert torch.equal(images(prompt @ stack.weight.T, negative @ stack.weight.T), ordinary)


def test_keys_come_first_and_in_layer_order():
    unet = small_parts()["unet"]
    modules = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    keys = torch.cat([module.to_k.weight for module in modules])
    values = torch.cat([module.to_v.weight for module in modules])
    stack = install(unet)
    assert torch.equal(stack.keys, keys)
    assert torch.equal(stack.values, values)
    assert sum(stack.widths) == stack.key_rows == len(keys)


def test_stable_diffusion_15_has_the_published_widths():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    stack = install(unet)
    assert stack.key_rows == 12_480
    assert tuple(stack.weight.shape) == (24_960, 768)
    assert sorted(stack.widths) == [320] * 5 + [640] * 5 + [1280] * 6


def test_a_denoiser_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match="no cross-attention"):
        install(nn.Sequential(nn.Linear(2, 2)))


def test_installing_twice_is_refused():
    unet = small_parts()["unet"]
    install(unet)
    with pytest.raises(TypeError, match="changed before"):
        install(unet)
