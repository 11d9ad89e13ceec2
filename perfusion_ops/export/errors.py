"""How far a linear edit is from the gated one, on prompts that it was not fitted on."""

from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.config import Frozen
from perfusion_ops.export.linear import Gating, LinearEdit, coordinates, encoded, targets_of
from perfusion_ops.export.prompts import Prompts
from perfusion_ops.metric import Metric


class EditErrors(Frozen):
    """Means over tokens of the norm of the difference in keys and values, as shares.

    Attributes:
        own: at the concepts' own tokens, as a share of the edit there.
        others: at the other tokens of their prompts, as a share of the keys and values without an edit.
        without: in prompts without the concepts, as a share of the keys and values.
        empty: in the empty prompt, likewise.
    """

    own: float
    others: float
    without: float
    empty: float


def measure(base: Base, metric: Metric, gating: Gating, edit: LinearEdit, prompts: Prompts) -> EditErrors:
    """The errors of a linear edit.

    Args:
        base: the base model.
        metric: its metric.
        gating: what the edit was fitted to.
        edit: as it is stored.
        prompts: held-out prompts.

    Raises:
        ValueError: two concepts have the same direction.
    """
    down, up = edit.down.to(base.device).double(), edit.up.to(base.device)
    # Differences lie in the columns of `up`: norms are those of small vectors under Gram matrices, never of R numbers.
    gram = (up.mT @ up).double()
    weight = base.stack.weight.float()
    plain_gram = (weight.mT @ weight).double()
    named, slots = encoded(base, prompts.named, gating)
    wanted = coordinates(named, targets_of(metric, gating), gating)
    missed = _norms(named.double() @ down.mT - wanted, gram)
    own = slots >= 0
    without, _ = encoded(base, prompts.plain)
    empty, _ = encoded(base, [base.texts.tokenize("")])

    def added(encodings: Tensor) -> float:
        exact = encodings.double()
        return float((_norms(exact @ down.mT, gram) / _norms(exact, plain_gram)).mean())

    return EditErrors(
        own=float((missed[own] / _norms(wanted, gram)[own]).mean()),
        others=float((missed[~own] / _norms(named.double(), plain_gram)[~own]).mean()),
        without=added(without),
        empty=added(empty),
    )


def _norms(vectors: Tensor, gram: Tensor) -> Tensor:
    """Norms (P, N) of B x for vectors x (P, N, K) and B^T B."""
    return ((vectors @ gram) * vectors).sum(-1).clamp(min=0).sqrt()
