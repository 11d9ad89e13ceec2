"""Exported LoRAs of trained concepts against the gated edit: errors of keys and values, and of pictures.

The concepts are of the embedded catalogue, trained with recipe `paper`, and kept under .bench/export. Intervals are
over products.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import finish, show
from perfusion_ops.api.bases import load_base
from perfusion_ops.api.concepts import load_concept
from perfusion_ops.api.metrics import load_metric
from perfusion_ops.base_model import Base
from perfusion_ops.compare.intervals import bootstrap
from perfusion_ops.concept import Concept, GatedConcept
from perfusion_ops.concept_file import write_concept
from perfusion_ops.conditioning import prompt_row
from perfusion_ops.config import TrainingConfig
from perfusion_ops.export.errors import measure
from perfusion_ops.export.linear import Gating, LinearEdit, encoded, fit
from perfusion_ops.export.prompts import export_prompts
from perfusion_ops.metric import Metric
from perfusion_ops.mini import metric_file
from perfusion_ops.mini.catalog import catalog_product
from perfusion_ops.mini.world.scene import portrait
from perfusion_ops.mini.world.scene import render as photograph
from perfusion_ops.mini.world.vocabulary import superclass
from perfusion_ops.pipelines import make_pipeline
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.training.examples import make_example
from perfusion_ops.training.trainer import Trainer

_PRODUCTS, _STEPS = 8, 200
_KEPT = Path(".bench/export")
_PHOTOS = 4
_RESAMPLES = 2000
_PLACES = (
    *("on the beach", "in the snow", "on green grass", "in the city at night", "on a wooden table"),
    *("in front of a brick wall", "in the forest", "underwater", "in the kitchen"),
)
# Bars on the means: shares of the edit and of keys and values that are right, and decibels.
BARS = {"right_at_own_token": 0.99, "right_at_other_tokens": 0.90, "psnr": 35.0}


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bars are met."""
    began = time.perf_counter()
    base = load_base("mini")
    metric = load_metric(base, metric_file())
    concepts = _concepts(base, metric, options.rows or _PRODUCTS, options.steps or _STEPS)
    bias, temperature = float(base.folder.settings.sampling["bias"]), 0.15
    fitting, held_out = export_prompts(base, 1)
    columns: dict[str, list[float]] = {}
    for number, concept in enumerate(concepts):
        gating = Gating((concept,), bias, temperature)
        edit = fit(base, metric, gating, fitting).stored(torch.float16)
        errors = measure(base, metric, gating, edit, held_out)
        found = {**errors.model_dump(), "psnr": _psnr(base, metric, gating, edit)}
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
        show(
            f"product {number + 1}/{len(concepts)}: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}"
        )
    pairs = [_pair(base, metric, concepts[at : at + 2], bias, temperature) for at in range(0, len(concepts) - 1, 2)]
    for name in ("own", "others") if pairs else ():
        columns[f"pair_{name}"] = [pair[name] for pair in pairs]
    intervals = {name: bootstrap(values, resamples=_RESAMPLES) for name, values in columns.items()}
    for name, interval in intervals.items():
        show(f"{name:12} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]")
    figures = {
        "products": len(concepts),
        "pictures": len(concepts) * len(_PLACES),
        "right_at_own_token": 1 - intervals["own"].mean,
        "right_at_other_tokens": 1 - intervals["others"].mean,
        **{f"{name}_{bound}": getattr(each, bound) for name, each in intervals.items() for bound in ("low", "high")},
        **{name: each.mean for name, each in intervals.items()},
        "worst_own": max(columns["own"]),
        "worst_others": max(columns["others"]),
        "seconds": time.perf_counter() - began,
    }
    return finish("export", figures, BARS)


def _concepts(base: Base, metric: Metric, count: int, steps: int) -> list[GatedConcept]:
    """Trained together once, and read as a run reads them: numbers are float16."""
    config = TrainingConfig.model_validate(base.folder.settings.training)
    config = config.overridden({"recipe": "paper", "lr_value": 0.02, "steps": steps})
    files = [_KEPT / f"{base.folder.digest[:12]}-{steps}-{number}.safetensors" for number in range(count)]
    if not all(file.exists() for file in files):
        show(f"training {count} concepts of {steps} steps; they are kept under {_KEPT}")
        trainer = Trainer(base, metric, [make_example(base, *_photos(number), config) for number in range(count)])
        trainer.run(lambda _: None)
        _KEPT.mkdir(parents=True, exist_ok=True)
        for state, example, file in zip(trainer.states, trainer.examples, files, strict=True):
            file.write_bytes(write_concept(state.concept(example, base, metric)))
    read = [load_concept(base, metric, file) for file in files]
    return [concept for concept in read if isinstance(concept, GatedConcept)]


def _photos(number: int) -> tuple[str, list[tuple[Image.Image, Image.Image]]]:
    product = catalog_product(number)
    shots = [photograph(portrait(product, shot)) for shot in range(_PHOTOS)]
    masks = [Image.fromarray(np.rint(shot.masks[0] * 255).astype(np.uint8)) for shot in shots]
    return superclass(product.look.category), [
        (Image.fromarray(shot.pixels), mask) for shot, mask in zip(shots, masks, strict=True)
    ]


def _pair(
    base: Base, metric: Metric, concepts: Sequence[GatedConcept], bias: float, temperature: float
) -> dict[str, float]:
    """Errors of two concepts exported together."""
    gating = Gating(tuple(concepts), bias, temperature)
    fitting, held_out = export_prompts(base, 2)
    edit = fit(base, metric, gating, fitting).stored(torch.float16)
    return measure(base, metric, gating, edit, held_out).model_dump()


@torch.no_grad()
def _psnr(base: Base, metric: Metric, gating: Gating, edit: LinearEdit) -> float:
    """Of the pictures of the linear edit, the negative prompt edited as well, against those of the gated edit."""
    settings = base.folder.settings.sampling
    side, steps, guidance = base.resolution, int(settings["steps"]), float(settings["guidance"])
    concepts: tuple[Concept, ...] = gating.concepts
    texts = [f"a photo of a {{0}} {place}" for place in _PLACES]
    row = prompt_row("", (), bias=gating.bias, temperature=gating.temperature, lock="local")
    rows = [
        RenderRow(
            prompt_row(text, concepts, bias=gating.bias, temperature=gating.temperature, lock="local"), row, 100 + seed
        )
        for seed, text in enumerate(texts)
    ]
    gated = np.stack(
        [each for each in render(base, metric, rows, Sampler(side, side, steps, guidance, "ddim")) if each is not None]
    )
    weight = base.stack.weight

    def changed(found: torch.Tensor) -> torch.Tensor:
        return found @ weight.mT + (found @ edit.down.mT) @ edit.up.mT

    positive, _ = encoded(base, [base.texts.tokenize(text) for text in texts], gating)
    empty, _ = encoded(base, [base.texts.tokenize("")])
    images = make_pipeline(base, "ddim")(
        prompt_embeds=changed(positive),
        negative_prompt_embeds=changed(empty).expand(len(texts), -1, -1),
        width=side,
        height=side,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(each.seed) for each in rows],
        output_type="np",
    ).images
    linear: NDArray[np.floating] = np.asarray(images) * 255
    squares = np.square(linear - gated).mean((1, 2, 3)) / 255**2
    return float((-10 * np.log10(np.maximum(squares, 1e-10))).mean())
