"""Muon: momentum with orthogonalised matrices, for the weights between a network's first and last layer.

Jordan et al. 2024, scaled to AdamW's step as in Liu et al. 2025. `torch.optim.Muon` does not support convolutions, and
every process would repeat all of its work.
"""

import torch
from torch import Tensor, nn

from perfusion_ops.mini.build.training.machine import Machine

_MOMENTUM = 0.95
_DECAY = 0.01
_STEP = 0.2  # root mean square of AdamW's updates


def orthogonal(matrix: Tensor) -> Tensor:
    """An approximation of the nearest matrix (R, C) with singular values of 1: five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    made = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = made @ made.T
        made = a * made + (b * square + c * square @ square) @ made
    return made.T if wide is not matrix else made


class Muon(torch.optim.Optimizer):
    """Steps every parameter of two or more dimensions as a matrix of its first dimension; the processes share the work.

    Args:
        parameters: equal in all processes, gradients included.
        machine: its processes share the work.
    """

    def __init__(self, parameters: list[nn.Parameter], machine: Machine) -> None:
        super().__init__([{"params": parameters, "factor": 1.0}], {"lr": 0.0})
        self.machine = machine

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change the parameters along their gradients."""
        assert closure is None
        (group,) = self.param_groups
        steps = []
        for number, parameter in enumerate(group["params"]):
            gradient = parameter.grad
            moments = self.state[parameter]
            if "exp_avg" not in moments:
                moments["exp_avg"] = torch.zeros_like(parameter)
            mean = moments["exp_avg"].mul_(_MOMENTUM).add_(gradient)
            if number % self.machine.processes == self.machine.rank:
                matrix = gradient.add(mean, alpha=_MOMENTUM).reshape(len(parameter), -1)
                steps.append((orthogonal(matrix) * _STEP * max(matrix.shape) ** 0.5).view(parameter.shape))
            else:
                steps.append(torch.zeros(parameter.shape, device=parameter.device))
        for parameter, step in zip(group["params"], self.machine.sum(steps), strict=True):
            parameter.mul_(1 - _DECAY * group["lr"]).add_(step, alpha=-group["lr"])
