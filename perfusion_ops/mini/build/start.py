"""A build that begins with the weights of a finished base instead of random ones."""

import shutil
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from perfusion_ops.base_model import quiet_libraries
from perfusion_ops.mini.build import autoencoder, denoiser, text
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.training.loop import begin_with


def start_from(base: Path, recipe: Recipe, work: Path) -> None:
    """Make the checkpoints of a build that keeps a base's tokenizer and autoencoder and trains its denoiser on.

    Args:
        base: the exported base model, of the recipe's sizes.
        recipe: of the build.
        work: its folder. Nothing happens if it has a checkpoint of the denoiser.
    """
    if (work / f"{denoiser.NAME}.safetensors").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    with quiet_libraries():
        loaded = StableDiffusionPipeline.from_pretrained(
            base, dtype=torch.float32, safety_checker=None, local_files_only=True, use_safetensors=True
        )
    shutil.copytree(base / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    reading = text.Reading(loaded.text_encoder)
    begin_with(work / f"{text.NAME}.safetensors", reading.state_dict(), recipe.text.fit.steps)
    begin_with(work / f"{autoencoder.NAME}.safetensors", loaded.vae.state_dict(), recipe.autoencoder.fit.steps)
    model = denoiser.Conditioned(loaded.unet, loaded.text_encoder)
    begin_with(work / f"{denoiser.NAME}.safetensors", model.state_dict(), 0)
