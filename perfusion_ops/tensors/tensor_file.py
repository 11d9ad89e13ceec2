"""Safetensors bytes with text metadata: one deterministic writer and one reader that trusts nothing.

The safetensors library writes metadata in a random order and accepts headers of 100 MB. This module writes metadata in
the order given, so that equal contents give equal bytes, and checks the header before the library sees it.
"""

import json
import struct
from collections.abc import Mapping

import safetensors
import safetensors.torch
from torch import Tensor

from perfusion_ops.errors import PerfusionError

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 1 << 20  # the headers of this project take under 4 KB


class TensorFileError(PerfusionError, ValueError):
    """The bytes are not a safetensors file of the expected format; the message completes "the file ..."."""


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise tensors and metadata; equal arguments give equal bytes.

    Args:
        tensors: by name; moved to the CPU and made contiguous, types unchanged.
        metadata: texts by name, written in the order given. `read` requires the entry "format".
    """
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    (length,) = _LENGTH.unpack_from(data)
    entries = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    header = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":"))
    header += " " * (-len(header) % 8)  # the format aligns tensors to 8 bytes
    return _LENGTH.pack(len(header)) + header.encode("ascii") + data[_LENGTH.size + length :]


def read(data: bytes, *formats: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors by name; tensors lie on the CPU.

    Args:
        data: the whole file.
        formats: what the metadata entry "format" may be.

    Raises:
        TensorFileError: the bytes are cut off, damaged or of another format.
    """
    metadata = _metadata(data)
    if metadata.get("format") not in formats:
        expected = " or ".join(map(repr, formats))
        raise TensorFileError(f"has the format {metadata.get('format')!r:.80}, expected {expected}")
    try:
        return metadata, safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise TensorFileError(f"is damaged ({error})") from error


def _metadata(data: bytes) -> dict[str, str]:
    if len(data) < _LENGTH.size:
        raise TensorFileError(f"has {len(data)} bytes: it is empty or cut off")
    (length,) = _LENGTH.unpack_from(data)
    if length > min(_MAX_HEADER_BYTES, len(data) - _LENGTH.size):
        raise TensorFileError(f"claims a header of {length} bytes: it is cut off, damaged or of another kind")
    try:
        metadata = json.loads(data[_LENGTH.size : _LENGTH.size + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TensorFileError("has no readable header: it is damaged or of another kind") from error
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise TensorFileError("has metadata that is not a table of texts: it is damaged or of another kind")
    return metadata
