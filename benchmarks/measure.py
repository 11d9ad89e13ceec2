"""Interleaved pairs: two implementations timed in turn on one machine, so that its noise affects both equally."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Sides = tuple[Callable[[], object], Callable[[], object]]


@dataclass(frozen=True)
class Pairs:
    """Times of two sides in seconds, pair by pair."""

    reference_s: tuple[float, ...]
    ours_s: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Throughput relative to the reference, pair by pair; above 1 is faster."""
        return [reference / ours for reference, ours in zip(self.reference_s, self.ours_s, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        quartiles = statistics.quantiles(self.ratios, n=4)
        return quartiles[0], quartiles[2]


def interleave(make_sides: Callable[[], Sides], *, pairs: int, placements: int, device: torch.device) -> Pairs:
    """Time both sides `pairs` times in turn, the first of each pair alternating.

    The memory addresses of a model change its speed by some percent, so both sides are built `placements` times, each
    with one untimed call.
    """
    times: tuple[list[float], list[float]] = ([], [])
    sides: Sides | None = None
    for pair in range(pairs):
        if pair * placements // pairs != (pair - 1) * placements // pairs:
            sides = make_sides()
            for side in sides:
                side()
        assert sides is not None
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            times[side].append(timed(sides[side], device))
        show(f"pair {pair + 1}/{pairs}: reference {times[0][-1]:.3f} s, ours {times[1][-1]:.3f} s")
    return Pairs(tuple(times[0]), tuple(times[1]))


def reset_peak_memory() -> None:
    """Start the measurement of `peak_memory_gb` again."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Peak memory of this process since the last reset, in 10^9 bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e9


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, the GPU's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the device's limit for arithmetic alone."""
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = min(timed(lambda: torch.mm(a, b), device) for _ in range(10))
    return 2 * side**3 / seconds


def machine(device: torch.device) -> str:
    """The card's name, or the processor's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def show(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")


def finish(name: str, figures: dict[str, Any], bars: dict[str, float]) -> bool:
    """Print the result as one JSON object; a bar is a figure's lower bound. Returns whether all bars are met."""
    ok = all(figures[figure] >= bar for figure, bar in bars.items())
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in figures.items()}
    sys.stdout.write(json.dumps({"name": name, **rounded, "bars": bars, "ok": ok}) + "\n")
    sys.stdout.flush()
    return ok
