"""Finds the ControlNets of a run: local folders, URIs of an object store, or hub ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.controls.folder import CONFIG, INDEX, WEIGHTS, ControlFolder, describe_control
from pipeline.bases.find import copied
from pipeline.storage.objects import mistyped_uri

_SHARDS = WEIGHTS.replace(".safetensors", "-*-of-*.safetensors")


def find_controls(
    controls: Mapping[str, str], base: BaseFolder, options: Mapping[str, object] | None = None
) -> dict[str, ControlFolder]:
    """Resolve and check every ControlNet of a spec.

    Args:
        controls: their locations by name.
        base: the base model that renders.
        options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        BaseError: one of them is missing, cannot be read, or does not fit the base model; the message has its name.
    """
    found: dict[str, ControlFolder] = {}
    for name, location in controls.items():
        try:
            found[name] = find_control(location, base, options)
        except BaseError as error:
            raise BaseError(f"controls.{name}: {error}") from error
    return found


def find_control(source: str, base: BaseFolder, options: Mapping[str, object] | None = None) -> ControlFolder:
    """Resolve a local folder, a URI of an object store or a hub id (`owner/name`) to a described local folder.

    Args:
        source: where the ControlNet is.
        base: the base model that renders.
        options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        BaseError: there is no such ControlNet, it cannot be read, or it does not fit the base model.
    """
    if "://" in source and not source.startswith("file://"):
        return describe_control(copied(source, options, _wanted, "ControlNet"), base)
    if mistyped := mistyped_uri(source):
        raise BaseError(f"there is no ControlNet {source!r}: {mistyped}")
    local = Path(source.removeprefix("file://")).expanduser()
    if local.is_dir():
        return describe_control(local.resolve(), base)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return describe_control(_from_hub(source), base)
    raise BaseError(f"there is no ControlNet {source!r}: give a folder, an object-store URI or a hub id")


def _wanted(filesystem: Any, root: str) -> list[str]:
    """The files of a ControlNet in a folder of an object store; those that must be there, even if they are not."""
    if filesystem.exists(f"{root}/{WEIGHTS}") or not filesystem.exists(f"{root}/{INDEX}"):
        return [f"{root}/{name}" for name in (CONFIG, WEIGHTS)]
    shards = [file.rpartition("/")[2] for file in filesystem.glob(f"{root}/{_SHARDS}")]
    return [f"{root}/{name}" for name in (CONFIG, INDEX, *shards)]


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, INDEX, _SHARDS]))
    except Exception as error:
        raise BaseError(
            f"the ControlNet {name!r} is no local folder and cannot be downloaded from the hub: {error}"
        ) from error
