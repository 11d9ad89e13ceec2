"""Reads the options of a deployment from a file and from NAME=VALUE."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.deploy.options import Deployment
from jobs.spec_file import SUFFIXES, SpecError, parse, parse_yaml


def read_options(file: str | None, given: Sequence[str], *, name: str) -> Deployment:
    """The options of a deployment.

    Args:
        file: a local `.yaml`, `.yml`, `.toml` or `.json` file.
        given: texts `a.b=c` that override the file; c is parsed as YAML.
        name: of the deployment if the options give none; made usable as a name in Kubernetes.

    Raises:
        SpecError: the file cannot be used, or options are unknown or wrong. Each line of the message is one problem.
    """
    values: dict[str, Any] = {"name": _slug(name), **(_read(file) if file else {})}
    for each in given:
        _override(values, each)
    try:
        return Deployment.model_validate(values)
    except ValidationError as error:
        raise SpecError("\n".join(f"option {_message(problem)}" for problem in error.errors())) from error


def _slug(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:35].rstrip("-")
    return plain if plain[:1].isalpha() else f"perfusion-{plain}"[:35].rstrip("-")


def _read(file: str) -> dict[str, Any]:
    path = Path(file)
    if path.suffix not in SUFFIXES:
        raise SpecError(f"the options {file} cannot be read: the name must end in {', '.join(SUFFIXES)}")
    try:
        values = parse(path.read_text(encoding="utf-8-sig"), path.suffix)
    except OSError as error:
        raise SpecError(f"the options {file} cannot be read: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise SpecError(f"the options {file} are not valid {path.suffix[1:]}: {error}; correct the file") from error
    if not isinstance(values, dict):
        raise SpecError(f"the options {file} are not a table: write options such as 'image: registry/perfusion:1.0'")
    return values


def _override(values: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    *folders, last = parts = name.split(".")
    if not equals or not all(parts):
        raise SpecError(f"--option {text!r} is not NAME=VALUE: write it as in --option spot.max=8")
    for folder in folders:
        inner = values.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise SpecError(f"--option {name}: {folder!r} is a single value in the file: give the option only once")
        values = inner
    try:
        values[last] = parse_yaml(value)
    except ValueError as error:
        raise SpecError(f"--option {name}: the value is not valid YAML: {error}; put it in quotes") from error


def _message(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return message
    match problem["type"]:
        case "extra_forbidden":
            known = _known(problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            return f"{where} does not exist; " + (f"did you mean {close[0]!r}?" if close else f"use {', '.join(known)}")
        case "missing":
            return f"{where} is missing: add '{where}: ...'"
        case "string_pattern_mismatch" if "secret" in where:
            return f"{where} is not a name: give names of secrets, never their values"  # the value may be a secret
        case "string_pattern_mismatch":
            return f"{where} is {_shown(problem['input'])}: it must match {problem['ctx']['pattern']}"
        case _:
            return f"{where} is {_shown(problem['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _known(path: Sequence[Any]) -> list[str]:
    """Names of the options in the table at `path`, from the schema."""
    schema = whole = Deployment.model_json_schema()
    for part in path:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
        for inner in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ())):
            if "$ref" in inner:
                schema = whole["$defs"][inner["$ref"].rpartition("/")[2]]
                break
    return sorted(schema.get("properties", {}))
