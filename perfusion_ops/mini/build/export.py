"""The trained parts as one diffusers folder in fp16 with its default settings, and the metric that ships with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from perfusion_ops.api.metrics import estimate_metric
from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base, quiet_libraries
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import FORMAT
from perfusion_ops.mini.build import autoencoder, denoiser
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.words import load_tokenizer
from perfusion_ops.mini.world.scene import SIZE
from perfusion_ops.tensors import tensor_file

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
    # Chosen on the tuning products of `make quality NAME=methods`; see docs/method.md.
    "training": {
        "recipe": "offset",
        "steps": 200,
        "batch": 4,
        "lr_value": 0.02,
        "lr_embedding": 0.006,
        "decay": "cosine",
        "stratified": True,
        "conv_rank": 2,
        "lr_conv": 0.003,
    },
    "sampling": {"steps": 20, "guidance": 4.5, "bias": 0.7, "strength": 0.7, "combine": "regional"},
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
    # A tokenizer that was read from a folder leaves out the classic pair of files: copy the originals.
    shutil.copytree(folder / "tokenizer", into / "tokenizer", dirs_exist_ok=True)
    (into / "perfusion.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    shutil.copyfile(folder / "log.jsonl", into / "log.jsonl")


def export_metric(base_folder: Path, config: MetricConfig, into: Path) -> None:
    """Estimate the metric of a built base model and write it with the settings that it belongs to.

    Args:
        base_folder: the exported base model.
        config: how to estimate; the captions are those of the embedded world.
        into: the file, replaced.
    """
    base = load_base(describe(base_folder))
    metric = estimate_metric(base, config.captions, tokens=config.tokens, ridge=config.ridge)
    metadata, tensors = tensor_file.read(metric.to_bytes(), FORMAT)
    metadata["settings"] = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    metadata["made_by"] = "python -m perfusion_ops.mini.build --only metric"
    into.write_bytes(tensor_file.write(tensors, metadata))
