"""Whether a node can run this program's workers: the same code, packages and base model, and the same files.

Every node is asked before the first worker starts. Each worker asks again before it loads anything, because nodes join
while a run works.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.fleet import Node
from pipeline.worker.settings import WorkerSettings

# Their versions decide what a picture looks like, or whether a file can be read.
_PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "pyarrow", "fsspec", "pydantic")
_OF_MP4 = "av"  # it decides only what MP4 files are
PROGRAM = ("perfusion_ops", "pipeline", "cluster", "jobs")
_ASK_S = 600.0  # for a node to answer: it may copy the base model from an object store first


@dataclass(frozen=True)
class Needs:
    """What every node must have.

    Attributes:
        program: digest of this program's source.
        packages: versions of other packages, by name; those that the driver has.
        base: location of the base model; empty: none is needed.
        base_digest: the digest that its files must have.
        render_base: location of the base model that renders; empty: no other one is needed.
        render_base_digest: the digest that its files must have.
        motion: location of the motion adapter; empty: none is needed.
        motion_digest: the digest that its files must have.
        controls: location and digest of each ControlNet.
        options: fsspec options for the base models.
        files: local paths that must exist.
    """

    program: str
    packages: Mapping[str, str]
    base: str = ""
    base_digest: str = ""
    render_base: str = ""
    render_base_digest: str = ""
    motion: str = ""
    motion_digest: str = ""
    controls: tuple[tuple[str, str], ...] = ()
    options: Mapping[str, object] | None = None
    files: tuple[str, ...] = ()


def program_digest() -> str:
    """Hex sha256 of the source of this program's packages."""
    digest = hashlib.sha256()
    for folder in package_folders():
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{file.relative_to(folder).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def package_folders() -> list[Path]:
    """Folders of this program's packages. They have no common parent where Ray has sent them."""
    found = []
    for name in PROGRAM:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ClusterError(f"the package {name} of this program is missing: install perfusion-pipeline again")
        found.append(Path(spec.submodule_search_locations[0]))
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that may matter, as installed here."""
    found = {}
    for name in (*_PACKAGES, _OF_MP4):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover (a node without it)
            continue
    return found


def problems(needs: Needs) -> list[str]:
    """What this machine lacks; each sentence names the remedy."""
    found = []
    if program_digest() != needs.program:
        found.append(
            "its perfusion is not the driver's version: install that version there, or set cluster.ship_code to send it"
        )
    here = package_versions()
    for name, wanted in needs.packages.items():
        if here.get(name) != wanted:
            found.append(
                f"it has {name} {here.get(name, '(not installed)')}, the driver {wanted}: install that version"
            )
    found += _base_problems(needs)
    found += _motion_problems(needs)
    found += _control_problems(needs)
    lost = [file for file in needs.files if not os.path.exists(file)]  # noqa: PTH110 (no Path for each of many)
    if lost:
        found.append(
            f"it does not see {lost[0]}{f' and {len(lost) - 1} more' if lost[1:] else ''}: mount the same folders on "
            "every node, or use an object store and leave cluster.shared_filesystem out"
        )
    return found


def _base_problems(needs: Needs) -> list[str]:
    from perfusion_ops.base.folder import BaseError
    from pipeline.bases.find import find_base

    found: list[str] = []
    for base, digest in ((needs.base, needs.base_digest), (needs.render_base, needs.render_base_digest)):
        if not base:
            continue
        try:
            there = find_base(base, needs.options).digest
        except BaseError as error:
            found.append(f"it cannot read the base model: {error}")
            continue
        if there != digest:
            found.append(
                f"its base model {base} has digest {there[:12]}, the driver's {digest[:12]}: copy the same model to "
                "every node, or give an object-store URI"
            )
    return found


def _motion_problems(needs: Needs) -> list[str]:
    from perfusion_ops.base.folder import BaseError
    from pipeline.bases.motion import find_motion

    if not needs.motion:
        return []
    try:
        there = find_motion(needs.motion, needs.options).digest
    except BaseError as error:
        return [f"it cannot read the motion adapter: {error}"]
    if there == needs.motion_digest:
        return []
    return [
        f"its motion adapter {needs.motion} has digest {there[:12]}, the driver's {needs.motion_digest[:12]}: copy the "
        "same files to every node, or give an object-store URI"
    ]


def _control_problems(needs: Needs) -> list[str]:
    from perfusion_ops.base.folder import BaseError
    from pipeline.bases.controls import find_control
    from pipeline.bases.find import find_base

    found: list[str] = []
    for location, digest in needs.controls:
        try:
            base = find_base(needs.render_base or needs.base, needs.options)
        except BaseError:
            return []  # the base model's own problem
        try:
            there = find_control(location, base, needs.options).digest
        except BaseError as error:
            found.append(f"it cannot read a ControlNet: {error}")
            continue
        if there != digest:
            found.append(
                f"its ControlNet {location} has digest {there[:12]}, the driver's {digest[:12]}: copy the same model "
                "to every node, or give an object-store URI"
            )
    return found


def needs_of(worker: WorkerSettings, files: Sequence[str]) -> Needs:
    """What a node needs to run the workers of a run; `files`: local paths that must exist there."""
    return Needs(
        program=program_digest(),
        packages={
            name: found
            for name, found in package_versions().items()
            if name != _OF_MP4 or worker.encoding.format == "mp4"
        },
        base=worker.base,
        base_digest=worker.base_digest,
        render_base=worker.render_base or "",
        render_base_digest=worker.render_base_digest,
        motion=worker.motion or "",
        motion_digest=worker.motion_digest,
        controls=tuple((each.location, each.digest) for each in worker.controls),
        options=worker.storage_options,
        files=tuple(files),
    )


def ensure_fit(needs: Needs, nodes: Sequence[Node]) -> None:
    """Ask some nodes of the cluster that this process is connected to.

    Raises:
        ClusterError: a node lacks something or does not answer; one line for each problem.
    """
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask: Any = ray.remote(num_cpus=0, max_retries=0)(_question())
    content = cloudpickle.dumps(needs)  # pyright: ignore[reportPrivateImportUsage]
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            content
        ): node.address
        for node in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_S) if asked else ([], [])
    lines = [f"node {asked[each]} does not answer within {_ASK_S:g} s: restart it or remove it" for each in late]
    for each in ready:
        try:
            found: Sequence[str] = ray.get(each)
        except RayError as error:
            found = [f"it cannot be asked: {' '.join(str(error).split())[:300]}"]
        lines += [f"node {asked[each]}: {problem}" for problem in found]
    if lines:
        raise ClusterError("\n".join(sorted(lines)))


def _question() -> Any:
    """The task of `ensure_fit`. A nested function is sent by value, so that a node without this program can run it."""

    def ask(needs: bytes) -> list[str]:
        from ray import cloudpickle

        try:
            from cluster.fitness import problems
        except ModuleNotFoundError as error:
            return [
                f"it cannot import perfusion ({error}): install perfusion-pipeline there, or set cluster.ship_code to "
                "send the driver's"
            ]
        return problems(cloudpickle.loads(needs))

    return ask
