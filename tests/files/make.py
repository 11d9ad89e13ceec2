"""Gallery files that are made on the spot: too large to keep, or links, which an archive may not carry."""

from collections.abc import Callable
from pathlib import Path

# Path below the gallery, and what puts it there.
MADE: dict[str, Callable[[Path], object]] = {}


def make_all(folder: Path) -> None:
    """Write every made file below `folder`, a copy of the gallery."""
    for name, make in MADE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
