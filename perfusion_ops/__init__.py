"""The Perfusion method: tensors in, tensors out. No Ray, no Parquet, no network.

Perfusion (Tewel et al., "Key-Locked Rank One Editing for Text-to-Image Personalization", SIGGRAPH 2023,
arXiv 2305.01644) teaches a diffusion model one product by a gated rank-one edit of its cross-attention.

Programs and notebooks use the functions below; each has an example in its docstring, and docs/python.md shows three
complete uses. They are imported when they are first used, so that `import perfusion_ops` loads nothing heavy.

    load_base         a base model: "mini" or a diffusers folder
    attach            the base model of a diffusers pipeline that exists
    estimate_metric   the metric of a base model; save_metric and load_metric keep it
    train_concept     photos of one product in, its concept out; save_concept and load_concept keep it
    render            a prompt with concepts in, pictures out
    prompt_embeds     the same for an attached pipeline
    pipeline_inputs   all inputs of an attached pipeline, also those of SDXL
    regional_embeds   the same, for concepts that act only where their products are
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfusion_ops.api.bases import attach, load_base
    from perfusion_ops.api.concepts import load_concept, save_concept, train_concept
    from perfusion_ops.api.metrics import estimate_metric, load_metric, save_metric
    from perfusion_ops.api.pictures import pipeline_inputs, prompt_embeds, regional_embeds, render

__all__ = [
    "attach",
    "estimate_metric",
    "load_base",
    "load_concept",
    "load_metric",
    "pipeline_inputs",
    "prompt_embeds",
    "regional_embeds",
    "render",
    "save_concept",
    "save_metric",
    "train_concept",
]

_MODULES = {
    "attach": "bases",
    "estimate_metric": "metrics",
    "load_base": "bases",
    "load_concept": "concepts",
    "load_metric": "metrics",
    "pipeline_inputs": "pictures",
    "prompt_embeds": "pictures",
    "regional_embeds": "pictures",
    "render": "pictures",
    "save_concept": "concepts",
    "save_metric": "metrics",
    "train_concept": "concepts",
}


def __getattr__(name: str) -> Any:
    """Import one of the functions when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"perfusion_ops.api.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
