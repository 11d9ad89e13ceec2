"""The embedded base model: loads offline from the package, is small, and draws what it is asked for."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.mini import base_folder


def test_weights_are_half_precision_safetensors_and_small():
    files = [file for file in base_folder().rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert {file.parent.name for file in weights} == {"text_encoder", "unet", "vae"}
    assert {file.suffix for file in files} == {".safetensors", ".json", ".txt"}
    assert sum(file.stat().st_size for file in files) < 20e6
    for file in weights:
        with safe_open(file, framework="np") as tensors:
            names = list(tensors.keys())
            assert {tensors.get_slice(name).get_dtype() for name in names if "position_ids" not in name} == {"F16"}
            assert all(np.isfinite(tensors.get_tensor(name)).all() for name in names)


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


@pytest.fixture
def one_thread():
    """Threads that wait for each other on busy cores make these small tensors many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_draws_the_place_that_the_prompt_names(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    prompts = [f"a photo of a mug {place}" for place in ("on the beach", "in space", "in the snow", "in the forest")]
    noise = [torch.Generator().manual_seed(0) for _ in prompts]
    drawn = pipeline(prompts, num_inference_steps=8, guidance_scale=4.5, generator=noise, output_type="np").images
    beach, space, snow, forest = drawn
    assert drawn.shape == (4, 64, 64, 3)
    assert beach[:12, :, 2].mean() > beach[:12, :, 0].mean()  # blue sky
    assert beach[-8:, :, 0].mean() > beach[-8:, :, 2].mean() + 0.1  # yellow sand
    assert snow[-8:].mean() > 0.75
    assert space[-8:].mean() < 0.25
    assert forest[-8:, :, 2].mean() < forest[-8:, :, 1].mean()  # brown ground
