"""Finds a base model: the embedded one, a local folder, the URI of an object store, or a hub id.

The result is always a local folder, whose digest is the model's identity. A remote model is copied once into the user's
cache, and only its safetensors and configuration files are copied.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perfusion_ops.base.folder import BaseError, BaseFolder, describe
from perfusion_ops.families.registry import PARTS
from perfusion_ops.mini import base_folder
from pipeline.storage.objects import StorageError, absolute_uri, explain, mistyped_uri, open_location, options_for

_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
_STORE_OPTIONS = ("endpoint_url", "account_name", "account_host", "connection_string")  # the same URI elsewhere


def cache_folder() -> Path:
    """The user's cache: `PERFUSION_CACHE`, or `~/.cache/perfusion`."""
    return Path(os.environ.get("PERFUSION_CACHE") or Path.home() / ".cache" / "perfusion")


def find_base(source: str, options: Mapping[str, object] | None = None) -> BaseFolder:
    """Resolve `mini`, a local folder, a URI of an object store or a hub id (`owner/name`) to a described local folder.

    Args:
        source: where the base model is.
        options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        BaseError: there is no such base model, it cannot be read, or it is not of a supported family.
    """
    if source == "mini":
        return describe(base_folder())
    if "://" in source and not source.startswith("file://"):
        return describe(copied(source, options, _wanted, "base model"))
    if mistyped := mistyped_uri(source):
        raise BaseError(f"there is no base model {source!r}: {mistyped}")
    local = Path(source.removeprefix("file://")).expanduser()
    if local.is_dir():
        return describe(local.resolve())
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return describe(_from_hub(source))
    raise BaseError(f"there is no base model {source!r}: give 'mini', a folder, an object-store URI or a hub id")


def _wanted(filesystem: Any, root: str) -> list[str]:
    """The files of a base model in a folder of an object store."""
    found = [f"{root}/model_index.json"]
    if filesystem.exists(f"{root}/perfusion.json"):
        found.append(f"{root}/perfusion.json")
    for part in (*PARTS, "loras"):
        found += [file for file in filesystem.find(f"{root}/{part}") if file.endswith(_SUFFIXES)]
    return found


def copied(uri: str, options: Mapping[str, object] | None, wanted: Callable[[Any, str], list[str]], what: str) -> Path:
    """A folder of an object store, copied into the user's cache unless it is there.

    Args:
        uri: of the folder.
        options: fsspec options, for one filesystem or grouped by scheme.
        wanted: gives the paths of its files that are copied, from the filesystem and the folder's path there.
        what: it is, for the message.

    Raises:
        BaseError: it cannot be copied.
    """
    try:
        target = cache_folder() / "bases" / _cache_name(uri, options)
        done = target / ".complete"
        if done.exists():
            return target
        filesystem, root = open_location(absolute_uri(uri), options)
        for file in wanted(filesystem, root):
            local = target / file[len(root) :].lstrip("/")
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(local.name + f".{os.getpid()}.partial")
            filesystem.get_file(file, str(partial))
            partial.replace(local)
        done.touch()
    except StorageError as error:
        raise BaseError(f"the {what} {uri} cannot be copied: {error}") from error
    except Exception as error:  # cloud packages raise types of their own
        raise BaseError(f"the {what} {uri} cannot be copied: {explain(error, 'read', uri)}") from error
    return target


def _cache_name(uri: str, options: Mapping[str, object] | None) -> str:
    """The folder of a copy: one for each URI, and for each store where the options name one."""
    given = options_for(uri.partition("://")[0], options)
    client: Any = given.get("client_kwargs")
    places = [given, client if isinstance(client, Mapping) else {}]
    store = [str(place[name]) for place in places for name in _STORE_OPTIONS if place.get(name)]
    return hashlib.sha256("\n".join([uri, *store]).encode()).hexdigest()[:32]


def _from_hub(name: str) -> Path:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    try:
        return Path(StableDiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:
        raise BaseError(
            f"the base model {name!r} is no local folder and cannot be downloaded from the hub: {error}"
        ) from error
