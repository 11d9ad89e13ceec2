"""Local files that the functions of this package read."""

from pathlib import Path


def content(source: bytes | str | Path) -> bytes:
    """The contents of a local file; bytes are returned as they are."""
    return source if isinstance(source, bytes) else Path(source).expanduser().read_bytes()
