"""The text encoder: a small CLIPTextModel, trained to read captions before the denoiser continues its training.

To read is to answer questions from the state of the caption's end alone: which place, which view, which categories, and
what does each look like? The answers are those of the scene. What the caption omits can only be guessed by frequency.
"""

from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from perfusion_ops.mini.build.pictures import captioned, described
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.training.loop import Loss, train
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.build.words import CONTEXT, load_tokenizer
from perfusion_ops.mini.world.products import BASE_INSTANCES
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, PATTERNS, Description

NAME = "text"
ANGLES = ("front", "side", "above", "tilted")
FRAMINGS = ("mid", "big", "small")
RELATIONS = (None, "beside", "on", "wearing", "inside")


def build(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder."""
    sizes = recipe.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.width,
            intermediate_size=3 * sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            max_position_embeddings=CONTEXT,
            projection_dim=sizes.width,
            bos_token_id=int(tokenizer.bos_token_id),  # pyright: ignore[reportArgumentType]
            eos_token_id=int(tokenizer.eos_token_id),  # pyright: ignore[reportArgumentType]
            pad_token_id=int(tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
        )
    )


def tokens(tokenizer: CLIPTokenizer, lines: list[str]) -> Tensor:
    """Token ids of captions, (B, CONTEXT), padded to the full context as the denoiser sees them."""
    return tokenizer(lines, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")["input_ids"]


class Reading(nn.Module):
    """The text encoder with a linear answer to every question."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.end = int(encoder.config.eos_token_id)  # pyright: ignore[reportArgumentType]
        self.place = nn.Linear(width, len(BACKGROUNDS))
        self.angle = nn.Linear(width, len(ANGLES))
        self.framing = nn.Linear(width, len(FRAMINGS))
        self.relation = nn.Linear(width, len(RELATIONS))
        self.presence = nn.Linear(width, len(CATEGORIES))
        self.first = nn.Linear(width, len(CATEGORIES))
        self.color = nn.Linear(width, len(CATEGORIES) * len(COLORS))
        self.pattern = nn.Linear(width, len(CATEGORIES) * len(PATTERNS))

    def forward(self, ids: Tensor, scenes: list[Description]) -> Tensor:
        """The mean loss of all answers to captions `ids` (B, CONTEXT) of `scenes`."""
        rows = torch.arange(len(ids))
        states = self.encoder(ids).last_hidden_state[rows, ids.eq(self.end).int().argmax(1)]
        device = states.device

        def choice(head: nn.Linear, answers: list[int]) -> Tensor:
            return nn.functional.cross_entropy(head(states), torch.tensor(answers, device=device))

        looks = [(row, place, look) for row, scene in enumerate(scenes) for place, look in enumerate(scene.looks)]
        kinds = torch.tensor([CATEGORIES.index(look.category) for _, _, look in looks], device=device)
        of = torch.tensor([row for row, _, _ in looks], device=device)
        present = torch.zeros(len(ids), len(CATEGORIES), device=device)
        present[of, kinds] = 1
        colors = self.color(states).view(-1, len(CATEGORIES), len(COLORS))[of, kinds]
        patterns = self.pattern(states).view(-1, len(CATEGORIES), len(PATTERNS))[of, kinds]
        # Of two products, the subject of the relation; of two side by side, the left one.
        first = [scene.looks[0 if scene.first_is_left else 1] for scene in scenes]
        return (
            choice(self.place, [BACKGROUNDS.index(scene.background) for scene in scenes])
            + choice(self.angle, [ANGLES.index(scene.angle) for scene in scenes])
            + choice(self.framing, [FRAMINGS.index(scene.framing) for scene in scenes])
            + choice(self.relation, [RELATIONS.index(scene.relation) for scene in scenes])
            + choice(self.first, [CATEGORIES.index(look.category) for look in first])
            + 4 * nn.functional.binary_cross_entropy_with_logits(self.presence(states), present)
            + nn.functional.cross_entropy(
                colors, torch.tensor([COLORS.index(look.primary) for _, _, look in looks], device=device)
            )
            + nn.functional.cross_entropy(
                patterns, torch.tensor([PATTERNS.index(look.pattern) for _, _, look in looks], device=device)
            )
        )


def fit(machine: Machine, recipe: Recipe, folder: Path, until: float | None) -> None:
    """Train it to read; the checkpoint has the weights as `encoder.*`."""
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(folder / "tokenizer")
    reading = Reading(build(recipe, tokenizer)).to(machine.device)
    share = recipe.text.fit.batch // machine.processes
    train(
        NAME, reading, _loss(reading, tokenizer, recipe, share, machine), recipe.text.fit,
        machine=machine, folder=folder, seed=recipe.seed, until=until,
    )  # fmt: skip


def _loss(reading: Reading, tokenizer: CLIPTokenizer, recipe: Recipe, share: int, machine: Machine) -> Loss:
    def loss(_: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(recipe.pictures, (share,), generator=generator).tolist()
        random = Random(int(torch.randint(2**62, (), generator=generator)))  # noqa: S311
        ids = tokens(tokenizer, [captioned(number, BASE_INSTANCES, random) for number in chosen])
        with machine.autocast():
            return reading(ids.to(machine.device), [described(number, BASE_INSTANCES) for number in chosen])

    return loss
