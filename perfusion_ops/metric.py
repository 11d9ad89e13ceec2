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

import torch
from torch import Tensor

from perfusion_ops.config import MetricConfig
from perfusion_ops.errors import PerfusionError
from perfusion_ops.tensors import tensor_file
from perfusion_ops.tensors.tensor_file import TensorFileError
from perfusion_ops.text_models import TextModels

FORMAT = "perfusion-metric-1"
INVERTED_FORMAT = "perfusion-metric-2"  # lower triangles of C and of its inverse

# From this D on, a file holds the inverse as well: at D = 2,048 every worker would spend a minute on it. Files of
# smaller metrics stay readable for earlier versions.
_INVERTED_FROM = 1025
_RESIDUAL = 1e-4  # of float64 with a condition number of up to 1e10
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
        largest: lambda_max of C.
    """

    second_moment: Tensor
    inverse: Tensor
    ridge: float
    base_digest: str
    held_out: float
    digest: str
    largest: float = math.nan

    def to_bytes(self) -> bytes:
        """The metric as a safetensors file."""
        inverted = len(self.second_moment) >= _INVERTED_FROM
        metadata = {
            "format": INVERTED_FORMAT if inverted else FORMAT,
            "base_digest": self.base_digest,
            "ridge": repr(self.ridge),
            "held_out": repr(self.held_out),
        }
        if not inverted:
            return tensor_file.write({"second_moment": self.second_moment}, metadata)
        triangles = {"second_moment": _triangle(self.second_moment), "inverse": _triangle(self.inverse)}
        return tensor_file.write(triangles, {**metadata, "largest": repr(self.largest)})

    def to(self, device: torch.device) -> "Metric":
        """The same metric with its tensors on another device."""
        return Metric(
            self.second_moment.to(device),
            self.inverse.to(device),
            self.ridge,
            self.base_digest,
            self.held_out,
            self.digest,
            self.largest,
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
    inverse = torch.cholesky_inverse(factor)
    return Metric(moment, inverse, ridge, base_digest, held_out, _digest(moment, ridge), float(largest))


def _digest(moment: Tensor, ridge: float) -> str:
    return hashlib.sha256(moment.cpu().contiguous().numpy().tobytes() + repr(ridge).encode()).hexdigest()


def _triangle(matrix: Tensor) -> Tensor:
    """The lower triangle of a symmetric matrix (D, D), row by row: (D (D + 1) / 2,)."""
    rows, columns = torch.tril_indices(len(matrix), len(matrix))
    return matrix.cpu()[rows, columns]


def _symmetric(triangle: Tensor) -> Tensor:
    """The matrix of a `_triangle`."""
    width = (math.isqrt(8 * len(triangle) + 1) - 1) // 2 if triangle.ndim == 1 else 0
    if not width or width * (width + 1) // 2 != len(triangle) or not triangle.is_floating_point():
        raise _damaged(f"holds {triangle.dtype} of shape {tuple(triangle.shape)}, not a triangle of real numbers")
    rows, columns = torch.tril_indices(width, width)
    matrix = torch.empty(width, width, dtype=torch.float64)
    matrix[rows, columns] = matrix[columns, rows] = triangle.double()
    return matrix


def read_metric(data: bytes, *, base_digest: str) -> Metric:
    """Read and check `Metric.to_bytes`; nothing in it is trusted.

    Raises:
        MetricError: damaged, or of another base model.
    """
    try:
        metadata, tensors = tensor_file.read(data, FORMAT, INVERTED_FORMAT)
        moment, ridge, held_out = tensors["second_moment"], float(metadata["ridge"]), float(metadata["held_out"])
        inverted = metadata["format"] == INVERTED_FORMAT
        inverse, largest = (tensors["inverse"], float(metadata["largest"])) if inverted else (None, math.nan)
    except TensorFileError as error:
        raise _damaged(str(error)) from error
    except (KeyError, ValueError) as error:
        raise _damaged(f"lacks a value or holds a wrong one: {error}") from error
    if inverse is not None:
        moment, inverse = _symmetric(moment), _symmetric(inverse)
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not moment.is_floating_point():
        raise _damaged(f"holds {moment.dtype} of shape {tuple(moment.shape)}, not a square matrix of real numbers")
    if not 0.0 <= ridge < math.inf or not math.isfinite(held_out):
        raise _damaged(f"has ridge {ridge} and held-out share {held_out}")
    if metadata.get("base_digest") != base_digest:
        raise MetricError("the stored metric belongs to another base model")
    if inverse is not None:
        _check_inverse(moment, inverse, ridge * largest)
        return Metric(moment, inverse, ridge, base_digest, held_out, _digest(moment, ridge), largest)
    return metric_from_moment(moment, ridge=ridge, base_digest=base_digest, held_out=held_out)


def _check_inverse(moment: Tensor, inverse: Tensor, ridge: float) -> None:
    """Multiply some vectors by both matrices, which must give them back."""
    if inverse.shape != moment.shape:
        raise _damaged(f"holds an inverse of shape {tuple(inverse.shape)} for C of shape {tuple(moment.shape)}")
    probes = torch.randn(len(moment), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solved = inverse @ probes
    left = float((moment @ solved + ridge * solved - probes).norm() / probes.norm())
    if not left <= _RESIDUAL:
        raise _damaged(f"holds an inverse that misses C by {left:.1e} of a vector")


def _damaged(reason: str) -> MetricError:
    return MetricError(f"the stored metric is damaged (it {reason}): delete it, and the next run estimates it again")


@torch.no_grad()
def token_encodings(
    texts: TextModels, captions: Iterable[str], *, tokens: str, batch: int = _BATCH
) -> Iterator[Tensor]:
    """Encodings of the chosen tokens of many captions, a batch at a time: (n, D).

    Causal encoders read a batch cut to its longest caption, unless the tokens include the padding.
    """
    source = iter(captions)
    while window := list(islice(source, _SORTED_WINDOW)):
        window.sort(key=len)
        for start in range(0, len(window), batch):
            encodings, mask = texts.encode_captions(window[start : start + batch], padded=tokens == "all")
            if tokens == "all":
                mask = torch.ones_like(mask)
            elif tokens == "content":
                ends = mask.sum(1) - 1
                mask = mask.clone()
                mask[:, 0] &= texts.tokenizer.bos_token_id is None
                mask[torch.arange(len(mask), device=mask.device), ends] = False
            yield encodings[mask]


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
    texts: TextModels,
    captions: Iterable[str],
    *,
    held_out: Iterable[str],
    config: MetricConfig,
    base_digest: str,
) -> Metric:
    """Estimate the metric of a base model's text encoders and test it.

    Args:
        texts: the text encoders.
        captions: what C is estimated from; streamed, never in memory as a whole.
        held_out: other captions, which test the estimate.
        config: tokens and ridge.
        base_digest: the base model that the result is bound to.

    Raises:
        MetricError: there are too few tokens, or the estimate does not fit the held-out captions.
    """
    moment, count = second_moment(token_encodings(texts, captions, tokens=config.tokens))
    width = len(moment)
    if count < width:
        raise MetricError(f"{count} tokens are too few for a metric of {width} x {width}: use more captions")
    metric = metric_from_moment(moment, ridge=config.ridge, base_digest=base_digest)
    share = held_out_share(metric, token_encodings(texts, held_out, tokens=config.tokens))
    if not _VALID[0] <= share <= _VALID[1]:
        raise MetricError(
            f"mean e^T C^-1 e on held-out captions is {share:.2f} of D = {width}, not near 1: "
            "the captions are too few or too uniform for this text encoder"
        )
    return metric_from_moment(moment, ridge=config.ridge, base_digest=base_digest, held_out=share)
