"""All files of an export, by the program that they are for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files

import torch

from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept, GatedConcept
from perfusion_ops.export.errors import EditErrors, measure
from perfusion_ops.export.form import Form
from perfusion_ops.export.linear import Gating, fit
from perfusion_ops.export.lora import (
    ExportError,
    Origin,
    check_name,
    embedding_file,
    embedding_metadata,
    foreign,
    lora_file,
    lora_metadata,
)
from perfusion_ops.export.portable import portable_file
from perfusion_ops.export.prompts import export_prompts
from perfusion_ops.metric import Metric

_INTEGRATIONS = "perfusion_ops.export.integrations"
_ORDINARY = "StableDiffusionPipeline"  # which the custom pipeline extends, unless the family has another one


@dataclass(frozen=True)
class Exported:
    """Files of an export.

    Attributes:
        files: contents by path in the output folder.
        errors: how far the LoRA is from the gated edit; None for an exact form.
    """

    files: Mapping[str, bytes]
    errors: EditErrors | None


def export(
    base: Base,
    metric: Metric,
    concepts: Sequence[Concept],
    origin: Origin,
    form: Form,
    *,
    bias: float,
    temperature: float,
    dtype: torch.dtype = torch.float16,
) -> Exported:
    """Export concepts that are used together, or one.

    Args:
        base: the base model.
        metric: its metric.
        concepts: J concepts of recipe `paper`.
        origin: their names, keys and the date.
        form: what to export to.
        bias: the paper's beta that is exported.
        temperature: the paper's tau that is exported.
        dtype: of LoRAs and word embeddings.

    Raises:
        ExportError: a concept cannot be exported to this form, or its name is no file name.
        ValueError: two concepts have the same direction.
    """
    foreign(base)
    for name in origin.names:
        check_name(name)
    if len(set(origin.names)) < len(origin.names):
        raise ExportError(f"two concepts have the name {_repeated(origin.names)!r}: export them one by one")
    gating = Gating(
        tuple(_gated(concept, name) for concept, name in zip(concepts, origin.names, strict=True)), bias, temperature
    )
    if form is Form.LORA:
        return _lora(base, metric, gating, origin, dtype)
    if form is Form.ONNX:
        return Exported(_device(base, metric, gating, origin), None)
    for name, concept in zip(origin.names, gating.concepts, strict=True):
        if concept.gate == "linear":
            raise ExportError(f"{name} has the linear gate, which a LoRA applies exactly: export it with --to lora")
    concept_file = portable_file(base, metric, gating, origin)
    if form is Form.DIFFUSERS:
        kind = base.folder.family.pipelines[base.folder.drawn_by]
        code = _code("diffusers/pipeline.py").replace(_ORDINARY, kind)
        return Exported({"pipeline.py": code.encode(), "concepts.safetensors": concept_file}, None)
    node = "custom_nodes/perfusion"
    words = {
        f"models/embeddings/{path}": data for path, data in _embeddings(base, gating, origin, torch.float32).items()
    }
    return Exported(
        {
            f"{node}/__init__.py": _code("comfyui/__init__.py").encode(),
            f"{node}/concepts/{origin.title}.safetensors": concept_file,
            **words,
        },
        None,
    )


def _lora(base: Base, metric: Metric, gating: Gating, origin: Origin, dtype: torch.dtype) -> Exported:
    fitting, held_out = export_prompts(base, len(gating.concepts))
    edit = fit(base, metric, gating, fitting)
    errors = measure(base, metric, gating, edit.stored(dtype), held_out)
    metadata = lora_metadata(base, gating, origin, errors)
    words = _embeddings(base, gating, origin, dtype)
    return Exported(
        {
            f"lora/{origin.title}.safetensors": lora_file(base, edit, metadata, dtype),
            **{f"embeddings/{path}": data for path, data in words.items()},
        },
        errors,
    )


def _device(base: Base, metric: Metric, gating: Gating, origin: Origin) -> dict[str, bytes]:
    from perfusion_ops.export.device.concept_file import device_concept
    from perfusion_ops.export.device.graphs import graphs
    from perfusion_ops.export.device.host import host_files

    concepts = {
        f"{name}.safetensors": device_concept(base, metric, concept, bias=gating.bias, temperature=gating.temperature)
        for name, concept in zip(origin.names, gating.concepts, strict=True)
    }
    return {**graphs(base), **host_files(base), **concepts}


def _embeddings(base: Base, gating: Gating, origin: Origin, dtype: torch.dtype) -> dict[str, bytes]:
    return {
        f"{name}.safetensors": embedding_file(base, concept.embedding, embedding_metadata(base, origin, number), dtype)
        for number, (name, concept) in enumerate(zip(origin.names, gating.concepts, strict=True))
    }


def _gated(concept: Concept, name: str) -> GatedConcept:
    if isinstance(concept, GatedConcept):
        return concept
    raise ExportError(
        f"{name} has the recipe 'offset': its offset acts only where the product is, which no file of another program "
        "can say; train it with train.recipe 'paper'"
    )


def _repeated(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


def _code(path: str) -> str:
    return package_files(_INTEGRATIONS).joinpath(path).read_text(encoding="utf-8")
