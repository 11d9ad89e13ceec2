"""The identity scorer: a small residual network with similar features for two pictures of one product.

Metric learning by InfoNCE: a batch has two photographs of each of its products, and each must find the other among all.
Of three batches, one mixes products at random, one takes products of one category, and one takes products of one
category and colour, so that the network learns the details of individual products.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import ResNetModel

from perfusion_ops.mini.build import scorers
from perfusion_ops.mini.build.pictures import tensor
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.scorers import VIEWS
from perfusion_ops.mini.build.training.loop import Loss, load_mean, train
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.world.vocabulary import CATEGORIES, COLORS

NAME = "identity"
_TEMPERATURE = 0.07


def build(recipe: Recipe) -> ResNetModel:
    """The untrained network; `pooler_output` is the embedding."""
    return ResNetModel(scorers.residual(recipe.identity))


def fit(machine: Machine, recipe: Recipe, folder: Path, until: float | None) -> None:
    """Train it to the end, or `until` that time; the checkpoint has the weights."""
    torch.manual_seed(recipe.seed)
    pictures = scorers.photographs(machine, recipe, folder)
    model = build(recipe).to(device=machine.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    share = recipe.identity.fit.batch // machine.processes
    train(
        NAME, model, _loss(model, pictures, share, machine), recipe.identity.fit,
        machine=machine, folder=folder, seed=recipe.seed, until=until,
    )  # fmt: skip


def _loss(model: ResNetModel, pictures: np.ndarray, share: int, machine: Machine) -> Loss:
    through = machine.compiled(model)
    kinds = _kinds(len(pictures) // VIEWS)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        products = neighbours(kinds[step % 3], share // 2, generator)
        views = torch.rand(len(products), VIEWS, generator=generator).argsort(1)[:, :2]
        chosen = (products * VIEWS + views.T).flatten()
        seen = scorers.worn(tensor(pictures[chosen.numpy()]), generator).to(machine.device)
        with machine.autocast():
            pooled = through(seen).pooler_output
        return contrast(functional.normalize(pooled.float().flatten(1), dim=1), _TEMPERATURE)

    return loss


def _kinds(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """A group number for each of `count` products, for each of three groupings: none, category, category and colour."""
    looks = [scorers.photographed_scene(number * VIEWS).placed[0].product.look for number in range(count)]
    category = torch.tensor([CATEGORIES.index(look.category) for look in looks])
    color = torch.tensor([COLORS.index(look.primary) for look in looks])
    return torch.zeros(count, dtype=torch.long), category, category * len(COLORS) + color


def neighbours(kinds: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different items of N, grouped by kind: a random contiguous range of all items sorted by kind.

    Args:
        kinds: (N,) number of each item's kind; items of one kind are in random order.
        count: at most N.
        generator: for the order and the start of the range.

    Returns:
        (count,) indices into `kinds`.
    """
    ordered = (kinds + torch.rand(len(kinds), generator=generator, dtype=torch.float64)).argsort()
    start = int(torch.randint(len(kinds), (), generator=generator))
    return ordered.roll(-start)[:count]


def contrast(embeddings: Tensor, temperature: float) -> Tensor:
    """InfoNCE of (2N, D) unit vectors in which n and N + n are one product: each must find the other."""
    count = len(embeddings) // 2
    alike = (embeddings @ embeddings.T / temperature).fill_diagonal_(float("-inf"))
    other = torch.arange(2 * count, device=embeddings.device).roll(count)
    return functional.cross_entropy(alike, other)


def export(recipe: Recipe, folder: Path, into: Path) -> None:
    """Replace `into` by the network as last saved in `folder`: a transformers folder."""
    model = build(recipe)
    load_mean(folder / f"{NAME}.safetensors", model)
    scorers.write(model, into)
