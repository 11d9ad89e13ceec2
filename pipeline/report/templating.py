"""The templates of HTML pages, and how pages show numbers, times and untrusted text."""

import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2

_OBJECT = re.compile(r"/(images/[0-9a-f]{2}/[0-9a-f]{64}\.[a-z0-9]+)$")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


@cache
def environment() -> jinja2.Environment:
    """The templates, compiled once: compiling takes longer than filling them."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "clip": _clip,
        "csp_hash": lambda text: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "grouped": lambda number: f"{number:,}",
        "literal": lambda text: "'" + str(text).replace("'", "''") + "'",
        "data_size": _data_size,
        "object_path": _object_path,
        "duration": _duration,
        "moment": lambda epoch: datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return templates


def _clip(value: Any, length: int) -> str:
    """At most `length` characters of untrusted text, without line breaks, control or direction characters."""
    text = _UNPRINTABLE.sub(" ", str(value))
    return text if len(text) <= length else text[: length - 1] + "…"


def _object_path(uri: str) -> str:
    """The path of a render under its root, which may have moved since; empty if the address is none of a render."""
    found = _OBJECT.search(uri)
    return found[1] if found else ""


def _data_size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _duration(seconds: float) -> str:
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
