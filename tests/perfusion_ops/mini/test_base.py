"""The embedded base model: it loads offline from the package and draws what it is asked for."""

import json

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.mini import base_folder, scorers_folder
from perfusion_ops.mini.build.autoencoder import fidelity
from perfusion_ops.mini.build.pictures import HELD_OUT_INSTANCES
from perfusion_ops.mini.embedded import embedded_scorers
from perfusion_ops.mini.quality.measure import measure_base
from perfusion_ops.mini.quality.prompts import requests
from perfusion_ops.mini.world.scene import render, sample_scene
from perfusion_ops.scoring.models import load_scorers


def test_the_autoencoder_keeps_what_a_picture_shows():
    vae = AutoencoderKL.from_pretrained(base_folder() / "vae", torch_dtype=torch.float32).eval()
    pictures = np.stack([render(sample_scene(seed, HELD_OUT_INSTANCES)).pixels for seed in range(96)])
    assert fidelity(vae, pictures) >= 28


def test_own_settings_are_valid_and_readable_by_its_tokenizer():
    settings = json.loads((base_folder() / "perfusion.json").read_text())
    SamplingConfig.model_validate(settings["sampling"])
    TrainingConfig.model_validate(settings.get("training", {}))
    assert settings["resolution"] == 64
    vocabulary = json.loads((base_folder() / "tokenizer" / "vocab.json").read_text())
    for template in settings["templates"]:
        assert template.count("{}") == 1
        assert all(f"{word}</w>" in vocabulary for word in template.replace("{}", "mug").split())


@pytest.mark.long
def test_the_base_model_draws_what_a_prompt_asks_for():
    # Looser than the bars of `make quality`, by what 72 prompts in place of 1,000 leave to chance.
    reader = load_scorers(embedded_scorers()).reader
    assert reader is not None
    found, drawn = measure_base(load_base(describe(base_folder())), reader, scorers_folder() / "reader", requests(72))
    assert drawn.shape == (72, 64, 64, 3)
    assert found.drawn.class_share >= 0.9
    assert found.drawn.context_share >= 0.95
    assert found.drawn.both_share >= 0.6
    assert found.drawn.color_share >= 0.8
    assert found.drawn.pattern_share >= 0.6
