"""Kind, identity and labels of a scorer's folder, read from its files without loading a tensor.

A scorer is an ordinary transformers folder: `config.json`, safetensors, `preprocessor_config.json`, and a tokenizer if
it reads text. Only architectures with a well-defined embedding are accepted, so that a score means what its name says.
Folders with only pickles, or with code of their own, are refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perfusion_ops.errors import UsageError

Kind = Literal["dual", "image", "reader"]

# Image and text towers; and image models with a class token or a pooled feature map.
DUAL_TYPES = frozenset({"clip", "siglip"})
CLASS_TOKEN_TYPES = frozenset({"vit", "dinov2", "dinov2_with_registers", "dinov3_vit"})
POOLED_TYPES = frozenset({"resnet", "convnext", "convnextv2"})

HEADS = ("class", "context", "color", "pattern", "angle", "relation")
MULTI_LABEL_HEADS = frozenset({"class"})  # a picture may show two products

_READER = "ForImageClassification"
_DIGESTED_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})
_RUN_CODE = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"})
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")
_MAX_JSON_BYTES = 2**24


class ScorerError(UsageError, ValueError):
    """The folder is not a scorer that this program can use, or not of the kind that is needed."""


@dataclass(frozen=True)
class ScorerFolder:
    """A scorer on local disk.

    Attributes:
        path: the folder.
        kind: dual (pictures and texts), image (pictures only) or reader (labels).
        model_type: as transformers names the architecture: clip, dinov2, resnet, ...
        digest: hex sha256 over everything that decides what it computes.
        heads: a reader's labels by head, in the order of its outputs; else empty.
        columns: the place of each of those labels among the model's outputs.
    """

    path: Path
    kind: Kind
    model_type: str
    digest: str
    heads: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """Its name in the tables: the folder's name and the architecture."""
        return f"{self.path.name}({self.model_type})"


def describe_scorer(folder: str | Path) -> ScorerFolder:
    """Find out what a folder is.

    Raises:
        ScorerError: no such folder, a file missing or damaged, weights that can run code, or an unfit architecture.
    """
    path = Path(str(folder).removeprefix("file://")).expanduser()
    if not path.is_dir():
        raise ScorerError(
            f"there is no folder {folder}: give 'mini' or a local folder that transformers saved; "
            "download a model from a hub or a bucket first"
        )
    path = path.resolve()
    config = _json(path, "config.json", "give a folder that save_pretrained wrote")
    model_type, kind = _kind(path, config)
    if not list(path.glob("*.safetensors")):
        found = sorted(file.name for file in path.iterdir() if file.suffix in _RUN_CODE)
        has = f"only {', '.join(found)}, which can run code when it is read" if found else "no weights at all"
        raise ScorerError(f"{path} has {has}: save the model as safetensors")
    _json(path, "preprocessor_config.json", "save the model's image processor into the folder as well")
    if kind == "dual" and not any((path / name).is_file() for name in _TOKENIZERS):
        raise ScorerError(f"{path} reads texts but has no tokenizer ({', '.join(_TOKENIZERS)}): save it there as well")
    heads, columns = _labels(path, config) if kind == "reader" else ({}, {})
    return ScorerFolder(path, kind, model_type, _digest(path), heads, columns)


def _kind(path: Path, config: dict[str, Any]) -> tuple[str, Kind]:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if isinstance(model_type, str) and isinstance(architectures, list) and len(architectures) == 1:
        architecture = str(architectures[0])
        if architecture.endswith(_READER):
            return model_type, "reader"
        if architecture.endswith("Model") and model_type in DUAL_TYPES:
            return model_type, "dual"
        if architecture.endswith("Model") and model_type in CLASS_TOKEN_TYPES | POOLED_TYPES:
            return model_type, "image"
    known = ", ".join(sorted(DUAL_TYPES | CLASS_TOKEN_TYPES | POOLED_TYPES))
    raise ScorerError(
        f"{path} holds {architectures!r} of type {model_type!r}, which is not a scorer: give a whole model "
        f"of type {known}, or a classifier (...{_READER}) with labels such as 'context:beach'"
    )


def _labels(path: Path, config: dict[str, Any]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """Labels and their columns by head, from `id2label`: {"0": "class:mug", "1": "context:beach", ...}."""
    given = config.get("id2label")
    names = given if isinstance(given, dict) else {}
    heads: dict[str, list[str]] = {}
    columns: dict[str, list[int]] = {}
    for number in range(len(names)):
        head, separator, label = str(names.get(str(number))).partition(":")
        if not separator or head not in HEADS or not label or label in heads.get(head, ()):
            raise ScorerError(
                f"label {number} of {path} is {names.get(str(number))!r}: number the labels from 0 and write each once "
                f"as HEAD:NAME, where HEAD is {', '.join(HEADS)}"
            )
        heads.setdefault(head, []).append(label)
        columns.setdefault(head, []).append(number)
    if not heads:
        raise ScorerError(f"{path} is a classifier without labels: write id2label into its config.json")
    return {head: tuple(all_) for head, all_ in heads.items()}, {head: tuple(all_) for head, all_ in columns.items()}


def _json(path: Path, name: str, remedy: str) -> dict[str, Any]:
    file = path / name
    if not file.is_file():
        raise ScorerError(f"{path} is not a scorer: it has no {name}; {remedy}")
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is too large for such a file")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it is not an object")
    except (OSError, ValueError, TypeError) as error:
        raise ScorerError(f"{file} cannot be read ({error}): copy the model again") from error
    return values


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.suffix in _DIGESTED_SUFFIXES and file.is_file()):
        with file.open("rb") as stream:
            whole.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
