"""The arithmetic of quality: error rates, shares and distances of plain arrays. Pure functions."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.config import Frozen
from perfusion_ops.mini.quality.prompts import Shown

Floats = NDArray[np.floating]


class Reading(Frozen):
    """Shares of pictures (0..1) in which a reader finds what was asked; None where nothing was asked.

    Attributes:
        class_share: of pictures of one product, the most likely category is right.
        both_share: of pictures of two, the two most likely categories are right.
        context_share: the place is right.
        color_share: of a product alone, its main colour.
        pattern_share: of a product alone.
        angle_share: of a product alone.
        relation_share: that one product stands alone, or how two stand.
    """

    class_share: float | None
    both_share: float | None
    context_share: float | None
    color_share: float | None
    pattern_share: float | None
    angle_share: float | None
    relation_share: float | None


def reading(found: Mapping[str, Floats], heads: Mapping[str, Sequence[str]], asked: Sequence[Shown]) -> Reading:
    """How often a reader finds what was asked.

    Args:
        found: probabilities (B, L) by head, as `scoring.protocols.Reader.read` gives them.
        heads: the L labels of each head.
        asked: what each of the B pictures is to show.
    """

    def share(head: str, wanted: Sequence[str | None]) -> float | None:
        labels, best = heads[head], found[head].argmax(1)
        return _mean([labels[place] == want for place, want in zip(best, wanted, strict=True) if want is not None])

    order = found["class"].argsort(1)[:, ::-1]
    both = [
        {heads["class"][place] for place in places[:2]} == set(want.categories)
        for places, want in zip(order, asked, strict=True)
        if len(want.categories) == 2
    ]
    return Reading(
        class_share=share("class", [want.categories[0] if len(want.categories) == 1 else None for want in asked]),
        both_share=_mean(both),
        context_share=share("context", [want.background for want in asked]),
        color_share=share("color", [want.color for want in asked]),
        pattern_share=share("pattern", [want.pattern for want in asked]),
        angle_share=share("angle", [want.angle for want in asked]),
        relation_share=share("relation", [want.relation or "none" for want in asked]),
    )


def _mean(right: Sequence[bool]) -> float | None:
    return float(np.mean(right)) if right else None


def equal_error_rate(same: Floats, different: Floats) -> float:
    """The least share of errors (0..1) that one threshold keeps among both kinds of pairs.

    Args:
        same: (N,) likeness of pairs that show the same.
        different: (M,) likeness of pairs that do not.
    """
    thresholds = np.unique(np.concatenate([same, different]))
    missed = np.searchsorted(np.sort(same), thresholds, side="left") / len(same)
    mistaken = 1 - np.searchsorted(np.sort(different), thresholds, side="left") / len(different)
    # Above all likenesses nothing is mistaken and all is missed: never better than the others.
    return float(np.maximum(missed, mistaken).min())


def pair_likenesses(embeddings: Floats, labels: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Cosines of all pairs of (N, D) unit vectors: those with the same label, and those with different ones."""
    rows, columns = np.triu_indices(len(embeddings), 1)
    likeness = (embeddings @ embeddings.T)[rows, columns]
    alike = labels[rows] == labels[columns]
    return likeness[alike], likeness[~alike]


def recall_at_1(pictures: Floats, captions: Floats) -> float:
    """How often (0..1) row n of one is nearest to row n of the other; the mean of both directions."""
    cosines, own = pictures @ captions.T, np.arange(len(pictures))
    return float(((cosines.argmax(0) == own).mean() + (cosines.argmax(1) == own).mean()) / 2)


def frechet_distance(first: Floats, second: Floats) -> float:
    """|mean difference|^2 + trace(A + B - 2 (AB)^1/2) of two sets of features (N, D) and (M, D), as in FID."""
    difference = first.mean(0) - second.mean(0)
    a, b = (np.cov(features.astype(np.float64), rowvar=False) for features in (first, second))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    crossed = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(max(difference @ difference + np.trace(a) + np.trace(b) - 2 * crossed, 0.0))
