"""The metric of a base model, kept under the root: from the package, or estimated once by the first worker."""

import io
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from perfusion_ops.api.metrics import built_in_captions
from perfusion_ops.base.captions import HELD_OUT, held_out_first
from perfusion_ops.base_model import Base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import FORMAT, Metric, MetricError, estimate, read_metric
from perfusion_ops.mini import metric_file
from perfusion_ops.tensors import tensor_file
from pipeline.bases.captions import open_captions
from pipeline.contract.layout import metric_path
from pipeline.storage.objects import Storage, StorageError

_LEAST = HELD_OUT  # captions to estimate from


def load_metric(
    storage: Storage,
    base: Base,
    config: MetricConfig,
    key: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Metric:
    """Read the metric under the root; without one, store the package's own or an estimate first.

    Of several workers that store one at the same time, all use the first one stored.

    Args:
        storage: the root; its options also open the captions file.
        base: the loaded base model.
        config: how to estimate.
        key: the metric's content key.
        progress: called with (captions encoded so far, captions in all) while the metric is estimated.

    Raises:
        MetricError: the captions do not suit the base model, or the stored file is damaged.
        StorageError: the root cannot be read or written.
    """
    path = metric_path(key)
    if not storage.exists(path):
        storage.create(path, _shipped(base, config) or _estimated(base, config, storage.options, progress))
    try:
        return read_metric(storage.read(path), base_digest=base.folder.metric_digest).to(base.device)
    except MetricError as error:
        raise MetricError(f"{storage.uri(path)}: {error}") from error


def _counted(captions: Iterator[str], total: int, progress: Callable[[int, int], None]) -> Iterator[str]:
    for done, caption in enumerate(captions):
        progress(done, total)
        yield caption


def _shipped(base: Base, config: MetricConfig) -> bytes | None:
    """The file that comes with the package, if it is of this base model and these settings."""
    data = metric_file().read_bytes()
    metadata, _ = tensor_file.read(data, FORMAT)
    theirs = MetricConfig.model_validate_json(metadata["settings"])
    return data if (metadata["base_digest"], theirs) == (base.folder.digest, config) else None


def _estimated(
    base: Base,
    config: MetricConfig,
    options: Mapping[str, object] | None,
    progress: Callable[[int, int], None] | None,
) -> bytes:
    held_out, captions = _captions(base, config, options)
    if progress is not None:
        captions = _counted(captions, config.captions, progress)
    metric = estimate(
        base.texts,
        captions,
        held_out=held_out,
        config=config,
        base_digest=base.folder.metric_digest,
    )
    return metric.to_bytes()


def _captions(
    base: Base, config: MetricConfig, options: Mapping[str, object] | None
) -> tuple[list[str], Iterator[str]]:
    """Held-out captions and the rest: the first thousand of a stream, and what comes after them."""
    if config.captions_uri is not None:
        source = _lines(config.captions_uri, options, config.captions + HELD_OUT)
    else:
        source = built_in_captions(base, config.captions + HELD_OUT)
    return held_out_first(source)


def _lines(uri: str, options: Mapping[str, object] | None, most: int) -> Iterator[str]:
    """At most `most` lines of a captions file, blank ones left out; too few are an error at the end."""
    count = 0
    try:
        with open_captions(uri, options) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
            for line in islice(filter(None, map(str.strip, text)), most):
                count += 1
                yield line
    except StorageError as error:
        raise MetricError(str(error)) from error
    if count < min(most, HELD_OUT + _LEAST):
        raise MetricError(
            f"the captions file {uri} has {count:,} captions: give at least {HELD_OUT + _LEAST:,}, one a line; "
            f"{HELD_OUT:,} of them only test the metric"
        )
