"""Run one benchmark, or all of them."""

import argparse
import importlib
import sys

NAMES = ("render", "train", "schedule", "overhead", "plan", "noop", "publish")


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
    parser.add_argument("--slots", type=int, default=500, help="simulated accelerators")
    parser.add_argument(
        "--rows",
        type=int,
        default=None,
        help="concepts, for schedule, overhead, plan, noop and publish",
    )
    parser.add_argument("--steps", type=int, default=None, help="denoising steps, or optimiser steps per measurement")
    parser.add_argument("--origin", choices=("parts", "done", "both"), default="parts", help="of outcomes, for publish")
    parser.add_argument("--memory", default=None, help="memory limit such as 512MB, for publish")
    options = parser.parse_args()
    names = [options.name] if options.name else list(NAMES)
    results = [importlib.import_module(f"benchmarks.{name}").run(options) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
