"""Eight concepts trained together, against one after the other with the same rows per concept and step.

With a denoiser whose cost per row does not fall with the batch, both take equally long: no speed-up is possible.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.bases import base_of, device_of, parts_of, plain_metric
from benchmarks.measure import Sides, finish, interleave, machine, matmul_peak, show
from perfusion_ops.base_model import Base
from perfusion_ops.config import TrainingConfig
from perfusion_ops.training.state import Example
from perfusion_ops.training.trainer import Trainer

# Bars on the median ratio. On a CPU arithmetic is the limit and only overhead is shared.
BAR = {"cpu": 1.0, "cuda": 1.5}
_CONCEPTS = 8
_PLACEMENTS = {"cpu": 7, "cuda": 1}
_PUBLISHED_STEPS, _PUBLISHED_BATCH = 400, 16


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bar is met."""
    pairs = options.pairs
    where = device_of(options.device)
    gpu = where.type == "cuda"
    name = options.base or ("sd15" if gpu else "mini")
    dtype = torch.bfloat16 if gpu else torch.float32
    batch, steps = options.batch or (_PUBLISHED_BATCH if gpu else 4), options.steps or (3 if gpu else 2)
    parts = parts_of(name, where, dtype)

    def sides() -> Sides:
        return _one_by_one(name, parts, batch, steps), _together(name, parts, batch, steps)

    if gpu:
        torch.cuda.reset_peak_memory_stats()
    measured = interleave(sides, pairs=pairs, placements=min(_PLACEMENTS[where.type], pairs), device=where)
    low, high = measured.spread()
    best = min(measured.ours_s)
    per_row = best / (steps * _CONCEPTS * batch)
    figures = {
        "base": name,
        "machine": machine(where),
        "dtype": str(dtype).removeprefix("torch."),
        "concepts": _CONCEPTS,
        "rows_per_concept": batch,
        "optimiser_steps_per_measurement": steps,
        "pairs": pairs,
        "throughput_ratio": measured.ratio,
        "ratio_first_quartile": low,
        "ratio_third_quartile": high,
        "rows_per_s": 1 / per_row,
        "seconds_per_concept_at_400_steps": best / steps * _PUBLISHED_STEPS / _CONCEPTS,
    }
    if gpu:
        figures |= {
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
            "share_of_matmul_peak": _flops(name, parts, batch) * steps / best / matmul_peak(where, dtype),
        }
    show(f"median throughput ratio {measured.ratio:.4f}, quartiles {low:.4f} to {high:.4f}")
    return finish("train", figures, {"throughput_ratio": BAR[where.type]})


def _examples(edited: Base, batch: int) -> list[Example]:
    channels, size = edited.denoiser.config.in_channels, edited.resolution // edited.latent_factor
    generator = torch.Generator().manual_seed(0)
    config = TrainingConfig(steps=10**5, batch=batch)
    return [
        Example("mug", torch.randn(4, channels, size, size, generator=generator), torch.ones(4, 1, size, size), config)
        for _ in range(_CONCEPTS)
    ]


def _together(name: str, parts: dict[str, Any], batch: int, steps: int) -> Callable[[], object]:
    edited = base_of(name, copy.deepcopy(parts))
    trainer = Trainer(edited, plain_metric(edited), _examples(edited, batch), micro_batch=_CONCEPTS * batch)
    return lambda: trainer.advance(steps)


def _one_by_one(name: str, parts: dict[str, Any], batch: int, steps: int) -> Callable[[], object]:
    edited = base_of(name, copy.deepcopy(parts))
    metric = plain_metric(edited)
    trainers = [Trainer(edited, metric, [example], micro_batch=batch) for example in _examples(edited, batch)]
    return lambda: [trainer.advance(steps) for trainer in trainers]


def _flops(name: str, parts: dict[str, Any], batch: int) -> int:
    """FLOPs of one optimiser step of the whole group."""
    from torch.utils.flop_counter import FlopCounterMode

    step = _together(name, parts, batch, 1)
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()
