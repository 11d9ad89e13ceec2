"""A loaded base model: frozen text encoder, denoiser with replaced key/value projections, VAE and noise schedule.

The text encoder is in float32 whatever the denoiser's type: the edit is sensitive to rounding, and the cost is small.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from perfusion_ops.attention.maps import cross_attentions
from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.base.motion import motion_schedule
from perfusion_ops.base.tokenizer import fitted
from perfusion_ops.controls.folder import ControlError, ControlFolder
from perfusion_ops.controls.net import ControlNet
from perfusion_ops.projection import KeyValueStack, install
from perfusion_ops.text_models import TextModel, TextModels


@dataclass(frozen=True)
class Base:
    """Everything that the method needs of a base model.

    Attributes:
        folder: its folder, with digest, settings and family.
        texts: its text encoders, float32, frozen.
        denoiser: the UNet or transformer whose cross-attention takes pre-projected conditioning (B, N, R), frozen.
        vae: AutoencoderKL, frozen.
        scheduler: the folder's scheduler; its config is the noise schedule.
        stack: the stacked key/value projections.
        compiled: the denoiser compiled by `with_compiled`; it draws rows that have no regions, whose attention needs no
            hooks.
    """

    folder: BaseFolder
    texts: TextModels
    denoiser: Any
    vae: Any
    scheduler: Any
    stack: KeyValueStack
    compiled: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that counts the tokens of a text."""
        return self.texts.tokenizer

    @property
    def device(self) -> torch.device:
        """The denoiser's device."""
        return self.stack.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's type."""
        return self.stack.weight.dtype

    @property
    def text_width(self) -> int:
        """D, the width of a text encoding."""
        return int(self.stack.weight.shape[1])

    @property
    def embedding_width(self) -> int:
        """E, the width of a word embedding, over all text encoders."""
        return self.texts.embedding_width

    @property
    def latent_factor(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        return self.folder.settings.resolution or int(self.denoiser.config.sample_size) * self.latent_factor


def load_base(
    folder: BaseFolder, *, device: str = "cpu", dtype: torch.dtype = torch.float32, motion: Path | None = None
) -> Base:
    """Load a base model from a local folder, for training and rendering.

    Args:
        folder: a described diffusers folder.
        device: a torch device.
        dtype: type of denoiser and VAE; bfloat16 or float16 on an accelerator.
        motion: a folder with an AnimateDiff motion adapter, for a base model that only draws videos. Its attention to
            text is that of the base model, so that the same concepts act in it. Its noise schedule is the base
            model's, with the values that the folder has in `scheduler`.

    Raises:
        BaseError: see `base_from_parts`; or a LoRA or the motion adapter does not fit.
    """
    import diffusers

    family = folder.family
    with quiet_libraries():
        pipe = getattr(diffusers, family.pipelines[folder.drawn_by]).from_pretrained(
            folder.path, dtype=dtype, local_files_only=True, use_safetensors=True, **family.options
        )
        fuse_loras(folder, pipe)
        parts = {text.encoder: getattr(pipe, text.encoder).to(device, torch.float32) for text in family.texts}
        parts |= {text.tokenizer: getattr(pipe, text.tokenizer) for text in family.texts}
        denoiser = getattr(pipe, family.denoiser)
        denoiser = denoiser if motion is None else _moving(folder, denoiser, motion)
        parts[family.denoiser] = denoiser.to(device=device, dtype=dtype)
        vae = pipe.vae.to(device=device, dtype=dtype)
        scheduler = pipe.scheduler
        if motion is not None:
            scheduler = type(scheduler).from_config({**scheduler.config, **motion_schedule(motion)})
        return base_from_parts(folder, vae=vae, scheduler=scheduler, **parts)


def with_compiled(base: Base) -> Base:
    """The base model with its denoiser compiled beside it, which takes a while at the first picture of each size."""
    return replace(base, compiled=torch.compile(base.denoiser))


def fuse_loras(folder: BaseFolder, pipe: Any) -> None:
    """Add the LoRAs of the folder to the weights of a pipeline, and leave no adapter in it.

    Raises:
        BaseError: the package peft is missing, or a LoRA does not fit.
    """
    for lora in folder.settings.loras:
        file = folder.path / "loras" / lora.file
        try:
            pipe.load_lora_weights(str(file.parent), weight_name=lora.file, local_files_only=True)
            pipe.fuse_lora(lora_scale=lora.weight)
            pipe.unload_lora_weights()
        except ImportError as error:
            raise BaseError(f"{file} needs the package peft: pip install 'perfusion-pipeline[lora]'") from error
        except (ValueError, RuntimeError, KeyError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise BaseError(f"{file} does not fit the base model ({why}): use a LoRA of this one's kind") from error


def drop_last_layers(encoder: Any, count: int) -> None:
    """Drop the last layers of a CLIP text encoder, in place; its last norm stays. Doing it twice drops them once."""
    layers = getattr(encoder, "text_model", encoder).encoder.layers
    del layers[encoder.config.num_hidden_layers - count :]


def _moving(folder: BaseFolder, denoiser: Any, motion: Path) -> Any:
    """The denoiser with the modules of a motion adapter between its layers (AnimateDiff, arXiv 2307.04725)."""
    from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel

    if "video" not in folder.family.pipelines:
        raise BaseError(f"motion adapters work with SD 1.x and not with {folder.family.title}")
    if folder.inpaints:
        raise BaseError(f"motion adapters do not work with {folder.path}, which is a model for inpainting: use SD 1.x")
    try:
        loaded: Any = MotionAdapter.from_pretrained(
            motion, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        adapter, found = loaded
        if found["missing_keys"]:  # diffusers draws them at random
            raise ValueError(f"it lacks {found['missing_keys'][0]}")
        return UNetMotionModel.from_unet2d(denoiser, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseError(
            f"the motion adapter {motion} does not fit the base model {folder.path} ({error}): "
            "use an adapter that was trained for this family"
        ) from error


def base_from_parts(
    folder: BaseFolder, *, vae: Any, scheduler: Any, keep_projections: bool = False, **parts: Any
) -> Base:
    """Freeze the parts and take the key/value stack out of the denoiser, in place.

    Args:
        folder: where the parts come from.
        vae: see `Base`.
        scheduler: see `Base`.
        keep_projections: let the denoiser take ordinary text encodings beside pre-projected conditioning.
        parts: the family's denoiser, tokenizers and text encoders by their names in the folder, such as `unet`.

    Raises:
        BaseError: `mask_layers` of its perfusion.json names no cross-attention of the denoiser.
        ValueError, TypeError: see `perfusion_ops.projection.install`.
    """
    family = folder.family
    denoiser = parts[family.denoiser]
    known = [name for name, _ in cross_attentions(denoiser)]
    unknown = [name for name in folder.settings.mask_layers if name not in known]
    if unknown:
        raise BaseError(
            f"mask_layers in {folder.path / 'perfusion.json'} has {unknown[0]!r}: use some of {', '.join(known)}"
        )
    skipped = folder.settings.clip_skip
    models: tuple[TextModel, ...] = ()
    for text in family.texts:
        if text.layer is None and skipped:
            drop_last_layers(parts[text.encoder], skipped)
        read = text if text.layer is None else replace(text, layer=text.layer - skipped)
        models += (TextModel(read, fitted(parts[text.tokenizer], text), parts[text.encoder]),)
    projection = _text_projection(denoiser, family.text_projection, keep=keep_projections)
    projections = () if projection is None else (projection,)
    for module in (*(model.encoder for model in models), *projections, denoiser, vae):
        module.requires_grad_(False).eval()
    for module in (denoiser, vae):
        # Convolutions run a tenth faster in this layout on CPUs, and on GPUs in half precision.
        module.to(memory_format=torch.channels_last)
    stack = install(denoiser, keep=keep_projections)
    return Base(folder, TextModels(models, projection), denoiser, vae, scheduler, stack)


def load_control(base: Base, folder: ControlFolder) -> ControlNet:
    """Load a ControlNet beside a base model, on its device and in its type.

    Args:
        base: the base model that renders.
        folder: of `perfusion_ops.controls.folder.describe_control` with the same base model.

    Raises:
        ControlError: its tensors are damaged, or their shapes are not those of its configuration.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    try:
        with quiet_libraries():
            loaded: Any = ControlNetModel.from_pretrained(
                folder.path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise ControlError(f"the ControlNet {folder.path} cannot be loaded ({why}): copy it again") from error
    module, found = loaded
    if found["missing_keys"]:  # diffusers draws them at random
        raise ControlError(f"the ControlNet {folder.path} lacks {found['missing_keys'][0]}: copy it again")
    module.to(device=base.device, dtype=base.dtype).requires_grad_(False).eval()
    module.to(memory_format=torch.channels_last)
    if not cross_attentions(module):  # small ones do not read the prompt
        return ControlNet(folder, module, base.stack.weight.new_zeros(0, base.text_width))
    return ControlNet(folder, module, install(module, behind=len(base.stack.weight)).weight)


def _text_projection(denoiser: Any, name: str | None, *, keep: bool) -> nn.Module | None:
    """The projection that all text encodings pass, taken out of the denoiser, in float32 as the encoders are.

    Raises:
        BaseError: it has to stay in the denoiser, but encodings would pass it twice.
    """
    module = getattr(denoiser, name) if name else None
    if name is None or module is None:
        return None
    if keep:
        raise BaseError(f"a pipeline of {type(denoiser).__name__} cannot be attached: load the base model instead")
    setattr(denoiser, name, None)
    return module.float()


@torch.no_grad()
def encode_pictures(base: Base, pictures: Tensor) -> Tensor:
    """Latents of pictures: the mean of the VAE's posterior, scaled.

    Args:
        base: the base model.
        pictures: (B, 3, H, W) in -1..1.

    Returns:
        (B, C, H / f, W / f) float32.
    """
    config = base.vae.config
    with _wide_enough(base.vae):
        latents = base.vae.encode(pictures.to(base.device, base.vae.dtype)).latent_dist.mean.float()
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(each, device=latents.device).view(1, -1, 1, 1) for each in (mean, std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


@contextlib.contextmanager
def _wide_enough(vae: Any) -> Iterator[None]:
    """A VAE in float32 if it is one whose activations are too large for float16; its pipelines decode alike."""
    if not (vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the messages and progress bars of transformers and diffusers; errors still raise.

    Afterwards both libraries have the settings that they had before.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as restore:
        for library in (diffusers_logging, transformers_logging):
            restore.callback(library.set_verbosity, library.get_verbosity())
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
