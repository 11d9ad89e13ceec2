"""The abilities of scorers, independent of their architecture; a scorer has one or several of them.

Pictures are uint8 RGB and may differ in size: the scorer's own preprocessing makes them equal. Embeddings are float32
and of unit length, so that their dot product is the cosine. Outputs never depend on which pictures share a batch beyond
rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# (B, H, W, 3) uint8, or B pictures of any sizes, each (H, W, 3) uint8 or a PIL image.
Pictures = NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | Sequence[Image.Image]
Embeddings = NDArray[np.float32]


class ImageEmbedder(Protocol):
    """Pictures to vectors whose cosine is the similarity of the pictures."""

    def embed_images(self, pictures: Pictures) -> Embeddings:
        """B pictures as (B, D), each row of unit length.

        Raises:
            ValueError: no picture, or one that is not (H, W, 3) uint8.
            ScorerError: a result is not finite.
        """
        ...


class TextEmbedder(Protocol):
    """Texts to vectors in the same space as pictures."""

    def check_text(self, text: str) -> None:
        """Return if the text fits into the encoder.

        Raises:
            PromptTooLongError: it does not fit; cutting it would drop words silently.
        """
        ...

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """B texts as (B, D), each row of unit length; raises as `check_text` and `embed_images` do."""
        ...


class DualEmbedder(ImageEmbedder, TextEmbedder, Protocol):
    """Pictures and texts in one space: the cosine of the two is how well they match."""


class Reader(Protocol):
    """Recognises what a picture shows, within its labels."""

    @property
    def heads(self) -> Mapping[str, tuple[str, ...]]:
        """Labels of each head: `context` -> (`beach`, `studio-red`, ...)."""
        ...

    def read(self, pictures: Pictures) -> Mapping[str, NDArray[np.float32]]:
        """Probabilities (B, L) of each head's L labels; those of `class` are independent, all others add up to one.

        Raises:
            ValueError: no picture, or one that is not (H, W, 3) uint8.
            ScorerError: a result is not finite.
        """
        ...


@dataclass(frozen=True)
class Scorers:
    """Loaded scorers, each for its purpose; None if its score is not wanted.

    Attributes:
        text: compares a picture with its prompt.
        image: compares a picture with training pictures.
        reader: recognises the context of a picture.
    """

    text: DualEmbedder | None = None
    image: ImageEmbedder | None = None
    reader: Reader | None = None
