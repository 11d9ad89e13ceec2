"""Where a base model comes from: the embedded one, a local folder, an object-store URL, or a hub id.

Whatever the source, the result is a folder on local disk whose digest is the model's identity. Remote sources are
copied once into the user's cache; only safetensors and configuration files are taken.
"""

import hashlib
import os
from pathlib import Path

import fsspec

from perfusion_ops.base.folder import PARTS, BaseError, BaseFolder, describe
from perfusion_ops.mini import base_folder
from pipeline.storage.objects import mistyped_uri

_SUFFIXES = (".json", ".txt", ".safetensors")


def cache_folder() -> Path:
    """Per-user cache: `PERFUSION_CACHE`, or `~/.cache/perfusion`."""
    return Path(os.environ.get("PERFUSION_CACHE") or Path.home() / ".cache" / "perfusion")


def find_base(source: str) -> BaseFolder:
    """Resolve `mini`, a local folder, an fsspec URL or a hub id (`owner/name`) to a described local folder.

    Raises:
        BaseError: there is no such base, it cannot be reached, or it is not of a known family.
    """
    if source == "mini":
        return describe(base_folder())
    if "://" in source and not source.startswith("file://"):
        return describe(_copy(source))
    if mistyped := mistyped_uri(source):
        raise BaseError(f"there is no base model {source!r}: {mistyped}")
    local = Path(source.removeprefix("file://")).expanduser()
    if local.is_dir():
        return describe(local.resolve())
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return describe(_from_hub(source))
    raise BaseError(f"there is no base model {source!r}: give 'mini', a folder, an object-store URL or a hub id")


def _copy(uri: str) -> Path:
    target = cache_folder() / "bases" / hashlib.sha256(uri.encode()).hexdigest()[:32]
    done = target / ".complete"
    if done.exists():
        return target
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
        wanted = [root + "/model_index.json", root + "/perfusion.json"]
        for part in PARTS:
            wanted += [file for file in filesystem.find(f"{root}/{part}") if file.endswith(_SUFFIXES)]
        for file in wanted:
            if file.endswith("/perfusion.json") and not filesystem.exists(file):
                continue
            local = target / file[len(root) :].lstrip("/")
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(local.name + f".{os.getpid()}.partial")
            filesystem.get_file(file, str(partial))
            partial.replace(local)
    except (OSError, ImportError, ValueError) as error:
        raise BaseError(f"the base model {uri} cannot be copied: {error}") from error
    done.touch()
    return target


def _from_hub(name: str) -> Path:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    try:
        return Path(StableDiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:
        raise BaseError(
            f"the base model {name!r} is no local folder and cannot be had from the hub: {error}"
        ) from error
