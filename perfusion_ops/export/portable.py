"""Concepts in the form that other programs apply exactly: all that the gated edit needs, without the metric.

A file holds float32 tensors of J concepts: `embeddings` v* (J, E), `inputs` i* (J, D), `duals` C^-1 i* (J, D),
`outputs` o_K | o_V (J, R) and `removed` W i* (J, R). With the Gram matrix G = inputs duals^T, the keys and values of an
encoding e are

    W e - sum_jk (G^-1)_jk <duals_k, e> removed_j + sum_j sigmoid((<duals_j, e> / G_jj - bias) / temperature) outputs_j

Its metadata has JSON lists of `names`, `superclasses` and `concept_keys`, the bias and temperature that it is meant
for, and `layers`: a JSON list of the layers in the order of their keys, each with its block, block number and
transformer as ComfyUI counts them, and its width. The values follow in the same order.
"""

import json

import torch

from perfusion_ops.base_model import Base
from perfusion_ops.export.linear import Gating, targets_of
from perfusion_ops.export.lora import Origin, foreign
from perfusion_ops.export.names import layer_names, levels, original_block
from perfusion_ops.metric import Metric
from perfusion_ops.tensors import tensor_file

FORMAT = "perfusion-portable-1"


def portable_file(base: Base, metric: Metric, gating: Gating, origin: Origin) -> bytes:
    """The file of some concepts, which act together or one by one.

    Args:
        base: the base model.
        metric: its metric.
        gating: concepts, and the bias and temperature that are used by default.
        origin: of the concepts.

    Raises:
        ExportError: other programs do not know the family.
        ValueError: two concepts have the same direction.
    """
    foreign(base)
    targets = targets_of(metric, gating)
    inputs = targets.inputs[0].float()
    tensors = {
        "embeddings": torch.stack([concept.embedding for concept in gating.concepts]),
        "inputs": inputs,
        "duals": targets.dual[0].float(),
        "outputs": torch.stack([concept.outputs(base.stack) for concept in gating.concepts]),
        "removed": inputs.to(base.device) @ base.stack.weight.float().mT,
    }
    metadata = {
        "format": FORMAT,
        "names": json.dumps(origin.names),
        "superclasses": json.dumps([concept.superclass for concept in gating.concepts]),
        "bias": f"{gating.bias:g}",
        "temperature": f"{gating.temperature:g}",
        "concept_keys": json.dumps(origin.keys),
        "base": base.folder.name,
        "base_digest": base.folder.digest,
        "layers": json.dumps(layers_of(base), separators=(",", ":")),
    }
    return tensor_file.write(tensors, metadata)


def layers_of(base: Base) -> list[tuple[str, int, int, int]]:
    """For each layer its block, block number and transformer as ComfyUI counts them, and its width."""
    places = [original_block(name, levels(base)) for name in layer_names(base)]
    return [(*place, width) for place, width in zip(places, base.stack.widths, strict=True)]
