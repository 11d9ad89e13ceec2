"""Reads a spec file in YAML, TOML or JSON as a plain table of settings.

A name that appears twice in one table is an error in each format: the parsers would silently drop one of the two.
"""

import json
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from perfusion_ops.errors import UsageError

SUFFIXES = (".yaml", ".yml", ".toml", ".json")


class SpecError(UsageError, ValueError):
    """The spec cannot be used. Each line of the message is one problem with its remedy."""


def read_spec_file(path: str) -> dict[str, Any]:
    """The settings of a local `.yaml`, `.yml`, `.toml` or `.json` file, not validated.

    Raises:
        SpecError: the file is missing or unreadable, is not UTF-8, does not parse, or is not a table.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise SpecError(f"{path} is not a spec: its name must end in {', '.join(SUFFIXES)}")
    try:
        text = file.read_text(encoding="utf-8-sig")  # editors on Windows write a byte-order mark
    except OSError as error:
        raise SpecError(f"the spec {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"the spec {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    try:
        values = parse(text, file.suffix)
    except ValueError as error:
        raise SpecError(f"the spec {path} is not valid {file.suffix[1:]}: {error}") from error
    if not isinstance(values, dict):
        found = "empty" if values is None else "a list" if isinstance(values, list) else "a single value"
        raise SpecError(f"the spec {path} is {found}: write a table of settings such as 'root: results'")
    return values


def parse(text: str, suffix: str) -> Any:
    """Parse text in the format of a suffix of SUFFIXES.

    Raises:
        ValueError: it does not parse; the message says where.
    """
    match suffix:
        case ".toml":
            return tomllib.loads(text)
        case ".json":
            return json.loads(text, object_pairs_hook=_distinct_pairs)
        case _:
            return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values.

    Raises:
        ValueError: it does not parse; the message says where, on one line.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _distinct_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice in one table: keep one")
    return values


class _Loader(yaml.SafeLoader):
    """Loads plain values only, and refuses a name that appears twice in one table."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The table of a node."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} appears twice in one table: keep one", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)
