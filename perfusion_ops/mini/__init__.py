"""The embedded world: a procedural renderer of small product pictures, its captions, and the base model of both.

Nothing heavy is imported here: naming the folders takes no time.
"""

from pathlib import Path


def base_folder() -> Path:
    """The embedded base model, a diffusers folder: 64 px pictures, fp16 safetensors."""
    return Path(__file__).parent / "base"


def metric_file() -> Path:
    """The embedded base model's metric at all defaults, with its settings in the file's metadata."""
    return Path(__file__).parent / "metric.safetensors"


def scorers_folder() -> Path:
    """The embedded scorers: the folders `dual`, `identity` and `reader`."""
    return Path(__file__).parent / "scorers"
