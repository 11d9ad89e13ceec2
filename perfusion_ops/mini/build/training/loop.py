"""One training loop for every stage: AdamW or Muon, running mean of the weights, log, checkpoints, resume.

A step depends on its number alone: a generator seeded with the number draws its samples and noise. So a training that
was stopped and resumed sees the same data as an undisturbed one.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from perfusion_ops.mini.build.recipe import Fit
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.build.training.muon import Muon

_WARM_UP = 200  # steps
_CHECKPOINT_EVERY = 180  # seconds
_LOG_EVERY = 20  # seconds
_CLIP = 1.0
_KEPT = {"first": "exp_avg", "second": "exp_avg_sq"}

Loss = Callable[[int, torch.Generator], Tensor]


def rate_at(step: int, fit: Fit) -> float:
    """The learning rate of step `step` (from 0); that of Muon's matrices falls in the same way."""
    warm = min(1.0, (step + 1) / min(_WARM_UP, fit.steps))
    left = (fit.steps - step) / max(fit.decay * fit.steps, 1)
    return fit.rate * warm * min(1.0, left)


def train(
    name: str,
    model: nn.Module,
    loss: Loss,
    fit: Fit,
    *,
    machine: Machine,
    folder: Path,
    seed: int,
    rates: dict[str, float] | None = None,
    inner: Callable[[str], bool] | None = None,
    until: float | None = None,
) -> bool:
    """Train `model` in place from its last checkpoint to the end; it then has the running mean of its weights.

    Args:
        name: of the stage: of its checkpoint `<name>.safetensors` and of its log lines.
        model: on the machine's device.
        loss: of a step number and a generator; its batch is this process's share of `fit.batch`.
        fit: how long and how fast.
        machine: where; only rank 0 writes.
        folder: of checkpoints and of `log.jsonl`.
        seed: of all samples and noise.
        rates: factors of the learning rate by prefix of a parameter's name.
        inner: whether a parameter of this name belongs to neither the first nor the last layer; Muon trains inner
            parameters of two or more dimensions, at `fit.inner_rate`.
        until: a `time.time()` at which to stop with a checkpoint.

    Returns:
        Whether the last step is done.
    """
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizers = _optimizers(parameters, rates or {}, inner, machine)
    state = model.state_dict()
    mean = {key: value.detach().clone() for key, value in state.items()}
    path = folder / f"{name}.safetensors"
    step = _restore(path, state, mean, parameters, optimizers) if path.exists() else 0
    ordered = list(parameters.values())
    model.train()
    saved = logged = time.time()
    since, total = step, torch.zeros((), device=machine.device)
    done = step >= fit.steps
    while not done:
        for optimizer in optimizers:
            height = fit.inner_rate if isinstance(optimizer, Muon) else fit.rate
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, fit) / fit.rate * height * group["factor"]
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 64 + machine.rank) % 2**63)
        value = loss(step, generator)
        value.backward()
        machine.average_gradients(ordered)
        nn.utils.clip_grad_norm_(ordered, _CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, total = step + 1, total + value.detach()
        _follow(mean, state, min(fit.average, (step + 1) / (step + 10)))
        # Ranks synchronise in every step, so they end together. Clocks may differ: rank 0 reads the time for all.
        now = time.time()
        done = step >= fit.steps
        stopped = not done and machine.agree(until is not None and now > until)
        if machine.rank == 0 and (done or stopped or now - logged > _LOG_EVERY):
            mean_loss = float(total) / (step - since)
            _log(folder, name, step, mean_loss, (step - since) * fit.batch / (now - logged), rate_at(step - 1, fit))
            since, total, logged = step, torch.zeros_like(total), now
        if machine.rank == 0 and (done or stopped or now - saved > _CHECKPOINT_EVERY):
            _save(path, step, state, mean, parameters, optimizers)
            saved = now
        if stopped:
            return False
    model.load_state_dict(mean)
    model.eval()
    return True


def steps_done(folder: Path, name: str) -> int:
    """The number of steps in the last checkpoint of the stage `name`; 0 without one."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def load_mean(path: Path, model: nn.Module) -> int:
    """Load the running mean of a checkpoint's weights into `model`; returns the number of steps behind it."""
    with safe_open(path, "pt") as file:
        model.load_state_dict({key: file.get_tensor(f"mean.{key}") for key in model.state_dict()})
        return int(file.metadata()["step"])


def begin_with(path: Path, state: dict[str, Tensor], step: int) -> None:
    """Write a checkpoint whose weights and running mean are `state`, for a training that resumes at `step`."""
    parts = {f"{kind}.{key}": value.float() for kind in ("state", "mean") for key, value in state.items()}
    save_file({key: value.contiguous().clone() for key, value in parts.items()}, path, metadata={"step": str(step)})


def _optimizers(
    parameters: dict[str, nn.Parameter],
    rates: dict[str, float],
    inner: Callable[[str], bool] | None,
    machine: Machine,
) -> list[torch.optim.Optimizer]:
    groups: dict[float, list[nn.Parameter]] = {}
    matrices = []
    for key, value in parameters.items():
        if inner is not None and inner(key) and value.ndim > 1:
            matrices.append(value)
            continue
        factor = next((factor for prefix, factor in rates.items() if key.startswith(prefix)), 1.0)
        groups.setdefault(factor, []).append(value)
    adam = torch.optim.AdamW(
        [{"params": group, "factor": factor} for factor, group in groups.items()],
        betas=(0.9, 0.99), weight_decay=0.01, fused=True,
    )  # fmt: skip
    return [adam, Muon(matrices, machine)] if matrices else [adam]


def _moments(optimizers: list[torch.optim.Optimizer]) -> dict[Tensor, dict[str, Tensor]]:
    """The optimisers' state of each parameter."""
    return {
        parameter: one.state[parameter]
        for one in optimizers
        for group in one.param_groups
        for parameter in group["params"]
    }


@torch.no_grad()
def _follow(mean: dict[str, Tensor], state: dict[str, Tensor], decay: float) -> None:
    floating = [key for key, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [mean[key] for key in floating], [state[key] for key in floating], 1 - decay
    )
    for key, value in state.items():
        if not value.is_floating_point():
            mean[key].copy_(value)


def _log(  # noqa: PLR0917 - the line's fields in their order
    folder: Path, name: str, step: int, loss: float, samples_per_s: float, rate: float
) -> None:
    line = {
        "stage": name, "step": step, "loss": round(loss, 5), "samples_per_s": round(samples_per_s, 1),
        "rate": float(f"{rate:.3g}"), "time": round(time.time()),
    }  # fmt: skip
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _save(  # noqa: PLR0917 - all that a checkpoint holds
    path: Path,
    step: int,
    state: dict[str, Tensor],
    mean: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    tensors = {f"state.{key}": value.detach() for key, value in state.items()}
    tensors |= {f"mean.{key}": value for key, value in mean.items()}
    kept_of = _moments(optimizers)
    for key, parameter in parameters.items():
        moments = kept_of[parameter]
        tensors |= {f"{name}.{key}": moments[kept] for name, kept in _KEPT.items() if kept in moments}
    unfinished = path.with_suffix(".unfinished")
    contiguous = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(contiguous, unfinished, metadata={"step": str(step)})
    unfinished.replace(path)


def _restore(
    path: Path,
    state: dict[str, Tensor],
    mean: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
) -> int:
    with safe_open(path, "pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        for key, value in state.items():
            value.copy_(file.get_tensor(f"state.{key}"))
            mean[key].copy_(file.get_tensor(f"mean.{key}"))
        kept_of = _moments(optimizers)
        for key, parameter in parameters.items():
            # In the parameter's memory layout: the fused optimiser ignores strides.
            moments = kept_of[parameter]
            for name, kept in _KEPT.items():
                if f"{name}.{key}" in file.keys():  # noqa: SIM118 - no mapping
                    moments["step"] = torch.tensor(float(step), device=parameter.device)
                    moments[kept] = torch.empty_like(parameter).copy_(file.get_tensor(f"{name}.{key}"))
    return step
