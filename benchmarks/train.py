"""Eight concepts trained together against one after the other, same rows per concept and step.

What it cannot beat is a denoiser whose cost per row does not fall with the batch: then both take equally long.
"""

import torch

from benchmarks.bases import base_of, device_of, parts_of, plain_metric
from benchmarks.measure import finish, interleave, machine, matmul_peak, show
from perfusion_ops.config import TrainingConfig
from perfusion_ops.training import Example, Trainer

# Bars on the median ratio. On a CPU arithmetic is the limit and only overhead is shared.
BAR = {"cpu": 1.0, "cuda": 1.5}
_CONCEPTS = 8
_PUBLISHED_STEPS, _PUBLISHED_BATCH = 400, 16


def run(*, base: str | None, device: str | None, pairs: int, batch: int | None, steps: int | None) -> bool:
    """Measure and print; True when the bar is met."""
    where = device_of(device)
    gpu = where.type == "cuda"
    name = base or ("sd15" if gpu else "mini")
    dtype = torch.bfloat16 if gpu else torch.float32
    batch, steps = batch or (_PUBLISHED_BATCH if gpu else 4), steps or (3 if gpu else 2)
    edited = base_of(name, parts_of(name, where, dtype))
    metric = plain_metric(edited)
    channels, size = edited.unet.config.in_channels, edited.resolution // edited.latent_factor
    generator = torch.Generator().manual_seed(0)
    config = TrainingConfig(steps=10**5, batch=batch)
    examples = [
        Example("mug", torch.randn(4, channels, size, size, generator=generator), torch.ones(4, 1, size, size), config)
        for _ in range(_CONCEPTS)
    ]
    together = Trainer(edited, metric, examples, micro_batch=_CONCEPTS * batch)
    alone = [Trainer(edited, metric, [example], micro_batch=batch) for example in examples]

    def grouped() -> None:
        together.advance(steps)

    def one_by_one() -> None:
        for trainer in alone:
            trainer.advance(steps)

    if gpu:
        torch.cuda.reset_peak_memory_stats()
    measured = interleave(one_by_one, grouped, pairs=pairs, device=where)
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
            "share_of_matmul_peak": _flops(together, steps) / best / matmul_peak(where, dtype),
        }
    show(f"median throughput ratio {measured.ratio:.4f}, quartiles {low:.4f} to {high:.4f}")
    return finish("train", figures, {"throughput_ratio": BAR[where.type]})


def _flops(trainer: Trainer, steps: int) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        trainer.advance(1)
    return counter.get_total_flops() * steps
