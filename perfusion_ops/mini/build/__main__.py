"""`python -m perfusion_ops.mini.build`: render, train and export the embedded models. Rerun to resume."""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

from perfusion_ops.mini.build import autoencoder, denoiser, dual, identity, reader, text
from perfusion_ops.mini.build.export import export_base, export_metric
from perfusion_ops.mini.build.pictures import HELD_OUT_INSTANCES, write_products, write_scenes
from perfusion_ops.mini.build.recipe import FULL, FURTHER, TINY, Recipe
from perfusion_ops.mini.build.start import start_from
from perfusion_ops.mini.build.training.loop import steps_done
from perfusion_ops.mini.build.training.machine import on_machines
from perfusion_ops.mini.build.words import write_tokenizer
from perfusion_ops.mini.world.products import BASE_INSTANCES

SCORERS = (reader, identity, dual)


def main(arguments: list[str] | None = None) -> None:
    """Build what the arguments ask for; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m perfusion_ops.mini.build", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of pictures and checkpoints: 2 GB for full")
    parser.add_argument("--out", type=Path, required=True, help="folder of base/, metric.safetensors and scorers/")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny only shows that it works")
    parser.add_argument("--start", type=Path, help="a finished base whose denoiser is trained on, instead of a new one")
    parser.add_argument("--only", choices=("base", "metric", "scorers"), help="one part of the build")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="CPU processes of one thread each")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this time")
    given = parser.parse_args(arguments)
    recipe = TINY if given.size == "tiny" else FULL if given.start is None else FURTHER
    if given.start is not None:
        start_from(given.start, recipe, given.work)
    until = None if given.minutes is None else time.time() + 60 * given.minutes
    finished = build(
        recipe, given.work, given.out, only=given.only, device=given.device, processes=given.processes, until=until
    )
    sys.stdout.write(f"built {given.out}\n" if finished else "stopped; run the same command again to resume\n")


def build(
    recipe: Recipe,
    work: Path,
    out: Path,
    *,
    only: str | None = None,
    device: str = "cpu",
    processes: int = 1,
    until: float | None = None,
) -> bool:
    """Build the base with its metric, the scorers, or both; resume where the last call stopped.

    Args:
        recipe: sizes, samples, rates and seeds.
        work: folder of pictures, latents, checkpoints and the log.
        out: gets `base`, `metric.safetensors` and `scorers`, each replaced as soon as it is finished.
        only: "base" (with its metric), "metric" (of the base that is in `out`) or "scorers"; all by default.
        device: "cuda" trains in one process on it, "cpu" in `processes` of one thread each.
        processes: also how many render.
        until: a `time.time()` at which to stop with a checkpoint.

    Returns:
        Whether all is done.
    """

    def fit(stage: ModuleType) -> bool:
        on_machines(stage.fit, (recipe, work, until), device=device, processes=processes)
        return steps_done(work, stage.NAME) >= getattr(recipe, stage.NAME).fit.steps

    if only == "metric":
        export_metric(out / "base", recipe.metric, out / "metric.safetensors")
        return True
    work.mkdir(parents=True, exist_ok=True)
    begin = {
        "stage": "begin", "recipe": recipe.model_dump(), "device": device, "processes": processes,
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__, "time": round(time.time()),
    }  # fmt: skip
    with (work / "log.jsonl").open("a") as log:
        log.write(json.dumps(begin) + "\n")
    write_scenes(work / "held_out.npy", recipe.held_out, HELD_OUT_INSTANCES, processes)
    if not (work / "tokenizer" / "vocab.json").exists():
        write_tokenizer(work / "tokenizer")
    if only != "scorers":
        write_scenes(work / "pictures.npy", recipe.pictures, BASE_INSTANCES, processes)
        if recipe.denoiser.focus:
            write_products(work / "products.npy", recipe.pictures, BASE_INSTANCES, processes)
        if not (fit(text) and fit(autoencoder)):
            return False
        if not (work / "latents.npy").exists():
            on_machines(denoiser.write_latents, (recipe, work), device=device, processes=processes)
        if not fit(denoiser):
            return False
        export_base(recipe, work, out / "base")
        export_metric(out / "base", recipe.metric, out / "metric.safetensors")
    if only != "base":
        for scorer in SCORERS:
            if not fit(scorer):
                return False
            scorer.export(recipe, work, out / "scorers" / scorer.NAME)
        shutil.copyfile(work / "log.jsonl", out / "scorers" / "log.jsonl")
    return True


if __name__ == "__main__":
    main()
