"""The metric of a base model for programs and notebooks: estimated, saved and loaded."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from perfusion_ops.api.files import content
from perfusion_ops.base.captions import HELD_OUT, SEED, general_captions, held_out_first, vocabulary_words
from perfusion_ops.base_model import Base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import Metric, estimate, read_metric
from perfusion_ops.mini.world import grammar


def built_in_captions(base: Base, count: int) -> Iterator[str]:
    """Captions that suit a base model; the first n of a longer stream are the stream of length n."""
    if base.folder.settings.captions == "mini":
        return grammar.captions(count, SEED)
    return general_captions(count, seed=SEED, vocabulary=vocabulary_words(base.tokenizer))


def estimate_metric(
    base: Base,
    captions: int | Iterable[str] = 100_000,
    *,
    tokens: Literal["masked", "content", "all"] = "masked",
    ridge: float = 1e-7,
) -> Metric:
    """Estimate the metric of a base model's text encoder.

    Args:
        base: the base model.
        captions: how many built-in captions to use, or captions of your own. The first 1,000 of your own only test the
            estimate. 100,000 captions take about a minute with "mini".
        tokens: see `perfusion_ops.config.MetricConfig`.
        ridge: as a share of the largest eigenvalue.

    Returns:
        The metric, the same that a run with these settings estimates.

    Raises:
        MetricError: there are too few captions, or the estimate does not describe the captions that test it.

    >>> import perfusion_ops
    >>> base = perfusion_ops.load_base("mini")
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> metric.second_moment.shape, 0.9 < metric.held_out < 1.1
    (torch.Size([128, 128]), True)
    """
    source = built_in_captions(base, captions + HELD_OUT) if isinstance(captions, int) else captions
    held_out, rest = held_out_first(source)
    return estimate(
        base.texts,
        held_out=held_out,
        captions=rest,
        config=MetricConfig(tokens=tokens, ridge=ridge),
        base_digest=base.folder.metric_digest,
    ).to(base.device)


def save_metric(metric: Metric, path: str | Path) -> None:
    """Write a metric to a local safetensors file, of the format that a run keeps under `metrics/`.

    >>> import perfusion_ops
    >>> base = perfusion_ops.load_base("mini")
    >>> perfusion_ops.save_metric(perfusion_ops.estimate_metric(base, 2000), "mini-metric.safetensors")
    """
    Path(path).write_bytes(metric.to_bytes())


def load_metric(base: Base, source: bytes | str | Path) -> Metric:
    """Read a metric that `save_metric` or a run has written.

    Args:
        base: the base model that it was estimated for.
        source: a local file, or its contents.

    Raises:
        MetricError: the file is damaged, or belongs to another base model.

    >>> import perfusion_ops
    >>> base = perfusion_ops.load_base("mini")
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> perfusion_ops.save_metric(metric, "mini-metric.safetensors")
    >>> perfusion_ops.load_metric(base, "mini-metric.safetensors").digest == metric.digest
    True
    """
    return read_metric(content(source), base_digest=base.folder.metric_digest).to(base.device)
