"""Reads `RunSettings` from a spec file and applies `--set a.b=c`.

Relative paths are relative to the folder of the spec, so that a spec means the same from any working directory.
Messages name the setting, the value and the remedy, but never a value that may be a secret.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.output import complain
from jobs.spec_file import SpecError, parse_yaml, read_spec_file
from pipeline.settings import RunSettings, old_names
from pipeline.storage.objects import mistyped_uri

_PATHS = ("root", "concepts", "prompts", "points")


def load_spec(path: str, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a spec file.

    Args:
        path: a local `.yaml`, `.yml`, `.toml` or `.json` file.
        overrides: texts `a.b=c`; c is parsed as YAML, so numbers are numbers.

    Raises:
        SpecError: the file is missing or unreadable, or has unknown settings or values out of range.
    """
    values = read_spec_file(path)
    for override in overrides:
        _override(values, override)
    _resolve_paths(values, Path(path).parent)
    for notice in old_names(values):
        complain(f"{path}: {notice}")
    return _checked(values, path)


def settings_of(recorded: Mapping[str, Any], root: str, overrides: Sequence[str] = ()) -> RunSettings:
    """The settings of an earlier run.

    Args:
        recorded: the `settings` of its recorded spec.
        root: where its results are now; a root may have moved since the run.
        overrides: as in `load_spec`.

    Raises:
        SpecError: an incompatible version wrote it, or an override is wrong.
    """
    values = {**recorded, "root": root}
    for override in overrides:
        _override(values, override)
    return _checked(values, "the run's spec.json")


def _checked(values: dict[str, Any], path: str) -> RunSettings:
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        raise SpecError("\n".join(f"{path}: {_message(problem)}" for problem in error.errors())) from error


def resolve(path: str, folder: Path) -> str:
    """An absolute path for a relative one. URIs, also mistyped ones, and absolute paths are returned unchanged."""
    return path if "://" in path or mistyped_uri(path) else str(folder.absolute() / Path(path).expanduser())


def dump_spec(values: dict[str, Any]) -> str:
    """A spec as YAML, in the order of `values`."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def spec_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a spec, for editors and other tools."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunSettings.model_json_schema()}


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make every path in the spec absolute, in place. Validation refuses values that are not text."""
    for name in _PATHS:
        if isinstance(values.get(name), str) and values[name]:
            values[name] = resolve(values[name], folder)
    base = values.get("base")
    # `owner/name` is a hub id unless there is such a folder beside the spec.
    if isinstance(base, str) and (base.startswith((".", "~")) or ("/" in base and (folder / base).is_dir())):
        values["base"] = resolve(base, folder)
    if isinstance(values.get("motion"), str):
        values["motion"] = _beside(values["motion"], folder)
    controls = values.get("controls")
    if isinstance(controls, dict):
        values["controls"] = {name: _beside(place, folder) for name, place in controls.items()}
    metric, inputs = values.get("metric"), values.get("inputs")
    if isinstance(metric, dict) and isinstance(metric.get("captions_uri"), str):
        values["metric"] = {**metric, "captions_uri": resolve(metric["captions_uri"], folder)}
    if isinstance(inputs, dict) and isinstance(inputs.get("allow"), list):
        allow = [resolve(prefix, folder) if isinstance(prefix, str) else prefix for prefix in inputs["allow"]]
        values["inputs"] = {**inputs, "allow": allow}
    lineage = values.get("lineage")
    if isinstance(lineage, dict) and isinstance(lineage.get("file"), str):
        values["lineage"] = {**lineage, "file": resolve(lineage["file"], folder)}


def _beside(place: Any, folder: Path) -> Any:
    """The absolute path of a model that lies beside the spec; hub ids and URIs are returned unchanged."""
    if not isinstance(place, str) or not place:
        return place
    return resolve(place, folder) if place.startswith((".", "~")) or (folder / place).is_dir() else place


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *folders, last = parts = name.split(".")
    if not equals or not all(parts):
        raise SpecError(f"--set {override!r} is not NAME=VALUE: write it as in --set train.steps=200")
    for folder in folders:
        if values.get(folder) is None:
            values[folder] = {}
        values = values[folder]
        if not isinstance(values, dict):
            raise SpecError(f"--set {name}: {folder!r} is a single value in the spec, not a table")
    try:
        values[last] = parse_yaml(text)
    except ValueError as error:
        raise SpecError(f"--set {name}: the value cannot be read as YAML: {error}") from error


def _message(problem: Any) -> str:
    names = [str(part) for part in problem["loc"]]
    where = ".".join(names)
    given, message = problem["input"], problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            known = _known(names[:-1])
            close = difflib.get_close_matches(names[-1], known, n=1)
            return f"{where} is not a setting; " + (
                f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            )
        case "missing":
            return f"{where} is missing: add '{where}: ...'"
        case _ if given is None:
            return f"{where} is empty: give it a value, or leave it out"
        case _ if names[0] == "storage_options" or "credential" in message:
            return f"{where}: {message}"
        case _:
            shown = json.dumps(given, default=str, ensure_ascii=False)
            shown = shown if len(shown) <= 100 else shown[:97] + "..."
            return f"{where} is {shown}: {message[0].lower()}{message[1:]}"


def _known(names: Sequence[str]) -> list[str]:
    """Names of the settings in the table at the path `names`, from the schema."""
    schema = whole = spec_schema()
    for name in names:
        schema = schema.get("properties", {}).get(name, {})
        schema = next((each for each in schema.get("anyOf", ()) if "$ref" in each), schema)  # a section or null
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return sorted(schema.get("properties", {}))
