"""Trained concepts and their files: safetensors of about 30 KB on SD 1.5, bound to their base model and metric.

There is a kind of concept for each recipe of training. A file holds its tensors in float16:

- paper: v* (word embedding), i* (target input), i_super (superclass encoding) and o_V (value target). The key target is
  recomputed as W_K i_super; only the ablation with trained keys stores its own.
- offset: v* and the value offset; perhaps an edit of convolutions in eight bits a number, and photos of the product at
  which its pictures look, as latents of eight bits a number and masks of one bit a position.

Instead of o_V, a file may hold the difference o_V - W_V i_super. With it the concept also acts in siblings of its base
model: models with the same text encoders and another denoiser (Turbo, LCM-merged, fine-tunes), whose W_V differs. A
difference may be packed: eight bits a number, and a float16 scale for each 128 of them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from perfusion_ops import tensor_file
from perfusion_ops.attention.convolutions import ConvolutionEdit
from perfusion_ops.errors import PerfusionError
from perfusion_ops.projection import KeyValueStack
from perfusion_ops.tensor_file import TensorFileError

FORMAT = "perfusion-concept-1"
OFFSET_FORMAT = "perfusion-offset-1"
DIFFERENCE_FORMAT = "perfusion-concept-2"
SIBLING_OFFSET_FORMAT = "perfusion-offset-2"
REFERENCE_FORMAT = "perfusion-reference-1"  # of recipe offset, with photos
SIBLING_REFERENCE_FORMAT = "perfusion-reference-2"
CONVOLUTION_FORMAT = "perfusion-convolution-1"  # of recipe offset, with an edit of convolutions and perhaps photos
SIBLING_CONVOLUTION_FORMAT = "perfusion-convolution-2"
LINEAR_FORMAT = "perfusion-linear-1"  # gated, with the linear gate
LINEAR_DIFFERENCE_FORMAT = "perfusion-linear-2"
_FORMATS = {  # by kind, and whether values are differences
    ("sigmoid", False): FORMAT,
    ("sigmoid", True): DIFFERENCE_FORMAT,
    ("linear", False): LINEAR_FORMAT,
    ("linear", True): LINEAR_DIFFERENCE_FORMAT,
    ("offset", False): OFFSET_FORMAT,
    ("offset", True): SIBLING_OFFSET_FORMAT,
    ("reference", False): REFERENCE_FORMAT,
    ("reference", True): SIBLING_REFERENCE_FORMAT,
    ("convolution", False): CONVOLUTION_FORMAT,
    ("convolution", True): SIBLING_CONVOLUTION_FORMAT,
}
_KINDS = {name: kind for kind, name in _FORMATS.items()}
_BLOCK = 128  # numbers of a packed tensor that share a scale
_LATENTS, _SCALES, _MASKS = "reference_latents", "reference_latents_scale", "reference_masks"
_MOST_REFERENCES, _LONGEST_SIDE = 8, 1024
_READS, _WRITES = "conv_reads", "conv_writes"
_MOST_RANKS = 8


Gate = Literal["sigmoid", "linear"]


class ConceptFileError(PerfusionError, ValueError):
    """The file is not a concept that can be used here; the message says why."""


@dataclass(frozen=True)
class GatedConcept:
    """One concept of recipe `paper`, float32.

    Attributes:
        superclass: one or more words, such as "teddy bear".
        embedding: v*, (E,).
        target_input: i*, (D,).
        superclass_input: i_super, (D,).
        value_target: o_V of all layers, (R / 2,).
        key_target: o_K of all layers, (R / 2,), only if keys were trained.
        lock: how the keys were trained.
        base_digest: digest of the base model.
        metric_digest: digest of the metric.
        loss: mean of the last training losses, if known.
        text_digest: digest of the text encoders, if `value_target` is the difference o_V - W_V i_super; "" otherwise.
        gate: the gate that it was trained with.
    """

    superclass: str
    embedding: Tensor
    target_input: Tensor
    superclass_input: Tensor
    value_target: Tensor
    key_target: Tensor | None
    lock: Literal["local", "trained"]
    base_digest: str
    metric_digest: str
    loss: float | None = None
    text_digest: str = ""
    gate: Gate = "sigmoid"

    @property
    def noun(self) -> str:
        """The words that follow the concept's token in a prompt: none."""
        return ""

    def outputs(self, stack: KeyValueStack, *, trained_keys: bool = False) -> Tensor:
        """o_K | o_V, (R,) float32: what the gated edit adds.

        Args:
            stack: the base model's projections.
            trained_keys: use the keys that the concept learned instead of the locked ones, W_K i_super (section 4.2).

        Raises:
            ValueError: `trained_keys` is set, but the concept has none.
        """
        device = stack.weight.device
        if not trained_keys:
            keys = stack.keys.float() @ self.superclass_input.to(device)
        elif self.key_target is None:
            raise ValueError("the concept learned no keys: train it with train.lock 'trained', or use another lock")
        else:
            keys = self.key_target.to(device)
        values = self.value_target.to(device)
        if self.text_digest:
            values = values + stack.values.float() @ self.superclass_input.to(device)
        return torch.cat([keys, values])

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        stored = {
            "embedding": self.embedding,
            "superclass_input": self.superclass_input,
            "target_input": self.target_input,
            "value_difference" if self.text_digest else "value_target": self.value_target,
        }
        return stored if self.key_target is None else {**stored, "key_target": self.key_target}


@dataclass(frozen=True)
class References:
    """K photos of a product at which its pictures look while they are drawn (`perfusion_ops.attention.references`).

    Attributes:
        latents: (K, C, h, w) float32, scaled.
        masks: (K, h, w) bool: where the product is.
    """

    latents: Tensor
    masks: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name: latents as int8 with scales, masks as bits in the order of `numpy.packbits`."""
        if not bool(torch.isfinite(self.latents).all()):
            raise ConceptFileError("a photo of the concept has latents that are not finite")
        packed, scales = pack(self.latents.flatten())
        bits = torch.from_numpy(np.packbits(self.masks.flatten(1).cpu().numpy(), axis=1))
        return {_LATENTS: packed.reshape(self.latents.shape), _SCALES: scales, _MASKS: bits}


@dataclass(frozen=True)
class OffsetConcept:
    """One concept of recipe `offset`, float32.

    Attributes:
        superclass: one or more words; they follow the concept's token in every prompt.
        embedding: v*, (E,).
        value_offset: what is added to the output of each layer's attention where the product is, (R / 2,).
        base_digest: digest of the base model.
        metric_digest: digest of the metric of the run; the offset does not depend on it.
        loss: mean of the last training losses, if known.
        text_digest: digest of the text encoders, if the concept may act in siblings of its base model; "" otherwise.
        references: photos of the product; None if it keeps none.
        convolutions: an edit of convolutions; None if it has none.
    """

    superclass: str
    embedding: Tensor
    value_offset: Tensor
    base_digest: str
    metric_digest: str
    loss: float | None = None
    text_digest: str = ""
    references: References | None = None
    convolutions: ConvolutionEdit | None = None

    @property
    def noun(self) -> str:
        """The words that follow the concept's token in a prompt."""
        return self.superclass

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"embedding": self.embedding, "value_offset": self.value_offset}


@dataclass(frozen=True)
class Spelled:
    """No concept: the plain words of a superclass in a concept's place in a prompt."""

    superclass: str

    @property
    def noun(self) -> str:
        """The words, which are all there is."""
        return self.superclass


Concept = GatedConcept | OffsetConcept


def write_concept(
    concept: Concept, *, key: str = "", dtype: torch.dtype = torch.float16, packed: bool = False
) -> bytes:
    """Serialise a concept; equal ones give equal bytes.

    Args:
        concept: what to store.
        key: the concept's content key, so that a file under another key's name is noticed.
        dtype: of the stored tensors.
        packed: store the values in eight bits each; for concepts with a `text_digest`.

    Raises:
        ConceptFileError: a value is not finite, or too large for `dtype` (float16 ends at 65,504).
        ValueError: `packed` is set for a concept whose values are no difference.
    """
    if packed and not concept.text_digest:
        raise ValueError("only differences can be packed: train with train.store 'int8'")
    stored: dict[str, Tensor] = {}
    for name, tensor in concept.tensors().items():
        stored[name] = tensor.detach().cpu().to(dtype)
        if not bool(torch.isfinite(stored[name]).all()):
            raise ConceptFileError(f"{name} of the concept has values that {dtype} cannot hold: training diverged")
    gated = isinstance(concept, GatedConcept)
    if packed:
        name = "value_difference" if gated else "value_offset"
        stored[name], stored[f"{name}_scale"] = pack(concept.tensors()[name])
    if isinstance(concept, OffsetConcept):
        stored |= concept.references.tensors() if concept.references else {}
        stored |= _packed_edit(concept.convolutions) if concept.convolutions else {}
    shared = bool(concept.text_digest)
    kind = _kind(concept)
    metadata = {
        "format": _FORMATS[kind, shared],
        "superclass": concept.superclass,
        **({"lock": concept.lock} if gated else {}),
        "base_digest": concept.base_digest,
        "metric_digest": concept.metric_digest,
        "key": key,
        **({"text_digest": concept.text_digest} if shared else {}),
    }
    if concept.loss is not None:
        metadata["loss"] = repr(concept.loss)
    return tensor_file.write(stored, metadata)


def read_concept(
    data: bytes,
    *,
    base_digest: str,
    metric_digest: str,
    embedding_width: int,
    text_width: int,
    value_width: int,
    key: str | None = None,
    text_digest: str = "",
) -> Concept:
    """Read and check a concept file; nothing in it is trusted.

    Args:
        data: `write_concept`'s bytes.
        base_digest: digest of the base model in use.
        metric_digest: digest of the metric in use.
        embedding_width: E, the width of a word embedding.
        text_width: D, the width of a text encoding.
        value_width: R / 2, the values of all layers.
        key: the content key that the file must have; None accepts any.
        text_digest: digest of the text encoders in use. If it is given, concepts of a sibling are accepted that may act
            in this base model.

    Raises:
        ConceptFileError: damaged, of another shape or type, not finite, or of another base model, metric or key.
    """
    try:
        metadata, tensors = tensor_file.read(data, *_KINDS)
    except TensorFileError as error:
        raise ConceptFileError(f"the concept file {error}") from error
    if key is not None and metadata.get("key") != key:
        raise ConceptFileError(f"the concept file has the key {metadata.get('key', '')[:12]!r}..., not {key[:12]!r}...")
    kind, shared = _KINDS[metadata["format"]]
    sibling = _sibling(metadata, text_digest) if shared else False
    for name, mine in (("base_digest", base_digest), ("metric_digest", metric_digest)):
        theirs = metadata.get(name, "")
        if theirs != mine and not (sibling and name == "base_digest"):
            what = "base model" if name == "base_digest" else "metric"
            raise ConceptFileError(
                f"the concept was trained with another {what} ({theirs[:12]}..., this run has {mine[:12]}...): "
                f"train it again, or run with that {what}"
            )
    superclass, loss = metadata.get("superclass", ""), _loss(metadata)
    its_base, its_text = metadata["base_digest"], metadata.get("text_digest", "") if shared else ""
    keeps_photos = kind == "reference" or (kind == "convolution" and _LATENTS in tensors)
    references = _read_references(tensors) if keeps_photos else None
    edit = _read_edit(tensors) if kind == "convolution" else None
    tensors = {name: each for name, each in tensors.items() if name not in _further(references, edit)}
    tensors = _unpacked(tensors, value_width) if shared else tensors
    if kind in ("offset", "reference", "convolution"):
        found = _checked(tensors, {"embedding": embedding_width, "value_offset": value_width})
        return OffsetConcept(
            superclass=superclass,
            embedding=found["embedding"],
            value_offset=found["value_offset"],
            base_digest=its_base,
            metric_digest=metric_digest,
            loss=loss,
            text_digest=its_text,
            references=references,
            convolutions=edit,
        )
    lock: Literal["local", "trained"] = "trained" if metadata.get("lock") == "trained" else "local"
    shapes = {
        "embedding": embedding_width,
        "superclass_input": text_width,
        "target_input": text_width,
        "value_difference" if shared else "value_target": value_width,
    }
    if lock == "trained":
        shapes["key_target"] = value_width
    found = _checked(tensors, shapes)
    return GatedConcept(
        superclass=superclass,
        embedding=found["embedding"],
        target_input=found["target_input"],
        superclass_input=found["superclass_input"],
        value_target=found["value_difference" if shared else "value_target"],
        key_target=found.get("key_target"),
        lock=lock,
        base_digest=its_base,
        metric_digest=metric_digest,
        loss=loss,
        text_digest=its_text,
        gate="linear" if kind == "linear" else "sigmoid",
    )


def _kind(concept: Concept) -> str:
    """The first half of a key of `_FORMATS`."""
    if isinstance(concept, GatedConcept):
        return concept.gate
    if concept.convolutions is not None:
        return "convolution"
    return "offset" if concept.references is None else "reference"


def _further(references: References | None, edit: ConvolutionEdit | None) -> set[str]:
    """The names of the stored tensors beside those of every concept of its recipe."""
    photos = set() if references is None else {_LATENTS, _SCALES, _MASKS}
    return (
        photos if edit is None else {*photos, *(f"{name}{end}" for name in (_READS, _WRITES) for end in ("", "_scale"))}
    )


def _sibling(metadata: dict[str, str], text_digest: str) -> bool:
    """Whether the concept may act in a base model with these text encoders; trained keys belong to one denoiser."""
    theirs = metadata.get("text_digest", "")
    if not theirs:
        raise ConceptFileError("the concept file does not name its text encoders: it is damaged")
    return theirs == text_digest and metadata.get("lock", "local") == "local"


def pack(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n,) as int8, and a float16 scale for each `_BLOCK` of them."""
    blocks = _in_blocks(values.detach().cpu().float())
    scales = (blocks.abs().amax(1) / 127).half()
    # Rounding to float16 must not make a scale smaller than its block needs.
    short = scales.float() * 127 < blocks.abs().amax(1)
    scales = torch.where(short, torch.nextafter(scales, torch.full_like(scales, torch.inf)), scales)
    if not bool(torch.isfinite(scales).all()):
        raise ConceptFileError("a value of the concept is too large to be stored: training diverged")
    whole = (blocks / scales.float().clamp(min=torch.finfo(torch.float16).tiny / 1024)[:, None]).round()
    return whole.clamp(-127, 127).to(torch.int8).flatten()[: len(values)].clone(), scales


def _in_blocks(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK)


def _unpacked(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The tensors, packed ones as float32."""
    found = dict(tensors)
    for name in [name for name in tensors if f"{name}_scale" in tensors]:
        found[name] = unpack(name, tensors[name], found.pop(f"{name}_scale"), width)
    return found


def unpack(name: str, values: Tensor, scales: Tensor, width: int) -> Tensor:
    """What `pack` was given, (width,) float32, within half a step of eight bits.

    Raises:
        ConceptFileError: one of them has another type or shape.
    """
    blocks = -(-width // _BLOCK)
    if values.dtype != torch.int8 or values.shape != (width,) or scales.shape != (blocks,):
        raise ConceptFileError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)} with {tuple(scales.shape)} scales, "
            f"expected int8 of ({width},) with ({blocks},)"
        )
    return (_in_blocks(values.float()) * scales.float()[:, None]).flatten()[:width].clone()


def _packed_edit(edit: ConvolutionEdit) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, tensor in ((_READS, edit.reads), (_WRITES, edit.writes)):
        if not bool(torch.isfinite(tensor).all()):
            raise ConceptFileError(f"{name} of the concept has values that are not finite: training diverged")
        packed, stored[f"{name}_scale"] = pack(tensor.flatten())
        stored[name] = packed.reshape(tensor.shape)
    return stored


def _read_edit(tensors: dict[str, Tensor]) -> ConvolutionEdit:
    found: list[Tensor] = []
    for name in (_READS, _WRITES):
        if name not in tensors or f"{name}_scale" not in tensors:
            raise ConceptFileError(f"the concept file has no {name} or no scales of it: it is damaged")
        values, scales = tensors[name], tensors[f"{name}_scale"]
        if values.dim() != 2 or not 1 <= values.shape[0] <= _MOST_RANKS:
            raise ConceptFileError(f"{name} has the shape {tuple(values.shape)}, expected 1 to {_MOST_RANKS} ranks")
        whole = unpack(name, values.flatten(), scales, values.numel()).reshape(values.shape)
        if scales.dtype != torch.float16 or not bool(torch.isfinite(whole).all()):
            raise ConceptFileError(
                f"{name}_scale is {scales.dtype} or has values that are not finite, expected float16"
            )
        found.append(whole)
    if len(found[0]) != len(found[1]):
        raise ConceptFileError(f"{_READS} has {len(found[0])} ranks and {_WRITES} {len(found[1])}: it is damaged")
    return ConvolutionEdit(*found)


def _read_references(tensors: dict[str, Tensor]) -> References:
    missing = [name for name in (_LATENTS, _SCALES, _MASKS) if name not in tensors]
    if missing:
        raise ConceptFileError(f"the concept file has no {missing[0]}: it is damaged")
    latents, scales, masks = tensors[_LATENTS], tensors[_SCALES], tensors[_MASKS]
    whole = latents.dim() == 4 and 1 <= latents.shape[0] <= _MOST_REFERENCES and min(latents.shape) >= 1
    if not whole or max(latents.shape[2:]) > _LONGEST_SIDE:
        raise ConceptFileError(
            f"{_LATENTS} has the shape {tuple(latents.shape)}, expected 1 to {_MOST_REFERENCES} photos, channels, and "
            f"sides of at most {_LONGEST_SIDE}"
        )
    positions = latents.shape[2] * latents.shape[3]
    expected = (latents.shape[0], -(-positions // 8))
    if masks.dtype != torch.uint8 or tuple(masks.shape) != expected:
        raise ConceptFileError(f"{_MASKS} is {masks.dtype} of shape {tuple(masks.shape)}, expected uint8 of {expected}")
    values = unpack(_LATENTS, latents.flatten(), scales, latents.numel())
    if scales.dtype != torch.float16 or not bool(torch.isfinite(values).all()):
        raise ConceptFileError(f"{_SCALES} is {scales.dtype} or has values that are not finite, expected float16")
    bits = np.unpackbits(masks.numpy(), axis=1, count=positions).astype(bool)
    return References(values.reshape(latents.shape), torch.from_numpy(bits).reshape(masks.shape[0], *latents.shape[2:]))


def _checked(tensors: dict[str, Tensor], widths: dict[str, int]) -> dict[str, Tensor]:
    """The tensors in float32: exactly those of `widths`, finite, and each a vector of its width."""
    if set(tensors) != set(widths):
        raise ConceptFileError(f"the concept file holds {sorted(tensors)}, expected {sorted(widths)}")
    for name, width in widths.items():
        tensor = tensors[name]
        if tensor.dtype not in (torch.float16, torch.float32) or tuple(tensor.shape) != (width,):
            raise ConceptFileError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected float16 or float32 of ({width},)"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ConceptFileError(f"{name} holds values that are not finite")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _loss(metadata: dict[str, str]) -> float | None:
    try:
        loss = float(metadata["loss"]) if "loss" in metadata else None
    except (TypeError, ValueError):
        loss = math.nan
    if loss is None or math.isfinite(loss):
        return loss
    raise ConceptFileError(f"the concept file's loss is {metadata['loss']!r:.80}, not a finite number: it is damaged")
