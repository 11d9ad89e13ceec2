"""The spec file: YAML, TOML or JSON for `RunSettings`, with `--set a.b=c` on top.

Relative paths are taken from the spec's own folder, so that a spec means the same from wherever it is run.
"""

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.settings import RunSettings

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
_PATHS = ("root", "concepts", "prompts")


class SpecError(ValueError):
    """The spec cannot be used; each line of the message is one problem with its remedy."""


def load_spec(path: str, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a spec file.

    Args:
        path: a local `.yaml`, `.yml`, `.toml` or `.json` file.
        overrides: `a.b=c` texts; c is read as YAML, so numbers are numbers.

    Raises:
        SpecError: absent, unreadable, unknown keys or values out of range.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise SpecError(f"{path} is no spec: its name must end in {', '.join(SUFFIXES)}")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"the spec {path} cannot be read: {error.strerror or error}") from error
    try:
        values = tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"the spec {path} is not valid {file.suffix[1:]}: {error}") from error
    if not isinstance(values, dict):
        raise SpecError(f"the spec {path} must be a table of settings such as 'root: ...', not {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    for name in _PATHS:
        if isinstance(values.get(name), str):
            values[name] = resolve(values[name], file.parent)
    base = values.get("base")
    if isinstance(base, str) and base.startswith((".", "~")):
        values["base"] = resolve(base, file.parent)
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        raise SpecError("\n".join(_sentence(path, problem) for problem in error.errors())) from error


def resolve(path: str, folder: Path) -> str:
    """An absolute path for a relative one; URLs and absolute paths stay."""
    if "://" in path:
        return path
    expanded = Path(path).expanduser()
    return str(expanded if expanded.is_absolute() else (folder.absolute() / expanded))


def dump_spec(values: dict[str, Any]) -> str:
    """A spec as YAML, in the order given."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise SpecError(f"--set {override!r} is not of the form name=value, such as train.steps=200")
    *folders, last = name.split(".")
    for folder in folders:
        inner = values.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise SpecError(f"--set {override!r}: {folder!r} is a single value in the spec, not a table")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override!r}: the value cannot be read: {error}") from error


def _sentence(path: str, problem: Any) -> str:
    names = [str(part) for part in problem["loc"]]
    where = ".".join(names) or "the spec"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], _fields(names[:-1]), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(_fields(names[:-1]))}"
        return f"{path}: {where} is no setting{hint}"
    if problem["type"] == "missing":
        return f"{path}: {where} is missing: add it, such as '{names[-1]}: ...'"
    given = json.dumps(problem.get("input"), default=str)
    return f"{path}: {where} is {given[:200]}: {problem['msg'].removeprefix('Value error, ')}"


def _fields(names: Sequence[str]) -> list[str]:
    model: Any = RunSettings
    for name in names:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
