"""The embedded world: a procedural renderer of small product pictures, its captions, and the base model of both.

Nothing heavy loads here, so that asking where the base model lies costs nothing.
"""

from pathlib import Path


def base_folder() -> Path:
    """The embedded base model, a diffusers folder: 64 px pictures, fp16 safetensors."""
    return Path(__file__).parent / "base"


def scorers_folder() -> Path:
    """The embedded scorers: the folders `dual`, `identity` and `reader`."""
    return Path(__file__).parent / "scorers"
