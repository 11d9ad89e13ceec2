"""The concept file: safetensors of about 30 KB on SD 1.5, bound to its base model and metric.

A file holds its tensors in float16, by recipe:

- paper: v* (word embedding), i* (target input), i_super (superclass encoding) and o_V (value target). The key target is
  recomputed as W_K i_super; only the ablation with trained keys stores its own.
- offset: v* and the value offset; perhaps an edit of convolutions in eight bits a number, and photos of the product at
  which its pictures look, as latents of eight bits a number and masks of one bit a position.

Instead of o_V, a file may hold the difference o_V - W_V i_super. With it the concept also acts in siblings of its base
model: models with the same text encoders and another denoiser (Turbo, LCM-merged, fine-tunes), whose W_V differs. A
difference may be packed: eight bits a number, and a float16 scale for each 128 of them.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from perfusion_ops.attention.convolutions import ConvolutionEdit
from perfusion_ops.concept import Concept, Gate, GatedConcept, OffsetConcept, References
from perfusion_ops.errors import PerfusionError
from perfusion_ops.tensors import tensor_file
from perfusion_ops.tensors.packed import pack, unpack
from perfusion_ops.tensors.tensor_file import TensorFileError

# By kind of concept; the number is 1, or 2 if values are differences.
_FORMATS = {
    (kind, shared): f"perfusion-{name}-{2 if shared else 1}"
    for kind, name in {
        "sigmoid": "concept",
        "linear": "linear",
        "offset": "offset",
        "reference": "reference",  # of recipe offset, with photos
        "convolution": "convolution",  # of recipe offset, with an edit of convolutions and perhaps photos
    }.items()
    for shared in (False, True)
}
_KINDS = {name: kind for kind, name in _FORMATS.items()}
_LATENTS, _MASKS = "reference_latents", "reference_masks"
_MOST_REFERENCES, _LONGEST_SIDE = 8, 1024
_READS, _WRITES = "conv_reads", "conv_writes"
_MOST_RANKS = 8


class ConceptFileError(PerfusionError, ValueError):
    """The file is not a concept that can be used here; the message says why."""


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
        stored[name], stored[f"{name}_scale"] = _packed(name, concept.tensors()[name])
    if isinstance(concept, OffsetConcept):
        stored |= _stored_photos(concept.references) if concept.references else {}
        stored |= _stored_edit(concept.convolutions) if concept.convolutions else {}
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
        if key is not None and metadata.get("key") != key:
            theirs = metadata.get("key", "")[:12]
            raise ConceptFileError(f"the concept file has the key {theirs!r}..., not {key[:12]!r}...")
        kind, shared = _KINDS[metadata["format"]]
        sibling = _sibling(metadata, text_digest) if shared else False
        _check_belongs(metadata, base_digest=base_digest, metric_digest=metric_digest, sibling=sibling)
        if kind in ("sigmoid", "linear"):
            gate: Gate = "linear" if kind == "linear" else "sigmoid"
            return _read_gated(metadata, tensors, (embedding_width, text_width, value_width), gate, shared=shared)
        return _read_offset(metadata, tensors, (embedding_width, value_width), kind, shared=shared)
    except TensorFileError as error:
        raise ConceptFileError(f"the concept file {error}") from error


def _check_belongs(metadata: dict[str, str], *, base_digest: str, metric_digest: str, sibling: bool) -> None:
    for name, mine in (("base_digest", base_digest), ("metric_digest", metric_digest)):
        theirs = metadata.get(name, "")
        if theirs != mine and not (sibling and name == "base_digest"):
            what = "base model" if name == "base_digest" else "metric"
            raise ConceptFileError(
                f"the concept was trained with another {what} ({theirs[:12]}..., this run has {mine[:12]}...): "
                f"train it again, or run with that {what}"
            )


def _read_gated(
    metadata: dict[str, str], tensors: dict[str, Tensor], widths: tuple[int, int, int], gate: Gate, *, shared: bool
) -> GatedConcept:
    embedding_width, text_width, value_width = widths
    lock: Literal["local", "trained"] = "trained" if metadata.get("lock") == "trained" else "local"
    values = "value_difference" if shared else "value_target"
    shapes = {
        "embedding": embedding_width,
        "superclass_input": text_width,
        "target_input": text_width,
        values: value_width,
        **({"key_target": value_width} if lock == "trained" else {}),
    }
    found = _checked(_unpacked(tensors, value_width) if shared else tensors, shapes)
    return GatedConcept(
        superclass=metadata.get("superclass", ""),
        embedding=found["embedding"],
        target_input=found["target_input"],
        superclass_input=found["superclass_input"],
        value_target=found[values],
        key_target=found.get("key_target"),
        lock=lock,
        base_digest=metadata["base_digest"],
        metric_digest=metadata["metric_digest"],
        loss=_loss(metadata),
        text_digest=metadata["text_digest"] if shared else "",
        gate=gate,
    )


def _read_offset(
    metadata: dict[str, str], tensors: dict[str, Tensor], widths: tuple[int, int], kind: str, *, shared: bool
) -> OffsetConcept:
    embedding_width, value_width = widths
    left = dict(tensors)
    keeps_photos = kind == "reference" or (kind == "convolution" and _LATENTS in left)
    references = _take_photos(left) if keeps_photos else None
    edit = _take_edit(left) if kind == "convolution" else None
    shapes = {"embedding": embedding_width, "value_offset": value_width}
    found = _checked(_unpacked(left, value_width) if shared else left, shapes)
    return OffsetConcept(
        superclass=metadata.get("superclass", ""),
        embedding=found["embedding"],
        value_offset=found["value_offset"],
        base_digest=metadata["base_digest"],
        metric_digest=metadata["metric_digest"],
        loss=_loss(metadata),
        text_digest=metadata["text_digest"] if shared else "",
        references=references,
        convolutions=edit,
    )


def _kind(concept: Concept) -> str:
    """The first half of a key of `_FORMATS`."""
    if isinstance(concept, GatedConcept):
        return concept.gate
    if concept.convolutions is not None:
        return "convolution"
    return "offset" if concept.references is None else "reference"


def _sibling(metadata: dict[str, str], text_digest: str) -> bool:
    """Whether the concept may act in a base model with these text encoders; trained keys belong to one denoiser."""
    theirs = metadata.get("text_digest", "")
    if not theirs:
        raise ConceptFileError("the concept file does not name its text encoders: it is damaged")
    return theirs == text_digest and metadata.get("lock", "local") == "local"


def _unpacked(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The tensors, packed ones as float32."""
    found = dict(tensors)
    for name in [name for name in tensors if f"{name}_scale" in tensors]:
        found[name] = unpack(name, tensors[name], found.pop(f"{name}_scale"), width)
    return found


def _packed(name: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """`pack`, whose refusal names the tensor; values and result have the same shape."""
    try:
        packed, scales = pack(values.flatten())
    except OverflowError as error:
        raise ConceptFileError(f"{name} of the concept cannot be stored ({error}): training diverged") from error
    return packed.reshape(values.shape), scales


def _stored_edit(edit: ConvolutionEdit) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, tensor in ((_READS, edit.reads), (_WRITES, edit.writes)):
        stored[name], stored[f"{name}_scale"] = _packed(name, tensor)
    return stored


def _stored_photos(references: References) -> dict[str, Tensor]:
    """Latents as int8 with scales, masks as bits in the order of `numpy.packbits`."""
    latents, scales = _packed(_LATENTS, references.latents)
    bits = torch.from_numpy(np.packbits(references.masks.flatten(1).cpu().numpy(), axis=1))
    return {_LATENTS: latents, f"{_LATENTS}_scale": scales, _MASKS: bits}


def _take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Remove one tensor from those that are left."""
    if name not in tensors:
        raise ConceptFileError(f"the concept file has no {name}: it is damaged")
    return tensors.pop(name)


def _take_edit(tensors: dict[str, Tensor]) -> ConvolutionEdit:
    found: list[Tensor] = []
    for name in (_READS, _WRITES):
        values, scales = _take(tensors, name), _take(tensors, f"{name}_scale")
        if values.dim() != 2 or not 1 <= values.shape[0] <= _MOST_RANKS:
            raise ConceptFileError(f"{name} has the shape {tuple(values.shape)}, expected 1 to {_MOST_RANKS} ranks")
        found.append(unpack(name, values.flatten(), scales, values.numel()).reshape(values.shape))
    if len(found[0]) != len(found[1]):
        raise ConceptFileError(f"{_READS} has {len(found[0])} ranks and {_WRITES} {len(found[1])}: it is damaged")
    return ConvolutionEdit(*found)


def _take_photos(tensors: dict[str, Tensor]) -> References:
    latents, scales, masks = (_take(tensors, name) for name in (_LATENTS, f"{_LATENTS}_scale", _MASKS))
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
