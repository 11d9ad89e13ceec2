"""A trained concept and its file: about 30 KB on SD 1.5, safetensors, bound to its base model and metric.

Stored in float16: v* (word embedding), i* (target input), i_super (superclass encoding) and o_V (value target). The key
target is W_K i_super and is recomputed; only the trained-key ablation stores its own.
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from perfusion_ops.errors import PerfusionError
from perfusion_ops.projection import KeyValueStack

FORMAT = "perfusion-concept-1"
# A real header is under 1 KB; safetensors itself would accept 100 MB.
_MAX_HEADER_BYTES = 1 << 20


class ConceptFileError(PerfusionError, ValueError):
    """The file is not a concept that may be used here; the sentence says why."""


@dataclass(frozen=True)
class Concept:
    """One concept, float32.

    Attributes:
        superclass: one or more words.
        embedding: v*, (E,).
        target_input: i*, (D,).
        superclass_input: i_super, (D,).
        value_target: o_V of all layers, (R / 2,).
        key_target: o_K of all layers, (R / 2,), only where keys were trained.
        lock: how the keys were trained.
        base_digest: the base model it was trained on.
        metric_digest: the metric it was trained with.
        loss: mean of the latest training losses, where it is known.
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

    def outputs(self, stack: KeyValueStack, *, trained_keys: bool = False) -> Tensor:
        """o_K | o_V, (R,) float32: what the gated edit adds.

        Args:
            stack: the base model's projections.
            trained_keys: take the keys that the concept learned instead of the locked ones, W_K i_super (section 4.2).

        Raises:
            ValueError: trained keys are asked of a concept that has none.
        """
        device = stack.weight.device
        if not trained_keys:
            keys = stack.keys.float() @ self.superclass_input.to(device)
        elif self.key_target is None:
            raise ValueError("the concept learned no keys: train it with train.lock 'trained', or use another lock")
        else:
            keys = self.key_target.to(device)
        return torch.cat([keys, self.value_target.to(device)])

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        stored = {
            "embedding": self.embedding,
            "superclass_input": self.superclass_input,
            "target_input": self.target_input,
            "value_target": self.value_target,
        }
        return stored if self.key_target is None else {**stored, "key_target": self.key_target}


def write_concept(concept: Concept, *, key: str = "", dtype: torch.dtype = torch.float16) -> bytes:
    """Serialise a concept; equal ones give equal bytes.

    Args:
        concept: what to store.
        key: the content key it answers, so that a file in another one's place is noticed.
        dtype: of the stored tensors.

    Raises:
        ConceptFileError: a value does not fit the type (float16 ends at 65,504) or is not finite.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in concept.tensors().items():
        stored[name] = tensor.detach().cpu().to(dtype).contiguous()
        if not bool(torch.isfinite(stored[name]).all()):
            raise ConceptFileError(f"{name} of the concept has values that {dtype} cannot hold; training went astray")
    metadata = {
        "format": FORMAT,
        "superclass": concept.superclass,
        "lock": concept.lock,
        "base_digest": concept.base_digest,
        "metric_digest": concept.metric_digest,
        "key": key,
    }
    if concept.loss is not None:
        metadata["loss"] = repr(concept.loss)
    return _with_metadata(safetensors.torch.save(stored), metadata)


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """Put metadata into a safetensors file in the order given; the library writes it in a random one."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8 : 8 + length])}, separators=(",", ":"))
    header += " " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header.encode() + data[8 + length :]


def read_concept(
    data: bytes,
    *,
    base_digest: str,
    metric_digest: str,
    embedding_width: int,
    text_width: int,
    value_width: int,
    key: str | None = None,
) -> Concept:
    """Read and check a concept file; nothing in it is trusted. A `key` that is given must be the one it answers.

    Raises:
        ConceptFileError: damaged, of another shape or type, not finite, or of another base model, metric or key.
    """
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise ConceptFileError(f"not a concept file: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    if key is not None and metadata.get("key") != key:
        raise ConceptFileError(f"the file answers the key {metadata.get('key', '')[:12]!r}..., not {key[:12]!r}...")
    for name, mine in (("base_digest", base_digest), ("metric_digest", metric_digest)):
        theirs = metadata.get(name, "")
        if theirs != mine:
            what = "base model" if name == "base_digest" else "metric"
            raise ConceptFileError(
                f"the concept was trained with another {what} ({theirs[:12]}..., this run has {mine[:12]}...): "
                "train it again, or run with the one it belongs to"
            )
    lock: Literal["local", "trained"] = "trained" if metadata.get("lock") == "trained" else "local"
    shapes = {
        "embedding": embedding_width,
        "superclass_input": text_width,
        "target_input": text_width,
        "value_target": value_width,
    }
    if lock == "trained":
        shapes["key_target"] = value_width
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ConceptFileError(f"the concept file is damaged: {error}") from error
    if set(tensors) != set(shapes):
        raise ConceptFileError(f"the concept file holds {sorted(tensors)}, expected {sorted(shapes)}")
    for name, width in shapes.items():
        tensor = tensors[name]
        if tensor.dtype not in (torch.float16, torch.float32) or tuple(tensor.shape) != (width,):
            raise ConceptFileError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected float16 or float32 of ({width},)"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ConceptFileError(f"{name} holds values that are not finite")
    return Concept(
        superclass=metadata.get("superclass", ""),
        embedding=tensors["embedding"].float(),
        target_input=tensors["target_input"].float(),
        superclass_input=tensors["superclass_input"].float(),
        value_target=tensors["value_target"].float(),
        key_target=tensors["key_target"].float() if lock == "trained" else None,
        lock=lock,
        base_digest=base_digest,
        metric_digest=metric_digest,
        loss=_loss(metadata),
    )


def _loss(metadata: dict[str, str]) -> float | None:
    try:
        loss = float(metadata["loss"]) if "loss" in metadata else None
    except (TypeError, ValueError):
        loss = math.nan
    if loss is None or math.isfinite(loss):
        return loss
    raise ConceptFileError(f"the file's loss is {metadata['loss']!r}, not a number; it is damaged or not a concept")


def _metadata(data: bytes) -> dict[str, str]:
    if len(data) < 8:
        raise ConceptFileError(f"the concept file has {len(data)} bytes: it is empty or cut off")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ConceptFileError(f"the concept file claims a header of {length} bytes; it is damaged or not a concept")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConceptFileError("the file has no readable header; it is damaged or not a concept") from error
    if not isinstance(metadata, dict):
        raise ConceptFileError("the file's metadata is not a table of texts; it is damaged or not a concept")
    return metadata
