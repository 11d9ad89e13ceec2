"""Scores of some rendered pictures: each beside its prompt, its concepts' training pictures and the context it names.

Every row gets a result. What concerns one score leaves the others of the row alone: that score is null, and the row has
the code and the sentence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.mini.world.contexts import named_context
from perfusion_ops.scoring.protocols import Embeddings, Scorers, TextEmbedder
from perfusion_ops.text import PromptTooLongError
from pipeline.contract.errors import Code, RowError
from pipeline.contract.placeholders import PLACEHOLDER
from pipeline.scores.pictures import PictureSource, TrainingMeans

_PLACEHOLDER = re.compile(PLACEHOLDER)

_Scores = list[float | RowError | None]


@dataclass(frozen=True)
class Render:
    """An ok row of the renders table, as far as scoring needs it."""

    render_key: str
    prompt: str
    concept_ids: tuple[str, ...]
    concept_keys: tuple[str, ...]
    uri: str
    sha256: str

    @property
    def concepts(self) -> dict[str, str]:
        """Id by key of each distinct concept that the prompt names; those of the negative prompt are not in it."""
        keys = dict(zip(self.concept_ids, self.concept_keys, strict=True))
        found: dict[str, str] = {}
        for name in _PLACEHOLDER.findall(self.prompt):
            if name in keys:
                found.setdefault(keys[name], name)
        return found


@dataclass(frozen=True)
class Score:
    """What the scorers say of one picture; a score is None where it does not apply or `problems` says why."""

    render_key: str
    text_similarity: float | None = None
    image_similarity: float | None = None
    context_correct: bool | None = None
    problems: tuple[RowError, ...] = ()


class RowScorer:
    """Scores renders, some at a time."""

    def __init__(
        self,
        scorers: Scorers,
        *,
        superclasses: Mapping[str, str],
        source: PictureSource,
        training: TrainingMeans | None,
    ) -> None:
        """Bind what all rows share.

        Args:
            scorers: loaded.
            superclasses: words by concept id.
            source: where rendered pictures are read.
            training: embedded by `scorers.image`; None without such a scorer.
        """
        self._scorers, self._superclasses, self._source, self._training = scorers, superclasses, source, training

    def score(self, renders: Sequence[Render]) -> list[Score]:
        """One score for each render, in order.

        Raises:
            StorageError, ScorerError: the storage or a scorer is in trouble, whatever the picture.
        """
        read = self._source.read([row.uri for row in renders], [row.sha256 for row in renders])
        both = list(zip(renders, read, strict=True))
        shown = [(row, picture) for row, picture in both if isinstance(picture, Image.Image)]
        scored = iter(self._scored([row for row, _ in shown], [picture for _, picture in shown]) if shown else ())
        return [
            Score(row.render_key, problems=(picture,)) if isinstance(picture, RowError) else next(scored)
            for row, picture in both
        ]

    def _scored(self, renders: Sequence[Render], pictures: Sequence[Image.Image]) -> list[Score]:
        text, image, reader = self._scorers.text, self._scorers.image, self._scorers.reader
        by_text = text.embed_images(pictures) if text else None
        by_image = by_text if image is text else image.embed_images(pictures) if image else None
        nothing: list[None] = [None] * len(renders)
        texts = self._text_similarities(text, renders, by_text) if text and by_text is not None else nothing
        images = self._image_similarities(renders, by_image) if by_image is not None else nothing
        contexts = self._contexts(renders, pictures) if reader else nothing
        return [
            Score(
                row.render_key,
                None if isinstance(text, RowError) else text,
                None if isinstance(image, RowError) else image,
                context,
                tuple(each for each in (text, image) if isinstance(each, RowError)),
            )
            for row, text, image, context in zip(renders, texts, images, contexts, strict=True)
        ]

    def _text_similarities(self, scorer: TextEmbedder, renders: Sequence[Render], vectors: Embeddings) -> _Scores:
        said = [self._said(scorer, row) for row in renders]
        distinct = list(dict.fromkeys(text for text in said if isinstance(text, str)))
        embedded = dict(zip(distinct, scorer.embed_texts(distinct), strict=True)) if distinct else {}
        return [
            text if isinstance(text, RowError) else _product(vector, embedded[text])
            for text, vector in zip(said, vectors, strict=True)
        ]

    def _said(self, scorer: TextEmbedder, row: Render) -> str | RowError:
        try:
            text = spoken(row.prompt, self._superclasses)
            scorer.check_text(text)
        except RowError as error:
            return error
        except PromptTooLongError as error:
            return RowError(Code.PROMPT_TOO_LONG, str(error))
        return text

    def _image_similarities(self, renders: Sequence[Render], vectors: Embeddings) -> _Scores:
        assert self._training is not None, "who has an image scorer has training pictures"
        means = self._training.of({key: name for row in renders for key, name in row.concepts.items()})
        found: _Scores = []
        for row, vector in zip(renders, vectors, strict=True):
            products: list[float] = []
            problem = None
            for mean in (means[key] for key in row.concepts):
                if isinstance(mean, RowError):
                    problem = problem or mean
                else:
                    products.append(_product(vector, mean))
            found.append(problem or (sum(products) / len(products) if products else None))
        return found

    def _contexts(self, renders: Sequence[Render], pictures: Sequence[Image.Image]) -> list[bool | None]:
        reader = self._scorers.reader
        labels = reader.heads.get("context", ()) if reader else ()
        if not reader or not labels:
            return [None] * len(renders)
        shown = [labels[place] for place in reader.read(pictures)["context"].argmax(1)]
        asked = [named_context(row.prompt) for row in renders]
        return [label == context if context in labels else None for label, context in zip(shown, asked, strict=True)]


def spoken(prompt: str, superclasses: Mapping[str, str]) -> str:
    """The prompt with each `{concept id}` replaced by that concept's superclass words.

    Raises:
        RowError: UNKNOWN_CONCEPT, there is no such id.
    """

    def words(match: re.Match[str]) -> str:
        if match[1] not in superclasses:
            raise RowError(
                Code.UNKNOWN_CONCEPT,
                f"the run's concepts table has no {match[1]!r}, so {prompt!r} cannot be put in words: run it anew",
            )
        return " ".join(superclasses[match[1]].split())

    return _PLACEHOLDER.sub(words, prompt)


def _product(unit: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Of two vectors, in double precision: their cosine when both are of unit length."""
    return float(unit.astype(np.float64) @ other.astype(np.float64))
