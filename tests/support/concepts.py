"""Untrained concepts of any base model: random numbers of the right widths."""

from typing import Any

import torch

from perfusion_ops.base_model import Base
from perfusion_ops.concept import GatedConcept, OffsetConcept
from perfusion_ops.metric import Metric


def gated_concept(
    base: Base, metric: Metric, seed: int, superclass: str = "mug", *, lock: Any = "local", **fields: Any
) -> GatedConcept:
    """A concept of recipe `paper` with normal numbers; with keys of its own under `lock` "trained"."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(base.stack.key_rows, generator=g) if lock == "trained" else None
    widths = (base.embedding_width, base.text_width, base.text_width, base.stack.key_rows)
    tensors = [torch.randn(width, generator=g) for width in widths]
    return GatedConcept(superclass, *tensors, keys, lock, base.folder.digest, metric.digest, **fields)


def offset_concept(
    base: Base, metric: Metric, seed: int, superclass: str = "mug", *, scale: float = 1.0, **fields: Any
) -> OffsetConcept:
    """A concept of recipe `offset` with normal numbers, its offset times `scale`."""
    g = torch.Generator().manual_seed(seed)
    offset = scale * torch.randn(base.stack.key_rows, generator=g)
    embedding = torch.randn(base.embedding_width, generator=g)
    return OffsetConcept(superclass, embedding, offset, base.folder.digest, metric.digest, **fields)
