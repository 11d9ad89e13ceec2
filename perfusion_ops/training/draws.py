"""The random choices of a training step: which photo, template, timestep and noise each row has."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perfusion_ops.training.holes import WHOLE
from perfusion_ops.training.state import Example


@dataclass(frozen=True)
class Draw:
    """The random choices of one row.

    Attributes:
        concept: number of the concept in its group.
        image: which of the example's latents.
        template: which training prompt.
        timestep: of the noise schedule.
        noise: (C, h, w) standard normal.
        hole: which of the example's further inputs; None if it has none.
    """

    concept: int
    image: int
    template: int
    timestep: int
    noise: Tensor
    hole: int | None = None


def draw_rows(
    concept: int, example: Example, generator: torch.Generator, *, templates: int, timesteps: int
) -> list[Draw]:
    """The rows of one step of one concept, from its own random stream.

    Args:
        concept: number of the concept in its group.
        example: photos and settings of the concept.
        generator: the concept's random stream, on the CPU.
        templates: how many training prompts there are.
        timesteps: how many the noise schedule has.
    """
    config, shape = example.config, example.latents.shape[1:]
    # Mirrored photos follow the others: a mirrored latent is not the latent of a mirrored photo.
    photos = len(example.latents) // 2 if config.flip else len(example.latents)
    rows = config.batch
    images = torch.randint(photos, (rows,), generator=generator).tolist()
    chosen = torch.randint(templates, (rows,), generator=generator).tolist()
    steps = torch.randint(timesteps, (rows,), generator=generator).tolist()
    flips = torch.randint(2, (rows,), generator=generator).tolist()
    if config.stratified:
        # Row n has a timestep of the n-th of `rows` equal parts, and the photos take turns in random order.
        steps = [(row * timesteps + step) // rows for row, step in enumerate(steps)]
        order = torch.randperm(rows, generator=generator).tolist()
        turns = torch.randperm(photos, generator=generator).tolist()
        images = [turns[place % photos] for place in order]
    noise = torch.randn((rows, *shape), generator=generator)
    mirrored = [photos if config.flip and flip else 0 for flip in flips]
    places = [image + shift for image, shift in zip(images, mirrored, strict=True)]
    holes: list[int | None] = [None] * rows
    if example.further is not None:
        whole = torch.randint(WHOLE, (rows,), generator=generator).eq(0).tolist()
        holes = [len(example.latents) if every else place for every, place in zip(whole, places, strict=True)]
    return [
        Draw(concept, place, template, step, noise[row], hole)
        for row, (place, template, step, hole) in enumerate(zip(places, chosen, steps, holes, strict=True))
    ]
