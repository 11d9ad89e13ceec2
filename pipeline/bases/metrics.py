"""The metric of a base model, kept under the root: estimated once, by whoever needs it first."""

from collections.abc import Iterator
from itertools import islice

import fsspec

from perfusion_ops.api.metrics import HELD_OUT, built_in_captions
from perfusion_ops.base_model import Base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import Metric, MetricError, estimate, read_metric
from pipeline.contract.layout import metric_path
from pipeline.storage.objects import Storage

_LEAST = 1000  # fewer captions than are held out would test the metric better than they estimate it


def load_metric(storage: Storage, base: Base, config: MetricConfig, key: str) -> Metric:
    """Read the metric, or estimate and store it; when two do so at once, both use the first one stored.

    Raises:
        MetricError: captions and base model do not go together, or the stored file is damaged.
        StorageError: the root cannot be read or written.
    """
    path = metric_path(key)
    if not storage.exists(path):
        held_out, captions = _captions(base, config)
        metric = estimate(
            base.text_encoder,
            base.tokenizer,
            captions,
            held_out=held_out,
            config=config,
            base_digest=base.folder.digest,
        )
        storage.create(path, metric.to_bytes())
    try:
        return read_metric(storage.read(path), base_digest=base.folder.digest).to(base.device)
    except MetricError as error:
        raise MetricError(f"{storage.uri(path)}: {error}") from error


def _captions(base: Base, config: MetricConfig) -> tuple[list[str], Iterator[str]]:
    """Held-out captions and the rest: the first thousand of a stream, and what comes after them."""
    if config.captions_uri is not None:
        source = _lines(config.captions_uri, config.captions + HELD_OUT)
    else:
        source = built_in_captions(base, config.captions + HELD_OUT)
    return list(islice(source, HELD_OUT)), source


def _lines(uri: str, most: int) -> Iterator[str]:
    """Lines of a captions file that are not blank, `most` of them at most; too few are an error at the end."""
    count = 0
    try:
        with fsspec.open(uri, "rt", encoding="utf-8") as file:
            for line in islice(filter(None, map(str.strip, file)), most):
                count += 1
                yield line
    except (OSError, ImportError, ValueError) as error:
        raise MetricError(f"the captions file {uri} cannot be read as UTF-8 text: {error}") from error
    if count < min(most, HELD_OUT + _LEAST):
        raise MetricError(
            f"the captions file {uri} has {count:,} captions: give at least {HELD_OUT + _LEAST:,}, one a line, "
            f"of which {HELD_OUT:,} only test the metric"
        )
