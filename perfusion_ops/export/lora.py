"""A linear edit as the files that kohya's tools, A1111, Forge, ComfyUI, InvokeAI and diffusers read.

A LoRA holds for each key and value projection the matrix A (`lora_down`, the same in all of them), its own rows of B
(`lora_up`), and alpha. Alpha is the rank, so that the scale is 1. Each concept's word embedding is a file of its own.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.errors import UsageError
from perfusion_ops.export.errors import EditErrors
from perfusion_ops.export.linear import Gating, LinearEdit
from perfusion_ops.export.names import layer_names, levels, lora_name
from perfusion_ops.families.family import Foreign
from perfusion_ops.tensors import tensor_file

_LENGTH_BYTES = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ExportError(UsageError, ValueError):
    """These concepts cannot be written in the form that was asked for; the message says why."""


@dataclass(frozen=True)
class Origin:
    """Where exported concepts come from, for the metadata of their files.

    Attributes:
        names: of the J concepts, which are also their file names and trigger words.
        keys: content keys of the concepts, "" where unknown.
        date: of the export, such as 2026-11-28.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    date: str

    @property
    def title(self) -> str:
        """The name of what the concepts share."""
        return "+".join(self.names)


def check_name(name: str) -> str:
    """A concept's name, if it can be a file name and a word of a prompt everywhere.

    Raises:
        ExportError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"the concept name {name!r} cannot be a file name and a word of a prompt: give one that begins with a "
            "letter or a digit and has only letters, digits, dots, dashes and underscores"
        )
    return name


def foreign(base: Base) -> Foreign:
    """The names of a base model's family in other programs.

    Raises:
        ExportError: they have none.
    """
    found = base.folder.family.foreign
    if found is None:
        raise ExportError(
            f"a concept of {base.folder.family.title} cannot be exported: other programs have no file for it; "
            "use `import perfusion_ops` there"
        )
    return found


def lora_file(base: Base, edit: LinearEdit, metadata: Mapping[str, str], dtype: torch.dtype) -> bytes:
    """A LoRA of the edit.

    Args:
        base: the base model.
        edit: of rank K.
        metadata: of the file; `modelspec.hash_sha256` is added.
        dtype: of the matrices.

    Raises:
        ExportError: the family has no names in other programs, or a number is too large for `dtype`.
    """
    names, original = layer_names(base), foreign(base).sgm
    down, alpha = edit.down.to(dtype), torch.tensor(float(len(edit.down)), dtype=dtype)
    tensors: dict[str, Tensor] = {}
    start = 0
    for projection in ("to_k", "to_v"):
        for name, width in zip(names, base.stack.widths, strict=True):
            key = lora_name(name, projection, original=original, layers=levels(base))
            tensors[f"{key}.alpha"] = alpha.clone()
            tensors[f"{key}.lora_down.weight"] = down.clone()
            tensors[f"{key}.lora_up.weight"] = edit.up[start : start + width].to(dtype)
            start += width
    return _written(tensors, metadata)


def embedding_file(base: Base, embedding: Tensor, metadata: Mapping[str, str], dtype: torch.dtype) -> bytes:
    """The word embedding v* (E,) of one concept: one tensor for each text encoder.

    Raises:
        ExportError: as `lora_file`.
    """
    widths = [int(model.table.shape[1]) for model in base.texts.models]
    parts = zip(foreign(base).embeddings, embedding.split(widths), strict=True)
    return _written({name: part[None].to(dtype) for name, part in parts}, metadata)


def lora_metadata(
    base: Base, gating: Gating, origin: Origin, errors: EditErrors, *, edited: str = "gated"
) -> dict[str, str]:
    """The metadata of a LoRA: what other programs look for, and what it is an approximation of.

    Args:
        base: the base model.
        gating: what was fitted.
        origin: of the concepts.
        errors: on held-out prompts.
        edited: the edit that it approximates.
    """
    named, width = foreign(base), base.text_width
    rank = str(2 * len(gating.concepts))
    shared = {
        **_spec(named.architecture.get(width, named.architecture[0]) + "/lora", origin, base),
        "modelspec.usage_hint": _usage(origin),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_base_model_version": named.version.get(width, named.version[0]),
        "ss_output_name": origin.title,
        "ss_sd_model_name": base.folder.name,
    }
    return shared | {
        "perfusion.edit": edited,
        "perfusion.concept_key": _texts(origin.keys),
        "perfusion.superclass": _texts([concept.superclass for concept in gating.concepts]),
        "perfusion.base_digest": base.folder.digest,
        "perfusion.metric_digest": gating.concepts[0].metric_digest,
        "perfusion.bias": f"{gating.bias:g}",
        "perfusion.temperature": f"{gating.temperature:g}",
        "perfusion.error_own_token": f"{errors.own:.4f}",
        "perfusion.error_other_tokens": f"{errors.others:.4f}",
        "perfusion.error_without": f"{errors.without:.4f}",
        "perfusion.error_empty": f"{errors.empty:.4f}",
    }


def embedding_metadata(base: Base, origin: Origin, number: int) -> dict[str, str]:
    """The metadata of the word embedding of concept `number`."""
    named, width = foreign(base), base.text_width
    single = Origin((origin.names[number],), (origin.keys[number],), origin.date)
    return {
        **_spec(named.architecture.get(width, named.architecture[0]) + "/textual-inversion", single, base),
        "perfusion.concept_key": origin.keys[number],
        "perfusion.base_digest": base.folder.digest,
    }


def _spec(architecture: str, origin: Origin, base: Base) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models"
        if foreign(base).sgm
        else "diffusers",
        "modelspec.title": origin.title,
        "modelspec.resolution": f"{base.resolution}x{base.resolution}",
        "modelspec.description": f"product concept exported by perfusion for the base model {base.folder.name}",
        "modelspec.author": "perfusion",
        "modelspec.date": origin.date,
        "modelspec.trigger_phrase": " ".join(origin.names),
    }


def _usage(origin: Origin) -> str:
    files = ", ".join(f"{name}.safetensors" for name in origin.names)
    return f"load the word embedding as well ({files}), strength 1.0, in prompts that name {' and '.join(origin.names)}"


def _texts(values: Any) -> str:
    """One text as it is, several as a JSON list."""
    found = list(values)
    return found[0] if len(found) == 1 else json.dumps(found)


def _written(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"{name} has numbers that {tensor.dtype} cannot hold: train the concept again")
    plain = tensor_file.write(tensors, {"format": "pt"})
    body = plain[_LENGTH_BYTES + int.from_bytes(plain[:_LENGTH_BYTES], "little") :]
    digest = hashlib.sha256(body).hexdigest()
    return tensor_file.write(tensors, {"format": "pt", **metadata, "modelspec.hash_sha256": f"0x{digest}"})
