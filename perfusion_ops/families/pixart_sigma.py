"""PixArt-Sigma: a diffusion transformer with cross-attention to one T5 encoder (arXiv 2403.04692).

Every layer reads the same text encodings, after one projection that all of them share. So the edit acts behind that
projection, where the layers' keys and values are linear. Their biases stay in the layers.
"""

from collections.abc import Mapping
from typing import Any

from perfusion_ops.families.family import MASK, Family, Text


def _added(extra: Mapping[str, Any], _time_ids: Any) -> dict[str, Any]:
    return {
        "encoder_attention_mask": extra[MASK],
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


PIXART_SIGMA = Family(
    kind="PixArtSigmaPipeline",
    title="PixArt-Sigma",
    texts=(
        Text(
            "tokenizer",
            "text_encoder",
            masked=True,
            causal=False,
            limit=300,
            lower=True,
            files=("tokenizer.json", "spiece.model"),
        ),
    ),
    pipelines={"text": "PixArtSigmaPipeline"},
    denoiser="transformer",
    arguments={MASK: "prompt_attention_mask"},
    added=_added,
    text_projection="caption_projection",
    call={"use_resolution_binning": False, "clean_caption": False, "negative_prompt": None},
    regional=False,
    loras=False,
    rescales=(),
    schedule={"clip_sample": False},  # its folders name a sampler that clips nothing; DDIM would clip the latents
)
