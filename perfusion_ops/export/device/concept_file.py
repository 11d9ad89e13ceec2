"""A concept in flash-sized form: the vectors that the edit's graph takes, about 19 KB on SD 1.5."""

import torch

from perfusion_ops.base_model import Base
from perfusion_ops.concept import GatedConcept
from perfusion_ops.edit import solve_targets
from perfusion_ops.metric import Metric
from perfusion_ops.tensors import tensor_file
from perfusion_ops.tensors.packed import pack

FORMAT = "perfusion-device-1"


def device_concept(base: Base, metric: Metric, concept: GatedConcept, *, bias: float, temperature: float) -> bytes:
    """A safetensors file with `embedding`, `dual`, `input` and `superclass` in float16, and the difference in int8.

    Args:
        base: the base model.
        metric: its metric.
        concept: of recipe `paper` with locked keys.
        bias: the paper's beta that the host uses by default.
        temperature: the paper's tau that the host uses by default.
    """
    inputs = concept.target_input.to(metric.inverse)[None, None]
    targets = solve_targets(inputs, torch.ones(1, 1, dtype=torch.bool, device=inputs.device), metric.inverse)
    values = concept.outputs(base.stack)[base.stack.key_rows :]
    difference = values - base.stack.values.float() @ concept.superclass_input.to(values)
    packed, scales = pack(difference)
    tensors = {
        "embedding": concept.embedding.half(),
        # float32: the similarity decides the gate, and a dual has entries of very different size.
        "dual": (targets.dual / targets.energy[..., None])[0, 0].float(),
        "input": concept.target_input.half(),
        "superclass": concept.superclass_input.half(),
        "difference": packed,
        "difference_scale": scales,
    }
    metadata = {
        "format": FORMAT,
        "superclass": concept.superclass,
        "gate": concept.gate,
        "bias": f"{bias:g}",
        "temperature": f"{temperature:g}",
        "base_digest": base.folder.digest,
    }
    return tensor_file.write(tensors, metadata)
