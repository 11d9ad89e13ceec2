"""The methods and the rates that their tuning tries on a base of the size of Stable Diffusion.

The first setting of each method is the published one, or that of diffusers' own scripts. Every method has the same
number of settings, which vary its decisive rates around the first one.
"""

from typing import Any

from perfusion_ops.compare.methods import (
    Contestant,
    NoSettings,
    no_numbers,
    on_parts,
    ours_each,
    ours_numbers,
    settings_of,
    train_nothing,
    train_own,
)
from perfusion_ops.rivals import custom_diffusion, dreambooth, lora, textual_inversion
from perfusion_ops.rivals.custom_diffusion import CustomDiffusion
from perfusion_ops.rivals.dreambooth import DreamBooth
from perfusion_ops.rivals.lora import Lora, PivotalTuning
from perfusion_ops.rivals.textual_inversion import TextualInversion

WORD = "word"  # the base model itself, which calls the product by its superclass


def entrants(training: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Contestant]:
    """All methods by name, that of the plain word first.

    Args:
        training: the base folder's defaults of our own method.
        sampling: the same.
    """
    paper: dict[str, Any] = {"recipe": "paper"}
    # Each says what it keeps beside the offset: the base folder's own default may have both.
    offset: dict[str, Any] = {"recipe": "offset", "references": 0, "conv_rank": 0}
    references: dict[str, Any] = {**offset, "references": 4}
    edit: dict[str, Any] = {**offset, "conv_rank": 2}
    found = [
        Contestant(WORD, (NoSettings(),), train_nothing, no_numbers, trained=False),
        Contestant(
            "ours-paper",
            ours_each(training, sampling, paper, {**paper, "lr_embedding": 0.001}, {**paper, "lr_value": 0.01}),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "ours-offset",
            ours_each(training, sampling, offset, {**offset, "lr_embedding": 0.002}, {**offset, "lr_value": 0.003}),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "ours-references",
            ours_each(
                training, sampling, references, {**references, "lr_embedding": 0.002}, {**references, "references": 1}
            ),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "ours-convolutions",
            ours_each(training, sampling, edit, {**edit, "lr_conv": 0.002}, {**edit, "lr_value": 0.003}),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "textual-inversion",
            settings_of(TextualInversion, {"lr": 2e-3}, {"lr": 5e-4}, {"lr": 5e-3}),
            on_parts(textual_inversion.train_textual_inversion),
            textual_inversion.numbers_of,
        ),
        Contestant(
            "custom-diffusion",
            settings_of(CustomDiffusion, {"lr": 1e-5}, {"lr": 4e-5}, {"lr": 1e-5, "prior_rows": 1}, lr_token=1e-3),
            on_parts(custom_diffusion.train_custom_diffusion),
            custom_diffusion.numbers_of,
        ),
        *(
            Contestant(
                f"lora-r{rank}",
                settings_of(Lora, {"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-3}, rank=rank),
                on_parts(lora.train_lora),
                lora.numbers_of,
            )
            for rank in (4, 16)
        ),
        Contestant(
            "lora-token",
            settings_of(PivotalTuning, {"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-3}, lr_token=1e-3),
            on_parts(lora.train_pivotal_tuning),
            lora.numbers_of,
        ),
        Contestant(
            "dreambooth",
            settings_of(DreamBooth, {"lr": 5e-6}, {"lr": 2e-6}, {"lr": 5e-6, "prior_rows": 1}),
            on_parts(dreambooth.train_dreambooth),
            dreambooth.numbers_of,
        ),
    ]
    return {each.name: each for each in found}
