"""Finds a motion adapter, and checks that a run can draw what its settings ask for: pictures, or videos with it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.base.motion import CONFIG, SCHEDULE, MotionFolder, check_motion, describe_motion, is_weights
from perfusion_ops.config import SamplingConfig
from pipeline.bases.find import copied
from pipeline.storage.objects import mistyped_uri

_OF_VIDEOS = ("frames", "fps")


def find_motion(source: str, options: Mapping[str, object] | None = None) -> MotionFolder:
    """Resolve a local folder, a URI of an object store or a hub id (`owner/name`) to a described local folder.

    Args:
        source: where the motion adapter is.
        options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        BaseError: there is no such adapter, or it cannot be read.
    """
    if "://" in source and not source.startswith("file://"):
        return describe_motion(copied(source, options, _wanted, "motion adapter"))
    if mistyped := mistyped_uri(source):
        raise BaseError(f"there is no motion adapter {source!r}: {mistyped}")
    local = Path(source.removeprefix("file://")).expanduser()
    if local.is_dir():
        return describe_motion(local.resolve())
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return describe_motion(_from_hub(source))
    raise BaseError(f"there is no motion adapter {source!r}: give a folder, an object-store URI or a hub id")


def check_task(
    sampling: SamplingConfig, given: Collection[str], motion: MotionFolder | None, drawing: BaseFolder
) -> None:
    """Refuse settings of pictures and videos that contradict each other, or what draws.

    Args:
        sampling: complete sampling settings.
        given: the names of those that the spec sets.
        motion: the spec's motion adapter.
        drawing: the base model that renders.

    Raises:
        BaseError: there is no motion adapter, or no task for it, or it does not fit.
    """
    if sampling.task == "picture":
        if motion is not None:
            raise BaseError(
                f"motion is {motion.path} and render.task 'picture': set render.task to 'video', or leave motion out"
            )
        for name in _OF_VIDEOS:
            if name in given:
                raise BaseError(
                    f"render.{name} is {getattr(sampling, name)} and render.task 'picture': set render.task to "
                    f"'video', or leave {name} out"
                )
        return
    if motion is None:
        raise BaseError("render.task is 'video', and the spec has no motion: set motion to a motion adapter's folder")
    check_motion(motion, drawing)
    if sampling.frames > motion.most_frames:
        raise BaseError(
            f"render.frames is {sampling.frames}, and the motion adapter {motion.path} draws at most "
            f"{motion.most_frames} frames: use a smaller number"
        )
    if sampling.guidance_rescale:
        raise BaseError(
            f"render.guidance_rescale is {sampling.guidance_rescale}, which videos do not have: set it to 0"
        )


def _wanted(filesystem: Any, root: str) -> list[str]:
    """The files of a motion adapter in a folder of an object store."""
    found = [f"{root}/{name}" for name in (CONFIG, SCHEDULE) if filesystem.exists(f"{root}/{name}")]
    top = filesystem.find(root, maxdepth=1)
    return [*found, *(file for file in top if is_weights(file.rpartition("/")[2]))]


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, SCHEDULE, "diffusion_pytorch_model*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.bin", "*.fp16.*"]))
    except Exception as error:
        raise BaseError(
            f"the motion adapter {name!r} is no local folder and cannot be downloaded from the hub: {error}"
        ) from error
