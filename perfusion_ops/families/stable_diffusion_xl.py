"""Stable Diffusion XL: two CLIP text encoders side by side, a pooled vector, and the size and crop of each picture.

The denoiser is given the second-last hidden state of both encoders (768 + 1,280 numbers a token), the projected pooled
vector of the second one, and six time ids: original height and width, top and left of the crop, height and width
(arXiv 2307.01952, section 2.2).
"""

from collections.abc import Mapping
from typing import Any

from perfusion_ops.families.family import INPAINT, POOLED, Family, Foreign, Text


def _added(extra: Mapping[str, Any], time_ids: Any) -> dict[str, Any]:
    return {"added_cond_kwargs": {"text_embeds": extra[POOLED], "time_ids": time_ids}}


STABLE_DIFFUSION_XL = Family(
    kind="StableDiffusionXLPipeline",
    title="SDXL",
    texts=(
        Text("tokenizer", "text_encoder", layer=-2),
        Text("tokenizer_2", "text_encoder_2", layer=-2, pooled=True),
    ),
    pipelines={
        "text": "StableDiffusionXLPipeline",
        "image": "StableDiffusionXLImg2ImgPipeline",
        "inpaint": "StableDiffusionXLInpaintPipeline",
        "control": "StableDiffusionXLControlNetPipeline",
    },
    also=("StableDiffusionXLInpaintPipeline",),
    further={(9, 4): INPAINT},
    arguments={POOLED: "pooled_prompt_embeds"},
    added=_added,
    addition=("text_time",),
    time_ids=True,
    options={"add_watermarker": False},
    # Folders that diffusers wrote from single files do not say it, and DDIM would clip the latents.
    schedule={"clip_sample": False},
    index_settings=("force_zeros_for_empty_prompt",),
    zero_negative="force_zeros_for_empty_prompt",
    foreign=Foreign(
        architecture={0: "stable-diffusion-xl-v1-base"},
        version={0: "sdxl_base_v1-0"},
        embeddings=("clip_l", "clip_g"),
        sgm=True,
    ),
)
