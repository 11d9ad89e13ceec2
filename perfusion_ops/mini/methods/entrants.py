"""The methods side by side: how each is trained here, and the settings that its tuning tries.

Every method has the same number of settings. Each varies the rates that its field calls decisive, and tries the cosine
decay with evenly drawn rows; the first setting is what the literature or an earlier look at this base suggests, and is
what a measurement without tuning uses.
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

# What our own settings start from, whatever the embedded base's defaults are: recorded cells stay those of a setting.
TRAINING: dict[str, Any] = {"steps": 200, "batch": 4, "lr_value": 0.02}
SAMPLING: dict[str, Any] = {"steps": 20, "guidance": 7.0, "bias": 0.7}

# A word that the embedded base's tokenizer knows and its captions never use.
_RARE = "style"
_EVEN: dict[str, Any] = {"decay": "cosine", "even": True}
_EDIT: dict[str, Any] = {"recipe": "offset", "lr_value": 0.005, "lr_conv": 0.003}
# The prior's pictures, as this base draws well.
_PRIOR: dict[str, Any] = {"prior_steps": 20, "prior_guidance": 7.0}


def contestants() -> dict[str, Contestant]:
    """All methods by name."""
    loras = ({}, {"lr": 1e-3}, {"lr": 2e-4}, _EVEN, {**_EVEN, "lr": 1e-3}, {**_EVEN, "lr": 2e-3})
    found = [
        Contestant("word", (NoSettings(),), train_nothing, no_numbers, trained=False),
        Contestant(
            "ours-paper",
            ours_each(
                TRAINING,
                SAMPLING,
                {},
                {"lr_embedding": 0.002},
                {"lr_embedding": 0.001},
                {"lr_value": 0.05},
                {"lr_value": 0.05, "lr_embedding": 0.001},
                {"lr_value": 0.01, "lr_embedding": 0.003},
            ),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "ours-offset",
            ours_each(
                TRAINING,
                SAMPLING,
                {"recipe": "offset"},
                {"recipe": "offset", "lr_value": 0.006},
                {"recipe": "offset", "lr_value": 0.02},
                {"recipe": "offset", "lr_embedding": 0.003},
                {"recipe": "offset", "lr_embedding": 0.012},
                {"recipe": "offset", "lr_value": 0.006, "lr_embedding": 0.01},
            ),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "ours-references",
            ours_each(
                TRAINING,
                SAMPLING,
                {"recipe": "offset", "references": 4},
                {"recipe": "offset", "references": 4, "lr_value": 0.02},
                {"recipe": "offset", "references": 2, "lr_value": 0.02},
                {"recipe": "offset", "references": 4, "lr_value": 0.006},
                {"recipe": "offset", "references": 4, "lr_embedding": 0.003},
                {"recipe": "offset", "references": 1, "lr_value": 0.02},
            ),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "ours-convolutions",
            # All of them fit in a file of 100 KB at the width of SD 1.5.
            (
                *ours_each(
                    TRAINING,
                    {**SAMPLING, "strength": 0.7},
                    {**_EDIT, "conv_rank": 2},
                    {**_EDIT, "conv_rank": 1},
                    {**_EDIT, "conv_rank": 1, "references": 2},
                    {**_EDIT, "conv_rank": 1, "references": 2, "lr_value": 0.02},
                ),
                *ours_each(TRAINING, SAMPLING, {**_EDIT, "conv_rank": 2}, {**_EDIT, "conv_rank": 1, "references": 2}),
            ),
            train_own,
            ours_numbers,
        ),
        Contestant(
            "textual-inversion",
            settings_of(
                TextualInversion,
                {},
                {"lr": 3e-3},
                {"lr": 1.2e-2},
                {"noun": True},
                {**_EVEN, "lr": 1.2e-2},
                {**_EVEN, "lr": 1.2e-2, "noun": True},
            ),
            on_parts(textual_inversion.train_textual_inversion),
            textual_inversion.numbers_of,
        ),
        Contestant(
            "custom-diffusion",
            settings_of(
                CustomDiffusion,
                {},
                {"lr": 2e-4},
                {"lr": 3e-5},
                {"prior_rows": 1},
                {**_EVEN, "lr": 1.5e-4},
                {**_EVEN, "lr": 1.5e-4, "lr_token": 6e-3},
                start=_RARE,
                **_PRIOR,
            ),
            on_parts(custom_diffusion.train_custom_diffusion),
            custom_diffusion.numbers_of,
        ),
        *(
            Contestant(
                f"lora-r{rank}",
                settings_of(Lora, *loras, rank=rank, identifier=_RARE),
                on_parts(lora.train_lora),
                lora.numbers_of,
            )
            for rank in (4, 16)
        ),
        Contestant(
            "lora-token",
            settings_of(
                PivotalTuning,
                {},
                {"lr_token": 6e-3},
                {"lr": 1e-3},
                {"token_share": 1.0},
                _EVEN,
                {**_EVEN, "lr": 1e-3, "lr_token": 6e-3},
                identifier=_RARE,
            ),
            on_parts(lora.train_pivotal_tuning),
            lora.numbers_of,
        ),
        Contestant(
            "dreambooth",
            settings_of(
                DreamBooth,
                {},
                {"lr": 7e-5},
                {"lr": 3e-4},
                {**_EVEN, "lr": 1.5e-4},
                {**_EVEN, "lr": 3e-4},
                {**_EVEN, "lr": 6e-4},
                identifier=_RARE,
            ),
            on_parts(dreambooth.train_dreambooth),
            dreambooth.numbers_of,
        ),
        Contestant(
            "dreambooth-prior",
            settings_of(
                DreamBooth,
                {"prior_rows": 1},
                {"prior_rows": 2},
                {"prior_rows": 1, "lr": 3e-4},
                {"prior_rows": 1, "prior_weight": 0.3},
                {**_EVEN, "prior_rows": 1, "lr": 3e-4},
                {**_EVEN, "prior_rows": 1, "lr": 3e-4, "prior_weight": 0.3},
                identifier=_RARE,
                **_PRIOR,
            ),
            on_parts(dreambooth.train_dreambooth),
            dreambooth.numbers_of,
        ),
    ]
    return {each.name: each for each in found}
