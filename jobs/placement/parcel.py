"""What a submission carries: a folder with the spec and the manifests that lie on this machine's disk.

The folder's digest is the identity of the submission. Photos, base models and results do not travel.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.spec import dump_spec
from jobs.spec_file import SpecError
from pipeline.files.batches import find_manifest
from pipeline.manifest.local_files import first_local_picture, is_local
from pipeline.settings import RunSettings
from pipeline.storage.scratch import scratch_folder

MOST_MB = 100  # of all files; a cluster keeps them in the head's memory
SPEC = "spec.yaml"
_SHARED = "or set cluster.shared_filesystem to true if the cluster mounts the same folders at the same paths"


@dataclass(frozen=True)
class Parcel:
    """A folder that travels. `digest`: hex sha256 of its files' names and contents."""

    folder: Path
    digest: str


@contextmanager
def packed(settings: RunSettings) -> Iterator[Parcel]:
    """A folder from which the same run starts on another machine; the end of the block removes it.

    Raises:
        SpecError: something that workers must read or write lies on this machine's disk, or the files are too large.
        ManifestError: a manifest cannot be read.
    """
    values = settings.model_dump(mode="json", exclude_unset=True)
    values.get("cluster", {}).pop("address", None)
    with scratch_folder("submit") as scratch:
        folder = scratch / "parcel"  # beside the lock of the scratch folder, which does not travel
        folder.mkdir()
        if not settings.cluster.shared_filesystem:
            _ensure_remote(settings)
            for name in ("concepts", "prompts", "points"):
                if values.get(name) and is_local(values[name]):
                    values[name] = _copy(values[name], folder / name)
            captions = settings.metric.captions_uri
            if captions and is_local(captions):
                values["metric"]["captions_uri"] = _copy_file(
                    Path(captions.removeprefix("file://")), folder / "captions"
                )
        (folder / SPEC).write_text(dump_spec(values), encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > MOST_MB * 1e6:
            raise SpecError(
                f"the manifests take {size / 1e6:,.0f} MB, and a submission carries at most {MOST_MB} MB: put them "
                f"into an object store, {_SHARED}"
            )
        yield Parcel(folder, _digest(folder))


def _ensure_remote(settings: RunSettings) -> None:
    if is_local(settings.root):
        raise SpecError(f"root is {settings.root}, which the cluster cannot write: give an object store, {_SHARED}")
    for uri in (settings.concepts, settings.prompts):
        manifest = find_manifest(uri, settings.storage_options)
        found = first_local_picture(manifest, prompts=uri == settings.prompts)
        if found:
            row, address = found
            raise SpecError(
                f"row {row} of {uri} names the photo {address}, which the cluster cannot read: give addresses in an "
                f"object store, {_SHARED}"
            )


def _copy(uri: str, folder: Path) -> str:
    """Copy the files of a manifest; returns the same file, folder or glob of them as the spec calls it there."""
    manifest = find_manifest(uri)
    top = Path(manifest.folder.removeprefix("file://") or "/")
    for file in manifest.files:
        target = folder / Path(file.name).relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.name, target)
    below = manifest.uri.removeprefix(manifest.folder).strip("/")
    return f"{folder.name}/{below}".rstrip("/")


def _copy_file(file: Path, folder: Path) -> str:
    folder.mkdir()
    try:
        shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise SpecError(f"metric.captions_uri is {file}, which cannot be read: {error.strerror or error}") from error
    return f"{folder.name}/{file.name}"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
