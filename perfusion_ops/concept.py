"""Trained concepts: what a training learns of one product. There is a kind for each recipe of training."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perfusion_ops.attention.convolutions import ConvolutionEdit
from perfusion_ops.projection import KeyValueStack

Gate = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class GatedConcept:
    """One concept of recipe `paper`, float32.

    Attributes:
        superclass: one or more words, such as "teddy bear".
        embedding: v*, (E,).
        target_input: i*, (D,).
        superclass_input: i_super, (D,).
        value_target: o_V of all layers, (R / 2,).
        key_target: o_K of all layers, (R / 2,), only if keys were trained.
        lock: how the keys were trained.
        base_digest: digest of the base model.
        metric_digest: digest of the metric.
        loss: mean of the last training losses, if known.
        text_digest: digest of the text encoders, if `value_target` is the difference o_V - W_V i_super; "" otherwise.
        gate: the gate that it was trained with.
    """

    superclass: str
    embedding: Tensor
    target_input: Tensor
    superclass_input: Tensor
    value_target: Tensor
    key_target: Tensor | None
    lock: Literal["local", "trained"]
    base_digest: str
    metric_digest: str
    loss: float | None = None
    text_digest: str = ""
    gate: Gate = "sigmoid"

    @property
    def noun(self) -> str:
        """The words that follow the concept's token in a prompt: none."""
        return ""

    def outputs(self, stack: KeyValueStack, *, trained_keys: bool = False) -> Tensor:
        """o_K | o_V, (R,) float32: what the gated edit adds.

        Args:
            stack: the base model's projections.
            trained_keys: use the keys that the concept learned instead of the locked ones, W_K i_super (section 4.2).

        Raises:
            ValueError: `trained_keys` is set, but the concept has none.
        """
        device = stack.weight.device
        if not trained_keys:
            keys = stack.keys.float() @ self.superclass_input.to(device)
        elif self.key_target is None:
            raise ValueError("the concept learned no keys: train it with train.lock 'trained', or use another lock")
        else:
            keys = self.key_target.to(device)
        values = self.value_target.to(device)
        if self.text_digest:
            values = values + stack.values.float() @ self.superclass_input.to(device)
        return torch.cat([keys, values])

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        stored = {
            "embedding": self.embedding,
            "superclass_input": self.superclass_input,
            "target_input": self.target_input,
            "value_difference" if self.text_digest else "value_target": self.value_target,
        }
        return stored if self.key_target is None else {**stored, "key_target": self.key_target}


@dataclass(frozen=True)
class References:
    """K photos of a product at which its pictures look while they are drawn (`perfusion_ops.attention.references`).

    Attributes:
        latents: (K, C, h, w) float32, scaled.
        masks: (K, h, w) bool: where the product is.
    """

    latents: Tensor
    masks: Tensor


@dataclass(frozen=True)
class OffsetConcept:
    """One concept of recipe `offset`, float32.

    Attributes:
        superclass: one or more words; they follow the concept's token in every prompt.
        embedding: v*, (E,).
        value_offset: what is added to the output of each layer's attention where the product is, (R / 2,).
        base_digest: digest of the base model.
        metric_digest: digest of the metric of the run; the offset does not depend on it.
        loss: mean of the last training losses, if known.
        text_digest: digest of the text encoders, if the concept may act in siblings of its base model; "" otherwise.
        references: photos of the product; None if it keeps none.
        convolutions: an edit of convolutions; None if it has none.
    """

    superclass: str
    embedding: Tensor
    value_offset: Tensor
    base_digest: str
    metric_digest: str
    loss: float | None = None
    text_digest: str = ""
    references: References | None = None
    convolutions: ConvolutionEdit | None = None

    @property
    def noun(self) -> str:
        """The words that follow the concept's token in a prompt."""
        return self.superclass

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"embedding": self.embedding, "value_offset": self.value_offset}


@dataclass(frozen=True)
class Spelled:
    """No concept: the plain words of a superclass in a concept's place in a prompt."""

    superclass: str

    @property
    def noun(self) -> str:
        """The words, which are all there is."""
        return self.superclass


Concept = GatedConcept | OffsetConcept
