"""ControlNets of the real class for the tiny base models, with weights that act from the start."""

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image

from perfusion_ops.base_model import Base, load_control
from perfusion_ops.controls.folder import describe_control
from perfusion_ops.controls.net import Control, ControlNet, prepared
from tests.support.tiny_base import small_parts


def sd_folder(path, **options):
    """The small Stable Diffusion as a base model's folder."""
    pipe = StableDiffusionPipeline(
        **small_parts(**options), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(path)
    return path


def control_model(unet, *, seed=0) -> ControlNetModel:
    """A ControlNet made from a UNet. Its outputs, which begin at zero, and its projections have their own weights."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    with torch.no_grad():
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            layer.weight.normal_(std=0.3)
            layer.bias.normal_(std=0.1)
        net.controlnet_cond_embedding.conv_out.weight.mul_(10)
        for name, weight in net.named_parameters():
            if ".attn2.to_" in name and weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * weight.std())
    return net.eval()


def control_folder(path, unet, **options):
    """Such a ControlNet in a folder of its own."""
    control_model(unet, **options).save_pretrained(path)
    return path


def control_net(base: Base, path) -> ControlNet:
    """Loaded from its folder, as a worker does."""
    return load_control(base, describe_control(path, base.folder))


def drawing(seed=0, size=(40, 24)) -> Image.Image:
    """A picture to follow: a few white boxes on black."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for _ in range(3):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        pixels[y : y + 8, x : x + 8] = rng.integers(100, 256, 3)
    return Image.fromarray(pixels)


def shown(net, seed=0, strength=1.0, side=16) -> Control:
    """What a row asks of a ControlNet."""
    return Control(net, prepared(drawing(seed), side, side), strength)
