"""The dual scorer: a small CLIPModel that embeds pictures and captions of this world in one space.

It is trained like CLIP: each picture of a batch must find its caption, and each caption its picture. Its tokenizer is
the base model's.
"""

import shutil
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from perfusion_ops.mini.build import scorers
from perfusion_ops.mini.build.pictures import captioned, tensor
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.training.loop import Loss, load_mean, train
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.build.words import CONTEXT, load_tokenizer
from perfusion_ops.mini.world.products import SCORER_INSTANCES
from perfusion_ops.mini.world.scene import SIZE

NAME = "dual"
_PATCH = 8  # pixels a side
_HEADS = 4


def build(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model; the text tower has half the depth of the picture tower: captions are easier to read."""
    sizes = recipe.dual
    tower = {"hidden_size": sizes.width, "intermediate_size": 3 * sizes.width, "num_attention_heads": _HEADS}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**tower, **words, "num_hidden_layers": max(sizes.layers // 2, 1)},
        vision_config={**tower, "num_hidden_layers": sizes.layers, "image_size": SIZE, "patch_size": _PATCH},
        projection_dim=sizes.width // 2,
    )
    return CLIPModel(config)


def fit(machine: Machine, recipe: Recipe, folder: Path, until: float | None) -> None:
    """Train it to the end, or `until` that time; the checkpoint has the weights."""
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(folder / "tokenizer")
    pictures = scorers.scenes(machine, recipe, folder)
    model = build(recipe, tokenizer).to(machine.device)  # pyright: ignore[reportArgumentType]
    if machine.device == "cpu":
        model.set_attn_implementation("eager")  # the fused kernel's backward takes twice as long there
    share = recipe.dual.fit.batch // machine.processes
    train(
        NAME, model, _loss(model, tokenizer, pictures, share, machine), recipe.dual.fit,
        machine=machine, folder=folder, seed=recipe.seed, until=until, inner=lambda name: ".layers." in name,
    )  # fmt: skip


def _loss(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: np.ndarray, share: int, machine: Machine) -> Loss:
    through = machine.compiled(model)
    # Captions at full length would cost twice as much; on a GPU every new length would compile the model again.
    padding = "longest" if machine.device == "cpu" else "max_length"

    def loss(_: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pictures), (share,), generator=generator).sort().values
        seen = scorers.worn(tensor(pictures[chosen.numpy()]), generator).to(machine.device)
        random = Random(int(torch.randint(2**62, (), generator=generator)))  # noqa: S311
        lines = [captioned(number, SCORER_INSTANCES, random) for number in chosen.tolist()]
        coded = tokenizer(lines, padding=padding, max_length=CONTEXT, truncation=True, return_tensors="pt")
        ids = coded["input_ids"].to(machine.device)
        with machine.autocast():
            return through(input_ids=ids, pixel_values=seen, return_loss=True).loss.float()

    return loss


def export(recipe: Recipe, folder: Path, into: Path) -> None:
    """Replace `into` by the model as last saved in `folder`: a transformers folder with its tokenizer."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    model = build(recipe, tokenizer)
    load_mean(folder / f"{NAME}.safetensors", model)
    scorers.write(model, into)
    # Saved by a tokenizer that was read from a folder, its files would tell so.
    shutil.copytree(folder / "tokenizer", into, dirs_exist_ok=True)
