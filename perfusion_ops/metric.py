"""The metric of the edit: C, the uncentred second moment of text encodings (arXiv 2305.01644, supplement C).

C belongs to one text encoder and one choice of tokens. The metric of another encoder would silently ruin every gate, so
an estimate is tested on held-out captions, where the mean of e^T C^-1 e must be close to D. Every concept stores the
metric's digest.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from perfusion_ops import tensor_file
from perfusion_ops.config import MetricConfig
from perfusion_ops.errors import PerfusionError
from perfusion_ops.tensor_file import TensorFileError

FORMAT = "perfusion-metric-1"

_BATCH = 256
_SORTED_WINDOW = 32 * _BATCH
# Shares of D. Outside of them, the held-out captions are not of the distribution that C was estimated on.
_VALID = (0.5, 1.5)


class MetricError(PerfusionError, ValueError):
    """The metric cannot be used with this base model or these captions."""


@dataclass(frozen=True)
class Metric:
    """A metric ready for use.

    Attributes:
        second_moment: C, (D, D) float64, without the ridge.
        inverse: (C + ridge * lambda_max * 1)^-1, (D, D) float64.
        ridge: share of the largest eigenvalue that was added.
        base_digest: the base model it belongs to.
        held_out: mean e^T C^-1 e over held-out captions, as a share of D; 1.0 is perfect.
        digest: hex sha256 over C and the ridge.
    """

    second_moment: Tensor
    inverse: Tensor
    ridge: float
    base_digest: str
    held_out: float
    digest: str

    def to_bytes(self) -> bytes:
        """The metric as a safetensors file."""
        metadata = {
            "format": FORMAT,
            "base_digest": self.base_digest,
            "ridge": repr(self.ridge),
            "held_out": repr(self.held_out),
        }
        return tensor_file.write({"second_moment": self.second_moment}, metadata)

    def to(self, device: torch.device) -> "Metric":
        """The same metric with its tensors on another device."""
        return Metric(
            self.second_moment.to(device),
            self.inverse.to(device),
            self.ridge,
            self.base_digest,
            self.held_out,
            self.digest,
        )


def metric_from_moment(second_moment: Tensor, *, ridge: float, base_digest: str, held_out: float = 1.0) -> Metric:
    """Invert a second moment (D, D) by Cholesky in float64.

    Raises:
        MetricError: it is not finite, or not positive definite even with the ridge.
    """
    moment = second_moment.double()
    moment = 0.5 * (moment + moment.mT)
    if not bool(torch.isfinite(moment).all()):
        raise MetricError("the second moment of the text encodings is not finite: check the text encoder's weights")
    largest = torch.linalg.eigvalsh(moment)[-1]
    regular = moment + ridge * largest * torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if bool(failed):
        raise MetricError(f"the metric is singular with ridge {ridge:g}: use more captions or a larger metric.ridge")
    digest = hashlib.sha256(moment.cpu().contiguous().numpy().tobytes() + repr(ridge).encode()).hexdigest()
    return Metric(moment, torch.cholesky_inverse(factor), ridge, base_digest, held_out, digest)


def read_metric(data: bytes, *, base_digest: str) -> Metric:
    """Read and check `Metric.to_bytes`; nothing in it is trusted.

    Raises:
        MetricError: damaged, or of another base model.
    """
    try:
        metadata, tensors = tensor_file.read(data, FORMAT)
        moment, ridge, held_out = tensors["second_moment"], float(metadata["ridge"]), float(metadata["held_out"])
    except TensorFileError as error:
        raise _damaged(str(error)) from error
    except (KeyError, ValueError) as error:
        raise _damaged(f"lacks a value or holds a wrong one: {error}") from error
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not moment.is_floating_point():
        raise _damaged(f"holds {moment.dtype} of shape {tuple(moment.shape)}, not a square matrix of real numbers")
    if not 0.0 <= ridge < math.inf or not math.isfinite(held_out):
        raise _damaged(f"has ridge {ridge} and held-out share {held_out}")
    if metadata.get("base_digest") != base_digest:
        raise MetricError("the stored metric belongs to another base model")
    return metric_from_moment(moment, ridge=ridge, base_digest=base_digest, held_out=held_out)


def _damaged(reason: str) -> MetricError:
    return MetricError(f"the stored metric is damaged (it {reason}): delete it, and the next run estimates it again")


@torch.no_grad()
def token_encodings(
    text_encoder: Any, tokenizer: Any, captions: Iterable[str], *, tokens: str, batch: int = _BATCH
) -> Iterator[Tensor]:
    """Encodings of the chosen tokens of many captions, a batch at a time: (n, D).

    The encoder is causal, so each batch is cut to its longest caption, unless the tokens include the padding.
    """
    device = text_encoder.get_input_embeddings().weight.device
    source = iter(captions)
    while window := list(islice(source, _SORTED_WINDOW)):
        window.sort(key=len)
        for start in range(0, len(window), batch):
            padded = tokenizer(
                window[start : start + batch],
                padding="max_length" if tokens == "all" else "longest",
                truncation=True,
                return_tensors="pt",
            )
            ids, mask = padded["input_ids"].to(device), padded["attention_mask"].to(device).bool()
            if tokens == "all":
                mask = torch.ones_like(mask)
            elif tokens == "content":
                ends = mask.sum(1) - 1
                mask = mask.clone()
                mask[:, 0] = False
                mask[torch.arange(len(mask), device=device), ends] = False
            yield text_encoder(ids).last_hidden_state[mask]


def second_moment(batches: Iterable[Tensor]) -> tuple[Tensor, int]:
    """Stream (n, D) batches into C = E[e e^T] in float64, and the number of encodings."""
    total: Tensor | None = None
    count = 0
    for batch in batches:
        exact = batch.double()
        contribution = exact.mT @ exact
        total = contribution if total is None else total.add_(contribution)
        count += len(exact)
    if total is None or count == 0:
        raise MetricError("the captions have no token to estimate the metric from: use other captions")
    return total / count, count


def held_out_share(metric: Metric, batches: Iterable[Tensor]) -> float:
    """Mean of e^T C^-1 e over unseen encodings, divided by D: near 1 when the metric fits the encoder."""
    total, count = 0.0, 0
    inverse = metric.inverse
    for batch in batches:
        exact = batch.double().to(inverse.device)
        total += float(((exact @ inverse) * exact).sum())
        count += len(exact)
    return total / max(count, 1) / len(inverse)


def estimate(
    text_encoder: Any,
    tokenizer: Any,
    captions: Iterable[str],
    *,
    held_out: Iterable[str],
    config: MetricConfig,
    base_digest: str,
) -> Metric:
    """Estimate the metric of a text encoder and test it.

    Args:
        text_encoder: CLIPTextModel.
        tokenizer: its tokenizer.
        captions: what C is estimated from; streamed, never in memory as a whole.
        held_out: other captions, which test the estimate.
        config: tokens and ridge.
        base_digest: the base model that the result is bound to.

    Raises:
        MetricError: there are too few tokens, or the estimate does not fit the held-out captions.
    """
    moment, count = second_moment(token_encodings(text_encoder, tokenizer, captions, tokens=config.tokens))
    width = len(moment)
    if count < width:
        raise MetricError(f"{count} tokens are too few for a metric of {width} x {width}: use more captions")
    metric = metric_from_moment(moment, ridge=config.ridge, base_digest=base_digest)
    share = held_out_share(metric, token_encodings(text_encoder, tokenizer, held_out, tokens=config.tokens))
    if not _VALID[0] <= share <= _VALID[1]:
        raise MetricError(
            f"mean e^T C^-1 e on held-out captions is {share:.2f} of D = {width}, not near 1: "
            "the captions are too few or too uniform for this text encoder"
        )
    return metric_from_moment(moment, ridge=config.ridge, base_digest=base_digest, held_out=share)
