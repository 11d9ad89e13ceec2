"""A ComfyUI node with the gated edit of concepts that `perfusion export --to comfyui` wrote.

Copy this folder to `custom_nodes`, and the word embeddings beside it to `models/embeddings`. A positive prompt names a
concept as `embedding:NAME`. The node changes the keys and values of that prompt alone: the negative one stays as it is.
"""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

_FOLDER = Path(__file__).parent / "concepts"
Patch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


def read(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of concepts."""
    with safe_open(file, "pt") as found:
        return {name: found.get_tensor(name) for name in found.keys()}, found.metadata()  # noqa: SIM118


def added(tensors: dict[str, Tensor], encodings: Tensor, bias: float, temperature: float) -> Tensor:
    """What the edit adds to keys and values (N, R) of a prompt with the encodings (N, D), all layers, keys first."""
    e, (i, dual) = encodings.float(), (tensors[name].float() for name in ("inputs", "duals"))
    gram = i @ dual.mT
    products = e @ dual.mT
    gates = torch.sigmoid((products / gram.diagonal() - bias) / temperature)
    coefficients = torch.linalg.solve(gram, products.mT).mT
    return gates @ tensors["outputs"].float() - coefficients @ tensors["removed"].float()


def patches(
    tensors: dict[str, Tensor], about: dict[str, str], encodings: Tensor, bias: float, temperature: float
) -> Iterator[tuple[tuple[str, int, int], Patch]]:
    """For each layer its block, block number and transformer, and the patch of its attention."""
    found = added(tensors, encodings, bias, temperature)
    start, half = 0, found.shape[1] // 2
    for where, number, transformer, width in json.loads(about["layers"]):
        keys, values = (found[:, first : first + width] for first in (start, half + start))
        yield (where, number, transformer), _patch(keys, values)
        start += width


def _patch(more_keys: Tensor, more_values: Tensor) -> Patch:
    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        # A batch has one chunk of equal size for each conditioning: 0 is a positive one, 1 a negative one.
        chunks = options["cond_or_uncond"]
        size, times = len(k) // len(chunks), k.shape[1] // len(more_keys)
        chosen = torch.tensor([kind == 0 for kind in chunks]).repeat_interleave(size).to(k.device)[:, None, None]
        # ComfyUI repeats a short prompt beside a longer one.
        k = k + chosen * more_keys.repeat(times, 1).to(k)
        v = v + chosen * more_values.repeat(times, 1).to(v)
        return _attention(q, k, v, options["n_heads"])

    return patch


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    try:
        attention: Any = importlib.import_module("comfy.ldm.modules.attention")
    except ImportError:  # outside of ComfyUI
        q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return attention.optimized_attention(q, k, v, heads)


class PerfusionConcept:
    """Lets concepts act in a model, for one positive prompt that names them."""

    RETURN_TYPES = ("MODEL", "CONDITIONING")
    FUNCTION = "apply"
    CATEGORY = "perfusion"
    DESCRIPTION: ClassVar[str] = "The positive prompt names the concept as embedding:NAME."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What the node takes; 0 for bias or temperature is the value that the file was exported with."""
        files = sorted(file.stem for file in _FOLDER.glob("*.safetensors"))
        number = {"default": 0.0, "min": 0.0, "max": 2.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "concepts": (files,),
                "bias": ("FLOAT", number),
                "temperature": ("FLOAT", number),
            },
            # SDXL: the same prompt with the plain word. Its pooled vector replaces that of the positive prompt.
            "optional": {"plain": ("CONDITIONING",)},
        }

    def apply(
        self, model: Any, positive: Any, *, concepts: str, bias: float, temperature: float, plain: Any = None
    ) -> tuple[Any, Any]:
        """The patched model and its conditioning."""
        tensors, about = read(_FOLDER / f"{concepts}.safetensors")
        [[encodings, extra]] = positive
        patched = model.clone()
        beta, tau = bias or float(about["bias"]), temperature or float(about["temperature"])
        for place, patch in patches(tensors, about, encodings[0], beta, tau):
            patched.set_model_attn2_replace(patch, *place)
        if plain is not None:
            extra = {**extra, "pooled_output": plain[0][1]["pooled_output"]}
        return patched, [[encodings, extra]]


NODE_CLASS_MAPPINGS = {"PerfusionConcept": PerfusionConcept}
NODE_DISPLAY_NAME_MAPPINGS = {"PerfusionConcept": "Perfusion concept"}
