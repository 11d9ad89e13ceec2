"""The captions file of a metric: opened on any storage, and digested without loading a model."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from perfusion_ops.config import MetricConfig
from pipeline.storage.objects import StorageError, absolute_uri, explain, open_location


def captions_digest(config: MetricConfig, options: Mapping[str, object] | None) -> str | None:
    """Hex sha256 of the captions file; None where the captions are built in.

    Args:
        config: names the file.
        options: fsspec options, for one filesystem or grouped by scheme.

    Raises:
        StorageError: the file cannot be read.
    """
    if config.captions_uri is None:
        return None
    with open_captions(config.captions_uri, options) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_captions(uri: str, options: Mapping[str, object] | None) -> Iterator[Any]:
    """The captions file as a binary file object; every error in the block is a StorageError."""
    name = f"the captions file {uri} (metric.captions_uri)"
    try:
        filesystem, path = open_location(absolute_uri(uri), options)
        with filesystem.open(path, "rb") as file:
            yield file
    except StorageError as error:
        raise StorageError(f"{name} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{name} cannot be read as UTF-8 text ({error}): save it as UTF-8") from error
    except FileNotFoundError as error:
        raise StorageError(f"{name} cannot be read: it does not exist; correct the address") from error
    except Exception as error:  # cloud packages raise types of their own
        raise StorageError(explain(error, "read", name)) from error
