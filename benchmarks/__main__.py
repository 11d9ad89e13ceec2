"""Run one benchmark, or all of them."""

import argparse
import importlib
import sys

from benchmarks.shapes import ORIGINS, SHAPES

NAMES = (
    *("render", "train", "schedule", "overhead", "plan", "noop", "publish"),
    *("store", "export", "adapters", "memory", "shares", "scenes"),
)


def main() -> int:
    """Exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="all of them when absent")
    parser.add_argument("--base", default=None, help="mini, sd15 (random weights at full width), or a diffusers folder")
    parser.add_argument("--device", default=None, help="cpu or cuda; the GPU when there is one")
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs")
    parser.add_argument(
        "--batch", type=int, default=None, help="rows rendered at once, or rows per concept in training"
    )
    parser.add_argument(
        "--recipe", choices=("paper", "offset"), default="paper", help="of the concepts that are rendered"
    )
    parser.add_argument("--regional", action="store_true", help="render: two concepts in each row, joined by region")
    parser.add_argument("--references", type=int, default=0, help="render: photos that each concept of offset keeps")
    parser.add_argument("--conv-rank", type=int, default=0, help="render: rank of the edits of convolutions of offset")
    parser.add_argument("--slots", type=int, default=500, help="simulated accelerators")
    parser.add_argument(
        "--rows",
        type=int,
        default=None,
        help="concepts, for schedule, overhead, plan, noop and publish; pictures, for store, "
        "publish with a shape, and adapters (drawn to measure a cell)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="adapters: times that each cell is measured")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps, or optimiser steps per measurement")
    parser.add_argument("--shape", choices=("plain", *SHAPES), default=None, help="rows to publish: see shapes.py")
    parser.add_argument("--origin", choices=ORIGINS, default=None, help="where the outcomes to publish are")
    parser.add_argument("--memory", default=None, help="engine.plan_memory of publishing, for example 512MB")
    parser.add_argument("--all", action="store_true", help="publish every shape and origin")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("--pairs must be at least 2: one pair has no quartiles")
    names = [options.name] if options.name else list(NAMES)
    results = [importlib.import_module(f"benchmarks.{name}").run(options) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
