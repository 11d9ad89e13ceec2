"""Tables as YAML text: several documents in a file, comments before each, texts with line breaks as blocks."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

_WIDTH = 10_000  # a line break inside a command would be read as a space, but is hard to review


class _Dumper(yaml.SafeDumper):
    """Writes texts with line breaks as blocks, indents lists, and repeats equal tables instead of naming them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (the signature of the base class)
        """No table is written as a reference to an equal one."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (as above)
        """Lists are indented below their name."""
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def yaml_text(*documents: tuple[Iterable[str], Mapping[str, Any]]) -> str:
    """YAML of one or more documents.

    Args:
        documents: lines of a comment, and the table below it.
    """
    parts = []
    for comment, values in documents:
        lines = "".join(f"# {line}".rstrip() + "\n" for line in comment)
        parts.append(lines + yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH))
    return "---\n".join(parts)
