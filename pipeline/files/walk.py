"""The files of a folder or a glob, on any filesystem: links are followed, hidden and private names are skipped.

Names are skipped as in Spark, pyarrow and Hive: at any depth below the folder that the user names, a name that begins
with `.` or `_` (except partition folders such as `_year=2026`), and temporary files of browsers, editors and desktops.
A link that leads nowhere is an error, because its rows would be missing.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipeline.contract.errors import ManifestError

_MAX_DEPTH = 64  # folders; deeper ones are links that lead back to themselves
_LEFTOVERS = re.compile(r"thumbs\.db|desktop\.ini|~\$.*|.*(\.crc|\.tmp|\._copying_|_\$folder\$)", re.IGNORECASE)


@dataclass
class Found:
    """Names of files, of what was skipped, and of links to what was found already; folders end in `/`."""

    files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: str  # file, directory or other
    size: int
    real: str  # the path without links on a local disk; elsewhere the name itself


def kind_of(filesystem: Any, path: str) -> str | None:
    """The kind of a path: file, directory, other or None. fsspec's `exists` would hide a denied permission.

    Raises:
        ManifestError: a link leads nowhere.
    """
    if isinstance(filesystem, LocalFileSystem):
        entry = _local_entry(path, path)
        return entry.kind if entry else None
    try:
        return str(filesystem.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def find_below(filesystem: Any, folder: str) -> Found:
    """Every file in `folder` and below it.

    Raises:
        ManifestError: a link leads nowhere or back to itself.
        OSError: a folder cannot be read.
    """
    return _find(filesystem, folder, lambda _: True, lambda _: True, lambda _: False)


def find_glob(filesystem: Any, pattern: str) -> Found:
    """Every file that `pattern` matches; hidden names only where the pattern spells them. Raises as `find_below`.

    Raises:
        ValueError: the pattern has `**` beside other characters.
    """
    top = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match
    segments = pattern.removeprefix(top).strip("/").split("/")
    fixed = segments[: segments.index("**")] if "**" in segments else segments
    above = [re.compile(glob_translate("/".join(fixed[: depth + 1]))) for depth in range(len(fixed))]
    named = [segment for segment in segments if segment.startswith((".", "_"))]

    def leads(name: str) -> bool:
        """Whether a path below this folder can match."""
        below = name.removeprefix(top).strip("/")
        depth = below.count("/")
        if depth >= len(above):
            return "**" in segments
        return bool(above[depth].match(below)) and ("**" in segments or depth < len(above) - 1)

    def allowed(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, segment) for segment in named)

    return _find(filesystem, top, lambda name: bool(matches(name)), leads, allowed)


def _find(
    filesystem: Any,
    top: str,
    wanted: Callable[[str], bool],
    leads: Callable[[str], bool],
    allowed: Callable[[str], bool],
) -> Found:
    """Files below `top` that are `wanted`, through folders that `leads` accepts; `allowed` names are never skipped."""
    found = Found()
    seen: dict[tuple[str, tuple[str, ...]], str] = {}
    local = isinstance(filesystem, LocalFileSystem)

    def walk(folder: str, above: tuple[str, ...]) -> None:
        if len(above) > _MAX_DEPTH:
            raise ManifestError(f"{folder} lies {_MAX_DEPTH} folders deep: remove the link that leads back to itself")
        below = _entries(filesystem, folder, above[-1], lambda name: leads(name) or wanted(name))
        for entry in sorted(below, key=lambda each: each.name):
            name = entry.name.rpartition("/")[2]
            folder_like = entry.kind == "directory"
            if not (leads if folder_like else wanted)(entry.name):
                continue
            if entry.kind == "other" or (_left_out(name, entry) and not allowed(name)):
                found.skipped.append(entry.name + "/" * folder_like)
            elif folder_like and entry.real in above:
                found.repeated.append(entry.name + "/")
            elif folder_like:
                walk(entry.name, (*above, entry.real))
            else:
                # The same file under other partition folders has rows of its own.
                place = entry.real, tuple(part for part in entry.name.split("/")[:-1] if "=" in part)
                if local and place in seen:
                    found.repeated.append(entry.name)
                else:
                    seen[place] = entry.name
                    found.files.append(entry.name)

    walk(top, (os.path.realpath(top or "/") if local else top,))
    found.files.sort()
    return found


def _left_out(name: str, entry: _Entry) -> bool:
    if entry.kind == "directory":
        return name.startswith(".") or (name.startswith("_") and "=" not in name)
    marker = entry.size == 0 and "." not in name
    return name.startswith((".", "_")) or marker or bool(_LEFTOVERS.fullmatch(name))


def _entries(filesystem: Any, folder: str, real: str, relevant: Callable[[str], bool]) -> Iterator[_Entry]:
    """The entries of a folder whose `real` path is known; on a local disk only the `relevant` ones."""
    if isinstance(filesystem, LocalFileSystem):
        with os.scandir(folder or "/") as listing:
            inside = [(entry.name, entry.is_symlink()) for entry in listing]
        for name, link in inside:
            if relevant(path := f"{folder}/{name}"):
                # A hidden link that leads nowhere is an editor's lock: no error.
                entry = _local_entry(path, None if link else f"{real}/{name}", strict=not name.startswith((".", "_")))
                if entry:
                    yield entry
        return
    try:
        infos = filesystem.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    for info in infos:
        name = str(info["name"]).rstrip("/")
        # Object stores list the marker of a folder as an empty object in it.
        if name == folder.rstrip("/") or (str(info["name"]).endswith("/") and info["type"] == "file"):
            continue
        kind = str(info["type"])
        if kind not in ("file", "directory"):
            kind = kind_of(filesystem, name) or "other"
        yield _Entry(name, kind, int(info.get("size") or 0), name)


def _local_entry(path: str, real: str | None, *, strict: bool = True) -> _Entry | None:
    """The entry at a local path, or None if there is nothing.

    Args:
        path: may be a link.
        real: the path without links, if it is known.
        strict: whether a link that leads nowhere is an error.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (a listing of a million files)
    except OSError as error:
        if not os.path.islink(path):  # noqa: PTH114
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                return None
            raise
        if isinstance(error, PermissionError):
            raise
        if not strict:
            return _Entry(path, "other", 0, path)
        raise ManifestError(
            f"{path} is a link to {os.readlink(path)}, which leads nowhere: "  # noqa: PTH115
            "restore what it leads to, or remove the link"
        ) from error
    folder, file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
    kind = "directory" if folder else "file" if file else "other"
    return _Entry(path, kind, found.st_size, real or os.path.realpath(path))
