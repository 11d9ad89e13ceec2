"""The ways to draw pictures of many products that `benchmarks.adapters` compares: ours, and those of diffusers.

Ours is what a worker does: concept files of a root, read, checked and drawn by `pipeline.worker.rendering`. The others
read a LoRA file for each product, in the form that diffusers writes.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept
from perfusion_ops.concept_file import write_concept
from perfusion_ops.metric import Metric
from perfusion_ops.rendering import Sampler
from pipeline.contract.keys import digest
from pipeline.contract.layout import weights_path
from pipeline.contract.units import RenderShape, RenderTask
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.storage.patience import Patience, PatientStorage
from pipeline.worker.concept_files import ConceptFiles
from pipeline.worker.controls import ControlNets
from pipeline.worker.models import Models
from pipeline.worker.rendering import Rendering
from pipeline.worker.settings import Encoding
from pipeline.worker.storing import PictureStore

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PLACES = (
    *("beach", "shelf", "desk", "sofa", "road", "bed", "chair", "floor"),
    *("table", "snow", "grass", "rock", "boat", "stage", "bench", "roof"),
)
_ONE = "product_at_hand"  # the adapter's name where one product is loaded at a time
_SCALE = 0.3  # an adapter changes a projection's output by about half of it


@dataclass(frozen=True)
class Row:
    """One picture: number of its product, and of its prompt, which is its seed as well."""

    product: int
    prompt: int


class Way(Protocol):
    """How a product's weights reach the denoiser.

    Attributes:
        fills: rows of several products share a batch. If not, `change` comes before the rows of each product.
    """

    fills: bool

    def prepare(self) -> None:
        """What a process does once, whatever it draws; not timed."""
        ...

    def hold(self, products: int) -> None:
        """Load what stays in memory for the products 0 to `products` - 1."""
        ...

    def change(self, product: int) -> None:
        """Let the next rows show this product."""
        ...

    def leave(self, product: int) -> None:
        """Undo `change`."""
        ...

    def draw(self, rows: Sequence[Row]) -> NDArray[np.uint8]:
        """One batch: (B, H, W, 3)."""
        ...

    def held_bytes(self) -> int:
        """Bytes of the products' weights in memory now."""
        ...

    def release(self) -> None:
        """Forget all products."""
        ...


class Ours:
    """The worker's own rendering of concept files."""

    fills = True

    def __init__(self, base: Base, metric: Metric, concepts: Sequence[Concept], sampler: Sampler, root: Path) -> None:
        """Write the files of the concepts under `root`, in which nothing has been rendered."""
        storage = PatientStorage(str(root), None, Patience(time.sleep))
        self._keys = [digest(f"{root.name} {number}".encode()) for number in range(len(concepts))]
        for key, concept in zip(self._keys, concepts, strict=True):
            path = root / weights_path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(write_concept(concept, key=key))
        self.disk_bytes = (root / weights_path(self._keys[0])).stat().st_size
        models = Models(base, base, metric, {})
        self._files = ConceptFiles(storage, models)
        self._pictures = PictureStore(storage, Encoding(), base_digest=base.folder.digest, threads=4)
        inputs = InputStore(InputLimits(), None)
        nets = ControlNets((), base, None)
        self._rendering = Rendering(
            models, self._pictures, self._files, inputs, nets, edit_unconditional=False, combine="paper"
        )
        self._shape = RenderShape(sampler.width, sampler.height, sampler.steps, sampler.guidance, sampler.scheduler)
        self._held: list[Concept] = []

    def prepare(self) -> None:
        """Nothing."""

    def hold(self, products: int) -> None:
        """Read and check the files; the worker does so before a product's first row."""
        self._held = [self._files.load(key)[0] for key in self._keys[:products]]

    def change(self, product: int) -> None:
        """Nothing: a row brings its concept."""

    def leave(self, product: int) -> None:
        """Nothing."""

    def draw(self, rows: Sequence[Row]) -> NDArray[np.uint8]:
        """One unit of a worker."""
        drawn = self._rendering.draw([self._task(row) for row in rows])
        assert len(drawn.pictures) == len(rows), drawn.outcomes
        return np.stack([picture.pixels for picture in drawn.pictures])

    def held_bytes(self) -> int:
        """All tensors of the concepts."""
        return sum(each.numel() * each.element_size() for held in self._held for each in held.tensors().values())

    def release(self) -> None:
        """Forget the concepts."""
        self._files.clear()
        self._held = []

    def _task(self, row: Row) -> RenderTask:
        key, prompt = self._keys[row.product], f"a photo of a {{0}} on the {PLACES[row.prompt]}"
        name = digest(f"{key} {row.prompt}".encode())
        return RenderTask(name, prompt, "", (key,), row.prompt, 0.6, 0.15, "local", self._shape)


class Loras:
    """A folder with one LoRA file for each product, with random weights on every projection of the attention."""

    def __init__(self, folder: Path, unet: Any, rank: int, products: int) -> None:
        """Write the files in float16, as diffusers does."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        self.folder, self.products = folder, products
        layers = {
            name: module
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in TARGETS))
        }
        self.layers = len(layers)
        for product in range(products):
            generator = torch.Generator().manual_seed(product)
            tensors: dict[str, Any] = {}
            for name, layer in layers.items():
                down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
                up = torch.randn(layer.out_features, rank, generator=generator) * (_SCALE / rank**0.5)
                tensors |= {f"{name}.lora_A.weight": down.half(), f"{name}.lora_B.weight": up.half()}
            StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=tensors, weight_name=self.file(product))
        self.disk_bytes = (folder / self.file(0)).stat().st_size

    def file(self, product: int) -> str:
        """The name of a product's file."""
        return f"{product}.safetensors"

    def load(self, pipe: Any, product: int, name: str, **how: Any) -> None:
        """Give the pipeline the adapter of a product."""
        pipe.load_lora_weights(
            self.folder, weight_name=self.file(product), adapter_name=name, local_files_only=True, **how
        )


class Switch:
    """All adapters stay loaded, and `set_adapters` chooses one."""

    fills = False

    def __init__(self, pipe: Any, loras: Loras, sampler: Sampler) -> None:
        self.pipe, self.loras, self._sampler = pipe, loras, sampler

    def prepare(self) -> None:
        """Load an adapter and delete it: peft wraps the layers, which takes longer than a file."""
        self.loras.load(self.pipe, 0, _ONE)
        self.pipe.delete_adapters([_ONE])

    def hold(self, products: int) -> None:
        """Load every adapter."""
        for product in range(products):
            self.loras.load(self.pipe, product, _name(product))

    def change(self, product: int) -> None:
        """Activate one of them."""
        if isinstance(self.pipe.unet.config.layers_per_block, int):
            self.pipe.set_adapters([_name(product)])
        else:  # diffusers 0.42: `set_adapters` fails (TypeError) on denoisers with a list there, as the embedded one
            self.pipe.unet.set_adapter(_name(product))

    def leave(self, product: int) -> None:
        """Nothing: the next one is activated instead."""

    def draw(self, rows: Sequence[Row]) -> NDArray[np.uint8]:
        """A call of the pipeline."""
        sampler = self._sampler
        images = self.pipe(
            [f"a photo of a mug on the {PLACES[row.prompt]}" for row in rows],
            height=sampler.height,
            width=sampler.width,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance,
            generator=[torch.Generator().manual_seed(row.prompt) for row in rows],
            output_type="pt",
        ).images
        return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def held_bytes(self) -> int:
        """All matrices of the adapters."""
        named = self.pipe.unet.named_parameters()
        return sum(each.numel() * each.element_size() for name, each in named if ".lora_" in name)

    def release(self) -> None:
        """Take the adapters out of the denoiser."""
        self.pipe.unload_lora_weights()


class Reload(Switch):
    """Each adapter is loaded when it is needed, and deleted afterwards."""

    def hold(self, products: int) -> None:
        """Nothing."""

    def change(self, product: int) -> None:
        """Load it; an adapter that is alone is active at once."""
        self.loras.load(self.pipe, product, _ONE)

    def leave(self, product: int) -> None:  # noqa: ARG002  (only one is loaded)
        """Delete it."""
        self.pipe.delete_adapters([_ONE])


class Hotswap(Reload):
    """One adapter is loaded, and each other one replaces its numbers in place."""

    def prepare(self) -> None:
        """Load the adapter whose numbers are replaced."""
        self.loras.load(self.pipe, 0, _ONE)

    def change(self, product: int) -> None:
        """Load it over the one before."""
        self.loras.load(self.pipe, product, _ONE, hotswap=True)

    def leave(self, product: int) -> None:
        """Nothing: it stays until the next one."""


class Fuse(Reload):
    """Each adapter is loaded, added to the denoiser's weights, and subtracted and deleted afterwards."""

    def change(self, product: int) -> None:
        """Load it and add it."""
        super().change(product)
        self.pipe.fuse_lora(components=["unet"], adapter_names=[_ONE])

    def leave(self, product: int) -> None:
        """Subtract it and delete it."""
        self.pipe.unfuse_lora(components=["unet"])
        super().leave(product)


class Mixed(Switch):
    """All adapters stay loaded, and each row has its own: peft's mixed batches.

    Diffusers' pipelines have no argument for it, so `adapter_names` is given to each layer by a hook, as peft's own
    models do (`peft.tuners.lora.model._adapter_names_pre_forward_hook`).
    """

    fills = True

    def change(self, product: int) -> None:
        """Nothing: a row has its adapter."""

    def draw(self, rows: Sequence[Row]) -> NDArray[np.uint8]:
        """A call of the pipeline, whose denoiser sees the unconditional rows first."""
        with _each_its_own(self.pipe.unet, [_name(row.product) for row in rows] * 2):
            return super().draw(rows)


def _name(product: int) -> str:
    """Of an adapter; peft takes it for a part of the layers' names, so that bare numbers do not work."""
    return f"product_{product:04}"


@contextmanager
def _each_its_own(unet: Any, names: list[str]) -> Iterator[None]:
    """The rows of the denoiser's batch have these adapters."""
    from peft.tuners.lora.layer import LoraLayer

    def named(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "adapter_names": names}

    layers: list[Any] = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    hooks = [layer.register_forward_pre_hook(named, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def pipeline_of(parts: dict[str, Any], dtype: torch.dtype) -> Any:
    """A diffusers pipeline over a copy of the denoiser; its layout is ours, so that it is not what is compared."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    own = {name: copy.deepcopy(parts[name]) for name in ("unet", "vae", "text_encoder")}
    for module in (own["unet"], own["vae"]):
        module.to(memory_format=torch.channels_last).requires_grad_(False)
    pipe: Any = StableDiffusionPipeline(
        **{**parts, **own, "text_encoder": own["text_encoder"].to(dtype)},
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
