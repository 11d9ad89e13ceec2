"""The gated rank-one edit (arXiv 2305.01644, Eq. 3 for one concept, Eq. 4 and appendix B for several).

With the metric <x, y> = x^T C^-1 y, target inputs i_j and target outputs o_j, an encoding e becomes

    r_j  = <e, i_j> / <i_j, i_j>                      similarity to concept j
    g_j  = sigmoid((r_j - bias_j) / temperature_j)    gate
    e'   = e - sum_jk i_j (G^-1)_jk <i_k, e>          the part C^-1-orthogonal to every i_j, G_jk = <i_j, i_k>
    W^ e = W e' + sum_j g_j o_j

for every position of the prompt and every cross-attention projection W. Neither e' nor g depends on W, so they are
computed once for all layers, and each row of a batch has its own concepts.

A concept may have been trained with the linear gate g_j = r_j instead. Then its edit is linear in e: other programs can
apply it as a rank-one LoRA of every layer. Biases and temperatures have no effect on it.

Numerics: encodings have norms around 30 and C a condition number of 1e3 to 1e8, so C^-1 i and G are formed in float64
and everything else in float32 at least, with autocast off; half precision here costs visible identity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Above this cosine in the metric, two concepts have the same direction, and the projection on their span is noise.
_MAX_COSINE = 1.0 - 1e-5


@dataclass(frozen=True)
class Targets:
    """The concepts of B rows with J slots each, prepared with the metric.

    Attributes:
        inputs: target inputs i_j, (B, J, D); zero in unused slots.
        dual: C^-1 i_j, (B, J, D).
        gram: G, (B, J, J); identity in unused slots.
        energy: <i_j, i_j>, (B, J); one in unused slots.
        used: which slots hold a concept, (B, J) bool.
    """

    inputs: Tensor
    dual: Tensor
    gram: Tensor
    energy: Tensor
    used: Tensor

    def rows(self, index: Tensor) -> "Targets":
        """The targets of rows chosen by a (P,) index."""
        return Targets(self.inputs[index], self.dual[index], self.gram[index], self.energy[index], self.used[index])


def solve_targets(inputs: Tensor, used: Tensor, metric_inverse: Tensor) -> Targets:
    """Prepare target inputs for `gate_and_remove`.

    Args:
        inputs: i_j, (B, J, D), any float type; the content of unused slots is ignored.
        used: (B, J) bool.
        metric_inverse: C^-1, (D, D), float64 recommended.

    Returns:
        Targets in float32, or float64 when `inputs` are float64.

    Raises:
        ValueError: a used target input has no energy, or two concepts of a row are the same direction.
    """
    working = torch.promote_types(inputs.dtype, torch.float32)
    with torch.autocast(inputs.device.type, enabled=False):
        exact = inputs.double().masked_fill(~used[..., None], 0.0)
        dual = exact @ metric_inverse.double()
        gram = exact @ dual.mT
        gram = 0.5 * (gram + gram.mT)
        energy = gram.diagonal(dim1=-2, dim2=-1)
        if bool((used & ~(energy > 0)).any()):
            raise ValueError("a concept's target input has no energy under the metric; its weights are damaged")
        energy = torch.where(used, energy, torch.ones_like(energy))
        gram = gram + torch.diag_embed((~used).to(gram.dtype))
        scale = energy.rsqrt()
        cosine = gram * scale[..., :, None] * scale[..., None, :]
        if bool((torch.triu(cosine, diagonal=1).abs() > _MAX_COSINE).any()):
            raise ValueError(
                "two concepts of one prompt learned the same direction; train longer, or on pictures that differ"
            )
    return Targets(exact.to(working), dual.to(working), gram.to(working), energy.to(working), used)


def gate_and_remove(
    encodings: Tensor, targets: Targets, bias: Tensor, temperature: Tensor, linear: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gates and the encodings without their concept components (Eqs. 3 and 4; Gram form of appendix B).

    Args:
        encodings: e, (B, N, D).
        targets: the rows' concepts.
        bias: (B, J), the paper's beta.
        temperature: (B, J), the paper's tau, positive.
        linear: (B, J) bool, which concepts have the linear gate; None for none of them.

    Returns:
        e' (B, N, D) and gates (B, N, J), zero in unused slots; float32 or float64.
    """
    working = torch.promote_types(encodings.dtype, targets.inputs.dtype)
    with torch.autocast(encodings.device.type, enabled=False):
        e = encodings.to(working)
        products = e @ targets.dual.to(working).mT
        similarity = products / targets.energy.to(working)[:, None]
        gates = torch.sigmoid((similarity - bias.to(working)[:, None]) / temperature.to(working)[:, None])
        if linear is not None:
            gates = torch.where(linear[:, None], similarity, gates)
        gates = gates * targets.used[:, None]
        if targets.inputs.shape[1] == 1:
            coefficients = similarity
        else:
            coefficients = torch.linalg.solve(targets.gram.to(working), products.mT).mT
        return e - coefficients @ targets.inputs.to(working), gates


def project(encodings: Tensor, gates: Tensor, outputs: Tensor, weight: Tensor) -> Tensor:
    """W e' + sum_j g_j o_j for a stack of projections (Eqs. 3 and 4).

    Args:
        encodings: e', (B, N, D).
        gates: (B, N, J).
        outputs: o_j, (B, J, R).
        weight: W, (R, D); its type decides the precision of the large product and of the result.

    Returns:
        (B, N, R) in the type of `weight`.
    """
    with torch.autocast(encodings.device.type, enabled=False):
        kept = encodings.to(weight.dtype) @ weight.mT
        return torch.baddbmm(kept, gates.to(weight.dtype), outputs.to(weight.dtype))
