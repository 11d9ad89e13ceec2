"""The embedded models: they load offline from the package, are small, and draw and see what they are asked for."""

import json

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import safe_open

from perfusion_ops.base import load_base
from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.folder import describe
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.build.autoencoder import fidelity
from perfusion_ops.mini.build.pictures import HELD_OUT_INSTANCES
from perfusion_ops.mini.build.recipe import FULL, Recipe
from perfusion_ops.mini.quality.measure import measure_base, measure_scorers
from perfusion_ops.mini.quality.prompts import requests
from perfusion_ops.mini.scene import render, sample_scene
from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.models import load_scorers

SCORERS = base_folder().parent / "scorers"


def test_weights_are_half_precision_safetensors_and_small():
    base, scorers = ([file for file in folder.rglob("*") if file.is_file()] for folder in (base_folder(), SCORERS))
    weights = [file for file in (*base, *scorers) if file.suffix == ".safetensors"]
    assert {file.parent.name for file in weights} == {"text_encoder", "unet", "vae", "dual", "identity", "reader"}
    assert {file.suffix for file in (*base, *scorers)} == {".safetensors", ".json", ".txt", ".jsonl"}
    assert sum(file.stat().st_size for file in base) < 24e6
    assert sum(file.stat().st_size for file in scorers) < 12e6
    for file in weights:
        with safe_open(file, framework="np") as tensors:
            counters = ("num_batches_tracked", "position_ids")
            names = [name for name in list(tensors.keys()) if not name.endswith(counters)]
            assert {tensors.get_slice(name).get_dtype() for name in names} == {"F16"}
            assert all(np.isfinite(tensors.get_tensor(name)).all() for name in names)


def test_the_log_of_their_making_lies_beside_them():
    lines = [json.loads(line) for line in (base_folder() / "log.jsonl").read_text().splitlines()]
    begun = [line for line in lines if line["stage"] == "begin"]
    assert all(Recipe.model_validate(line["recipe"]).seed == FULL.seed for line in begun)
    assert {"text", "autoencoder", "denoiser"} <= {line["stage"] for line in lines}


def test_the_autoencoder_keeps_what_a_picture_shows():
    vae = AutoencoderKL.from_pretrained(base_folder() / "vae", torch_dtype=torch.float32).eval()
    pictures = np.stack([render(sample_scene(seed, HELD_OUT_INSTANCES)).pixels for seed in range(96)])
    assert fidelity(vae, pictures) >= 28


def test_configurations_name_no_machine():
    for file in base_folder().rglob("*.json"):
        assert not {"_name_or_path", "is_local", "local_files_only"} & set(json.loads(file.read_text()))


def test_own_settings_are_valid_and_readable_by_its_tokenizer():
    settings = json.loads((base_folder() / "perfusion.json").read_text())
    SamplingConfig.model_validate(settings["sampling"])
    TrainingConfig.model_validate(settings.get("training", {}))
    assert settings["resolution"] == 64
    vocabulary = json.loads((base_folder() / "tokenizer" / "vocab.json").read_text())
    for template in settings["templates"]:
        assert template.count("{}") == 1
        assert all(f"{word}</w>" in vocabulary for word in template.replace("{}", "mug").split())


@pytest.fixture(scope="module")
def measured():
    """What the scorers see in the base's pictures of 72 prompts; threads only wait for each other on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = load_scorers(choose_scorers("mini"))
    base, drawn = measure_base(load_base(describe(base_folder())), loaded.reader, SCORERS / "reader", requests(72))
    yield base, measure_scorers(loaded, 240), drawn
    torch.set_num_threads(before)


def test_the_base_draws_what_is_asked(measured):
    base, _, drawn = measured
    assert drawn.shape == (72, 64, 64, 3)
    assert base.drawn.class_share >= 0.9
    assert base.drawn.context_share >= 0.95
    assert base.drawn.both_share >= 0.6
    assert base.drawn.color_share >= 0.8
    assert base.drawn.pattern_share >= 0.7


def test_the_scorers_see_what_is_there(measured):
    _, scorers, _ = measured
    assert scorers.read.class_share >= 0.98
    assert scorers.read.context_share >= 0.98
    assert scorers.read.color_share >= 0.93
    assert scorers.identity_equal_error_rate <= 0.05
    assert scorers.dual_recall_at_1_of_200 >= 0.5
