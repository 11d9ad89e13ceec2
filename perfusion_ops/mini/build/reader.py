"""The reader: a small residual network that recognises what a picture shows, with one head per question.

`class` has an independent answer for every category, because a picture may show two products; every other head chooses
one of its labels. Colour, pattern and angle are defined for one product, so only pictures of one product train them.
No question distinguishes left from right, so half of the pictures are mirrored.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import ResNetForImageClassification

from perfusion_ops.mini.build import scorers
from perfusion_ops.mini.build.pictures import tensor
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.training.loop import Loss, load_mean, train
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.world.products import SCORER_INSTANCES
from perfusion_ops.mini.world.scene import sample_scene
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, PATTERNS, Angle, Description, Relation

NAME = "reader"
HEADS: dict[str, tuple[str, ...]] = {
    "class": CATEGORIES,
    "context": BACKGROUNDS,
    "color": COLORS,
    "pattern": PATTERNS,
    "angle": get_args(Angle),
    "relation": ("none", *get_args(Relation)),
}
_UNTAUGHT = -100  # ignored by cross entropy
# Colour of two products, or of one with two colours: only handles, rims and soles show which one is the main colour.
_HARD = ("striped", "dotted", "checked")
_OFTEN = 3.0  # times as often as others


def build(recipe: Recipe) -> ResNetForImageClassification:
    """The untrained reader; its labels are `head:name`."""
    labels = [f"{head}:{label}" for head, names in HEADS.items() for label in names]
    options = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    return ResNetForImageClassification(scorers.residual(recipe.reader, **options))


def fit(machine: Machine, recipe: Recipe, folder: Path, until: float | None) -> None:
    """Train it to the end, or `until` that time, on scenes and photographs; the checkpoint has the weights."""
    torch.manual_seed(recipe.seed)
    pictures = scorers.scenes(machine, recipe, folder), scorers.photographs(machine, recipe, folder)
    model = build(recipe).to(device=machine.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    share = recipe.reader.fit.batch // machine.processes
    train(
        NAME, model, _loss(model, pictures, share, machine), recipe.reader.fit,
        machine=machine, folder=folder, seed=recipe.seed, until=until,
    )  # fmt: skip


def _loss(
    model: ResNetForImageClassification, pictures: tuple[np.ndarray, np.ndarray], share: int, machine: Machine
) -> Loss:
    through = machine.compiled(model)
    scenes, photographs = pictures
    seen = [sample_scene(number, SCORER_INSTANCES).describe() for number in range(len(scenes))]
    seen += [scorers.photographed_scene(number).describe() for number in range(len(photographs))]
    truth, weights = answers(seen), torch.tensor([often(scene) for scene in seen])

    def loss(_: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(weights, share, replacement=True, generator=generator).sort().values
        of_scenes = chosen[chosen < len(scenes)].numpy()
        of_photographs = chosen[chosen >= len(scenes)].numpy() - len(scenes)
        clean = tensor(np.concatenate([scenes[of_scenes], photographs[of_photographs]]))
        mirrored = torch.rand(share, 1, 1, 1, generator=generator) < 0.5
        given = scorers.worn(torch.where(mirrored, clean.flip(3), clean), generator).to(machine.device)
        with machine.autocast():
            logits = through(given).logits
        parts = logits.float().split([len(names) for names in HEADS.values()], dim=1)
        total = torch.zeros((), device=machine.device)
        for head, part in zip(HEADS, parts, strict=True):
            right = truth[head][chosen].to(machine.device)
            if head == "class":
                total = total + functional.binary_cross_entropy_with_logits(part, right, reduction="sum")
            else:
                total = total + functional.cross_entropy(part, right, ignore_index=_UNTAUGHT, reduction="sum")
        return total / share

    return loss


def often(scene: Description) -> float:
    """Relative frequency of a scene."""
    return _OFTEN if scene.relation is not None or scene.looks[0].pattern in _HARD else 1.0


def answers(scenes: Sequence[Description]) -> dict[str, Tensor]:
    """Correct answers of B scenes: `class` (B, L) float of zeros and ones, other heads (B,) label numbers."""
    present = torch.zeros(len(scenes), len(CATEGORIES))
    for row, scene in enumerate(scenes):
        present[row, [CATEGORIES.index(look.category) for look in scene.looks]] = 1

    def choice(head: str, labels: list[str | None]) -> Tensor:
        return torch.tensor([_UNTAUGHT if label is None else HEADS[head].index(label) for label in labels])

    alone = [scene.looks[0] if scene.relation is None else None for scene in scenes]
    return {
        "class": present,
        "context": choice("context", [scene.background for scene in scenes]),
        "color": choice("color", [look and look.primary for look in alone]),
        "pattern": choice("pattern", [look and look.pattern for look in alone]),
        "angle": choice("angle", [scene.angle if scene.relation is None else None for scene in scenes]),
        "relation": choice("relation", [scene.relation or "none" for scene in scenes]),
    }


def export(recipe: Recipe, folder: Path, into: Path) -> None:
    """Replace `into` by the reader as last saved in `folder`: a transformers folder."""
    model = build(recipe)
    load_mean(folder / f"{NAME}.safetensors", model)
    scorers.write(model, into)
