"""The ONNX graphs of a base model: text encoder, edit, denoiser and decoder.

The edit's graph holds W once; a concept is a few vectors among its inputs. C itself is not needed on the device: the
similarity r of an encoding to a concept is the product with its dual C^-1 i* / <i*, i*>. With difference d = o_V - W_V
i_super, the keys and values are

    W (e - r i*) + g (W i_super + [0 | d]),   g = sigmoid((r - bias) / temperature), or r for a linear gate
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.base_model import Base, quiet_libraries
from perfusion_ops.export.lora import ExportError


@dataclass(frozen=True)
class Graph:
    """One graph: its module, example inputs by name, and which of their sizes may vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    varying: dict[str, dict[int, str]]


def graphs(base: Base) -> dict[str, bytes]:
    """ONNX files by name; the numbers are in float32.

    Raises:
        ExportError: the family has several text encoders, the model is for inpainting, or `onnx` and `onnxscript` are
            not installed.
    """
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ExportError("onnx is not installed: pip install 'perfusion-pipeline[onnx]'") from error
    if len(base.texts.models) > 1 or base.texts.projection is not None:
        raise ExportError(f"ONNX graphs are made of SD 1.x and 2.x, not of {base.folder.family.title}")
    if base.folder.inpaints:
        raise ExportError(f"ONNX graphs are made of plain models, and {base.folder.path} is for inpainting")
    return {name: _onnx(graph) for name, graph in _graphs(base).items()}


def _graphs(base: Base) -> dict[str, Graph]:
    length = int(base.tokenizer.model_max_length)
    width, rows = base.text_width, len(base.stack.weight)
    side = base.resolution // base.latent_factor
    channels = int(base.denoiser.config.in_channels)
    start, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    ids = torch.full((1, length), end)
    ids[:, 0] = start
    vector = torch.randn(base.embedding_width, generator=torch.Generator().manual_seed(0))
    one = {
        name: torch.randn(width, generator=torch.Generator().manual_seed(1)) for name in ("dual", "input", "superclass")
    }
    latents = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(2))
    return {
        "text_encoder.onnx": Graph(
            _Words(base.texts.models[0].encoder),
            {"ids": ids, "place": torch.zeros(1, length), "embedding": vector},
            "encodings",
            {},
        ),
        "edit.onnx": Graph(
            _Edit(base.stack.weight.float(), base.stack.key_rows),
            {
                "encodings": torch.randn(1, length, width),
                **one,
                "difference": torch.zeros(base.stack.key_rows),
                "bias": torch.tensor(0.6),
                "temperature": torch.tensor(0.15),
                "linear": torch.tensor(0.0),
            },
            "conditioning",
            {},
        ),
        "denoiser.onnx": Graph(
            _Denoiser(base.denoiser),
            {
                "sample": latents,
                "timestep": torch.tensor([10.0, 20.0]),
                "conditioning": torch.randn(2, length, rows, generator=torch.Generator().manual_seed(3)),
            },
            "predicted",
            {"sample": {0: "b"}, "timestep": {0: "b"}, "conditioning": {0: "b"}},
        ),
        "decoder.onnx": Graph(_Decoder(base.vae), {"latents": latents[:1]}, "picture", {}),
    }


def _onnx(graph: Graph) -> bytes:
    stream = io.BytesIO()
    with quiet_libraries(), torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            graph.module.float().eval(),
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamic_shapes=tuple(graph.varying.get(name) for name in graph.inputs) if graph.varying else None,
            dynamo=True,
            verbose=False,
        )
        stream.write(program.model_proto.SerializeToString())
    return stream.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Words(nn.Module):
    """Encodings (1, N, D) of ids (1, N), with an embedding (E,) wherever `place` (1, N) is one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, place: Tensor, embedding: Tensor) -> Tensor:
        encoder: Any = self.encoder

        def replace(_module: nn.Module, _inputs: tuple[Tensor, ...], looked_up: Tensor) -> Tensor:
            return torch.where(place[..., None] > 0, embedding, looked_up)

        hook = encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            return encoder(ids).last_hidden_state
        finally:
            hook.remove()


class _Edit(nn.Module):
    """Keys and values (1, N, R) of encodings (1, N, D); without a concept, all vectors are zero."""

    def __init__(self, weight: Tensor, key_rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.key_rows = key_rows

    def forward(  # noqa: PLR0917 (the exporter names inputs by position)
        self,
        encodings: Tensor,
        dual: Tensor,
        input: Tensor,  # noqa: A002 (the graph's input has this name)
        superclass: Tensor,
        difference: Tensor,
        bias: Tensor,
        temperature: Tensor,
        linear: Tensor,
    ) -> Tensor:
        similarity = (encodings * dual).sum(-1, keepdim=True)
        gate = torch.where(linear > 0, similarity, torch.sigmoid((similarity - bias) / temperature))
        # One product with W for the encodings and the superclass.
        both = torch.cat([encodings - similarity * input, superclass.expand(1, 1, -1)], 1) @ self.weight.mT
        outputs = both[:, -1:] + nn.functional.pad(difference, (self.key_rows, 0))
        return both[:, :-1] + gate * outputs


class _Denoiser(nn.Module):
    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: Tensor, timestep: Tensor, conditioning: Tensor) -> Tensor:
        return self.denoiser(sample, timestep, conditioning, return_dict=False)[0]


class _Decoder(nn.Module):
    """Pixels in -1..1 of scaled latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
