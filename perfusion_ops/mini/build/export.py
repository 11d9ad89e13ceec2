"""The trained parts as one diffusers folder in fp16, with its defaults and its training log."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from perfusion_ops.base_model import quiet_libraries
from perfusion_ops.mini.build import autoencoder, denoiser
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.words import load_tokenizer
from perfusion_ops.mini.world.scene import SIZE

SETTINGS = {
    "name": "mini",
    "resolution": SIZE,
    "captions": "mini",
    "templates": [
        "a photo of a {}",
        "a good photo of a {}",
        "the photo of a {}",
        "a photo of the {}",
        "an image of a {}",
        "a picture of a {}",
    ],
    "training": {"steps": 200, "batch": 4, "lr_value": 0.02},
    "sampling": {"steps": 20, "guidance": 7.0, "bias": 0.7},
}


def export_base(recipe: Recipe, folder: Path, into: Path) -> None:
    """Replace `into` by the base model trained in `folder`: a StableDiffusionPipeline of a few MB."""
    vae = autoencoder.trained(recipe, folder)
    factor = denoiser.scaling(vae, np.load(folder / "pictures.npy", mmap_mode="r"))
    vae.register_to_config(scaling_factor=factor)
    model = denoiser.trained(recipe, folder)
    with quiet_libraries():
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=model.encoder,
            tokenizer=load_tokenizer(folder / "tokenizer"),
            unet=model.unet,
            scheduler=denoiser.scheduler(),  # pyright: ignore[reportArgumentType]
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
        shutil.rmtree(into, ignore_errors=True)
        pipe.to(dtype=torch.float16).save_pretrained(into)
    # Saved by a tokenizer that was read from a folder, its files would tell so, and lack the classic pair.
    shutil.copytree(folder / "tokenizer", into / "tokenizer", dirs_exist_ok=True)
    (into / "perfusion.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    shutil.copyfile(folder / "log.jsonl", into / "log.jsonl")
