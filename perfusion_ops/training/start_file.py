"""The file of a word embedding, as textual inversion leaves it, from which a training may start.

Three forms are read, as safetensors or as a file of torch.save, which is loaded without running code in it:

- one text encoder: `{"<token>": v}` of diffusers, `{"emb_params": v}` of kohya and A1111,
- `{"string_to_param": {"*": v}}` of A1111,
- several text encoders: one tensor for each of them, by the names of the family (SDXL: `clip_l` and `clip_g`).

A concept has one word, so v has one vector: (E,) or (1, E).
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from perfusion_ops.errors import PerfusionError

MOST_BYTES = 1 << 20  # of a file; one vector of SDXL in float32 has 8 KB

_A1111 = "string_to_param"


class StartFileError(PerfusionError, ValueError):
    """The bytes are not a word embedding that fits the base model; the message completes "the file ..."."""


def read_start(data: bytes, widths: Sequence[int], names: Sequence[str]) -> Tensor:
    """The vector that v* starts from: (E,), float32, finite.

    Args:
        data: the whole file, of any origin.
        widths: of the word embeddings of each text encoder of the base model; E is their sum.
        names: of the tensors in a file for several text encoders; unused for one.

    Raises:
        StartFileError: see its docstring.
    """
    if len(data) > MOST_BYTES:
        raise StartFileError(f"has {len(data):,} bytes, and a word embedding has at most {MOST_BYTES:,}")
    tensors = _tensors(data)
    several = len(widths) > 1
    vector = torch.cat(_of_several(tensors, widths, names) if several else [_of_one(tensors, widths[0])])
    if not bool(torch.isfinite(vector).all()):
        raise StartFileError("has numbers that are not finite: train the embedding again")
    return vector


def _of_one(tensors: Mapping[str, Any], width: int) -> Tensor:
    found = tensors
    if _A1111 in found:
        inner = found[_A1111]
        found = inner if isinstance(inner, Mapping) else {}
    elif "emb_params" in found:
        found = {"emb_params": found["emb_params"]}
    if len(found) != 1:
        raise StartFileError(
            f"holds {_named(tensors)}, and not one word embedding for a base model with one text encoder: give a file "
            "with one token, with 'emb_params' or with 'string_to_param'"
        )
    [(name, value)] = found.items()
    return _vector(str(name), value, width)


def _of_several(tensors: Mapping[str, Any], widths: Sequence[int], names: Sequence[str]) -> list[Tensor]:
    wanted = " and ".join(f"{name!r} ({width:,})" for name, width in zip(names, widths, strict=False))
    absent = [name for name in names if name not in tensors]
    if len(names) != len(widths) or absent:
        raise StartFileError(
            f"holds {_named(tensors)}, and the base model has {len(widths)} text encoders: give a file with {wanted}"
        )
    return [_vector(name, tensors[name], width) for name, width in zip(names, widths, strict=True)]


def _named(tensors: Mapping[str, Any]) -> str:
    """Some of the names, in an order that does not depend on chance."""
    return ", ".join(f"{name:.40}" for name in sorted(map(str, tensors))[:4]) or "nothing"


def _vector(name: str, value: object, width: int) -> Tensor:
    """One vector (width,), float32."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
    if not isinstance(value, Tensor) or not plain:
        raise StartFileError(f"holds {name!r:.50}, which is no tensor of numbers: give the file of a word embedding")
    shape = tuple(value.shape)
    if len(shape) == 2 and shape[0] > 1:
        raise StartFileError(
            f"holds {shape[0]} vectors in {name!r:.50}, and a concept has one word: give an embedding of one vector"
        )
    if shape not in ((width,), (1, width)):
        size = " x ".join(f"{length:,}" for length in shape) or "no"
        raise StartFileError(
            f"holds {size} numbers in {name!r:.50}, and words of the base model have {width:,}: give an embedding that "
            "was trained for its family"
        )
    return value.detach().to("cpu", torch.float32).reshape(width).clone()


def _tensors(data: bytes) -> Mapping[str, Any]:
    """What the file holds, by name."""
    # A safetensors file begins with the length of its header, which may look like the first bytes of any other file.
    if data[8:9] != b"{":
        if data.startswith(b"PK"):
            return _saved(data)
        if data.startswith(b"\x80"):
            raise StartFileError("was saved by PyTorch before 1.6: load it and save it again, best as safetensors")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StartFileError(
            "is neither a safetensors file nor one of torch.save, or is damaged: give the embedding itself"
        ) from error


def _saved(data: bytes) -> Mapping[str, Any]:
    """The contents of a file of torch.save: tensors and plain values only, whatever it asks to run."""
    problem = "cannot be loaded without running code in it, or is damaged: save the embedding as safetensors"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_BYTES:
            raise StartFileError(f"unpacks to {unpacked:,} bytes, and a word embedding has at most {MOST_BYTES:,}")
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except StartFileError:
        raise
    except Exception as error:  # the bytes are untrusted, and unpickling them raises anything
        raise StartFileError(problem) from error
    if not isinstance(found, Mapping):
        raise StartFileError("holds no named tensors: give the file of a word embedding")
    return found
