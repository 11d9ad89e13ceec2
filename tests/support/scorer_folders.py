"""Real transformers folders of toy width with random weights: one of each kind of scorer."""

import torch
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from perfusion_ops.base_model import quiet_libraries
from perfusion_ops.mini import base_folder

LABELS = (
    *("class:mug", "context:beach", "class:bag", "context:snow", "context:studio-red", "color:red", "color:blue"),
    *("pattern:plain", "pattern:striped", "angle:front", "angle:above"),
)
_TRUNK = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
_TRANSFORMER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def save(folder, model, *others, seed=0):
    """Weights far from the tiny ones of a fresh model, under which all embeddings are nearly one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5, generator=generator)
    with quiet_libraries():
        for each in (model, *others):
            each.save_pretrained(folder)
    return str(folder)


def dual(folder, *, seed=0, positions=None, dtype=torch.float32):
    tokenizer = AutoTokenizer.from_pretrained(base_folder() / "tokenizer")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions or tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**_TRANSFORMER, "intermediate_size": 48}, projection_dim=16)
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, model.to(dtype), processor, tokenizer, seed=seed)


def siglip(folder):
    tokenizer = AutoTokenizer.from_pretrained(base_folder() / "tokenizer")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "projection_size": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**_TRANSFORMER, "intermediate_size": 48}))
    return save(folder, model, ViTImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)


def identity(folder, *, seed=0):
    processor = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    return save(folder, ResNetModel(ResNetConfig(**_TRUNK)), processor, seed=seed)


def dino(folder):
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, Dinov2Model(Dinov2Config(**_TRANSFORMER)), processor)


def dinov3(folder):
    model = DINOv3ViTModel(DINOv3ViTConfig(**_TRANSFORMER, intermediate_size=48, num_register_tokens=2))
    return save(folder, model, ViTImageProcessorPil(size={"height": 32, "width": 32}))


def vit(folder):
    model = ViTModel(ViTConfig(**_TRANSFORMER, intermediate_size=48), add_pooling_layer=False)
    return save(folder, model, ViTImageProcessorPil(size={"height": 32, "width": 32}))


def reader(folder, *, labels=LABELS, seed=0):
    config = ResNetConfig(
        **_TRUNK,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, ResNetForImageClassification(config), processor, seed=seed)


def all_three(folder):
    """Text, image and reader folders as `choose_scorers` takes them."""
    return {
        "text": dual(folder / "dual"),
        "image": identity(folder / "identity"),
        "reader": reader(folder / "reader"),
    }
