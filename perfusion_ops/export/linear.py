"""The gated edit as a linear one: W + B A of rank 2 J for J concepts, which any program can add to its weights.

The gated edit adds to W e, in a prompt that names the concepts,

    sum_j  g_j(e) o_j  -  c_j(e) W i_j

with the gates g_j and the coefficients c_j of what the edit removes. It adds nothing in other prompts. B has the
columns o_j and -W i_j. The rows of A are the weighted least-squares solution on the tokens of prompts. Its targets are
g_j and c_j in prompts that name the concepts, and zero in the empty prompt and in prompts without them, because other
programs edit those as well. Each row is exact at the mean encoding of the concept's own token.

A concept of `train.gate: linear` has linear gates as well, and if all are of that kind, nothing is fitted: the rows are
the gates and coefficients themselves, in every prompt.

c_j is linear in e, so it could be exact. But that moves the empty prompt, whose error guidance multiplies, by an eighth
of its keys and values on the embedded base; the fitted row moves it by a hundredth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.concept import GatedConcept
from perfusion_ops.edit import Targets, gate_and_remove, solve_targets
from perfusion_ops.export.prompts import Prompts
from perfusion_ops.metric import Metric
from perfusion_ops.text import Tokens

_BATCH = 64  # prompts encoded at once
_OWN, _EMPTY, _PLAIN = 1000.0, 100.0, 0.02  # weights of the concepts' tokens, the empty prompt and prompts without them
_RIDGE = 1e-6  # of the mean of the squares


@dataclass(frozen=True)
class Gating:
    """The gated edit that an export is fitted to.

    Attributes:
        concepts: J concepts, each of recipe `paper`.
        bias: the paper's beta.
        temperature: the paper's tau.
    """

    concepts: tuple[GatedConcept, ...]
    bias: float
    temperature: float


@dataclass(frozen=True)
class LinearEdit:
    """A linear edit of all layers: W + up @ down.

    Attributes:
        down: A, (2 J, D) float32: for each concept the rows of its gate and of its coefficient.
        up: B, (R, 2 J) float32: for each concept o_j and -W i_j.
    """

    down: Tensor
    up: Tensor

    def stored(self, dtype: torch.dtype) -> "LinearEdit":
        """As a file of this type holds it."""
        return LinearEdit(self.down.to(dtype).float(), self.up.to(dtype).float())


def targets_of(metric: Metric, gating: Gating) -> Targets:
    """The concepts' targets as one row.

    Raises:
        ValueError: two concepts have the same direction.
    """
    inputs = torch.stack([concept.target_input for concept in gating.concepts])[None]
    used = torch.ones(1, len(gating.concepts), dtype=torch.bool)
    return solve_targets(inputs.to(metric.inverse), used.to(metric.inverse.device), metric.inverse)


def duals(targets: Targets) -> Tensor:
    """d_j, (J, D) float64: the coefficients that the edit removes are linear in the encoding."""
    return torch.linalg.solve(targets.gram[0], targets.dual[0])


@torch.no_grad()
def encoded(base: Base, prompts: Sequence[Tokens], gating: Gating | None = None) -> tuple[Tensor, Tensor]:
    """Encodings of P prompts (P, N, D) float32, and the concept at each position or -1, (P, N)."""
    words = None if gating is None else torch.stack([concept.embedding for concept in gating.concepts]).to(base.device)
    parts = [
        base.texts.encode(rows, None if words is None else words.expand(len(rows), -1, -1)).encodings.float()
        for rows in (prompts[start : start + _BATCH] for start in range(0, len(prompts), _BATCH))
    ]
    return torch.cat(parts), torch.tensor([row.slots for row in prompts], device=base.device)


def coordinates(encodings: Tensor, targets: Targets, gating: Gating) -> Tensor:
    """What the gated edit adds, in the columns of `LinearEdit.up`: (P, N, 2 J) float64."""
    exact = encodings.double()
    each = torch.full((1, len(gating.concepts)), 1.0, dtype=torch.float64, device=exact.device)
    linear = torch.tensor([[concept.gate == "linear" for concept in gating.concepts]], device=exact.device)
    _, gates = gate_and_remove(exact, targets, each * gating.bias, each * gating.temperature, linear)
    return torch.stack([gates, exact @ duals(targets).mT], -1).flatten(2)


def fit(base: Base, metric: Metric, gating: Gating, prompts: Prompts) -> LinearEdit:
    """The linear edit that is closest to the gated one.

    Args:
        base: the base model.
        metric: its metric.
        gating: concepts, bias and temperature.
        prompts: to fit on.

    Raises:
        ValueError: two concepts have the same direction.
    """
    targets = targets_of(metric, gating)
    if all(concept.gate == "linear" for concept in gating.concepts):
        similarity = targets.dual[0] / targets.energy[0][:, None]
        return LinearEdit(torch.stack([similarity, duals(targets)], 1).flatten(0, 1).float().cpu(), _up(base, gating))
    named, slots = encoded(base, prompts.named, gating)
    wanted = coordinates(named, targets, gating)
    empty, _ = encoded(base, [base.texts.tokenize("")])
    plain, _ = encoded(base, prompts.plain)
    others = torch.cat([empty.flatten(0, 1), plain.flatten(0, 1)]).double()
    weights = torch.cat(
        [
            torch.where(slots >= 0, _OWN, 1.0).flatten(),
            torch.full((empty.shape[1],), _EMPTY, device=others.device),
            torch.full((len(plain) * plain.shape[1],), _PLAIN, device=others.device),
        ]
    ).double()
    tokens = torch.cat([named.flatten(0, 1).double(), others])
    squares = tokens.mT @ (weights[:, None] * tokens)
    squares += _RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    factor = torch.linalg.cholesky(squares)
    edited = tokens[: slots.numel()], weights[: slots.numel()], wanted.flatten(0, 1)
    down = torch.cholesky_solve(edited[0].mT @ (edited[1][:, None] * edited[2]), factor)  # (D, 2 J)
    for number in range(len(gating.concepts)):
        own = slots == number
        mean = named[own].double().mean(0)
        towards = torch.cholesky_solve(mean[:, None], factor)
        pair = slice(2 * number, 2 * number + 2)
        down[:, pair] += towards * (wanted[own][:, pair].mean(0) - mean @ down[:, pair]) / (mean @ towards)
    return LinearEdit(down.mT.float().contiguous().cpu(), _up(base, gating))


def _up(base: Base, gating: Gating) -> Tensor:
    inputs = torch.stack([concept.target_input for concept in gating.concepts]).to(base.device)
    outputs = torch.stack([concept.outputs(base.stack) for concept in gating.concepts])
    return torch.stack([outputs, -(inputs @ base.stack.weight.float().mT)], 1).flatten(0, 1).mT.contiguous().cpu()
