"""Real pipelines for inpainting of toy width: the tiny bases, whose denoiser takes nine channels instead of four."""

import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline, UNet2DConditionModel

from tests.support.tiny_base import small_parts
from tests.support.tiny_xl import xl_pipeline


def nine_channels(unet, seed=11):
    """A sibling of a denoiser: all weights but those of its first layer are equal."""
    torch.manual_seed(seed)
    wide = UNet2DConditionModel.from_config(unet.config, in_channels=9)
    with torch.no_grad():
        wide.load_state_dict({**wide.state_dict(), **_but_first(unet)})
        wide.conv_in.weight.mul_(3)  # the photo shows in the picture
    return wide.eval()


def _but_first(unet):
    return {name: value for name, value in unet.state_dict().items() if not name.startswith("conv_in.weight")}


def inpaint_pipeline(family="sd", *, zero_negative=True, seed=0):
    """The unmodified pipeline, `sd` or `sdxl`."""
    if family == "sd":
        parts = small_parts(seed=seed)
        parts["unet"] = nine_channels(parts["unet"])
        pipe = StableDiffusionInpaintPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        whole = xl_pipeline(zero_negative=zero_negative, seed=seed)
        parts = {name: part for name, part in whole.components.items() if part is not None}
        parts["unet"] = nine_channels(parts["unet"])
        pipe = StableDiffusionXLInpaintPipeline(
            **parts, force_zeros_for_empty_prompt=zero_negative, add_watermarker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inpaint_folder(path, family="sd", **options):
    """Write it as a base model's folder, and return the folder."""
    inpaint_pipeline(family, **options).save_pretrained(path)
    return path
