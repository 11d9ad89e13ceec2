"""Scores renders: against their prompts, the photos of their concepts, and the context that the prompt names.

Each render gets a result; that of a video is the mean over frames of it. If one score fails, the others are kept: the
failed score is null, and the row has the error code and the message.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.mini.world.contexts import named_context
from perfusion_ops.scoring.protocols import Scorers, TextEmbedder
from perfusion_ops.text import PromptTooLongError
from pipeline.contract.errors import Code, RowError
from pipeline.contract.placeholders import PLACEHOLDER
from pipeline.scores.pictures import PictureSource, TrainingMeans

_PLACEHOLDER = re.compile(PLACEHOLDER)

_Scores = list[float | RowError | None]
_Means = NDArray[np.float64]
_FRAMES_AT_ONCE = 64


@dataclass(frozen=True)
class RenderRef:
    """What scoring needs of an ok row of the renders table."""

    render_key: str
    prompt: str
    concept_ids: tuple[str, ...]
    concept_keys: tuple[str, ...]
    uri: str
    sha256: str

    @property
    def concepts(self) -> dict[str, str]:
        """Concept id by concept key, of the distinct concepts in the prompt; the negative prompt does not count."""
        keys = dict(zip(self.concept_ids, self.concept_keys, strict=True))
        found: dict[str, str] = {}
        for name in _PLACEHOLDER.findall(self.prompt):
            if name in keys:
                found.setdefault(keys[name], name)
        return found


@dataclass(frozen=True)
class Score:
    """Scores of one render. A score is None if it does not apply, or if it failed: then `problems` says why."""

    render_key: str
    text_similarity: float | None = None
    image_similarity: float | None = None
    context_correct: bool | None = None
    problems: tuple[RowError, ...] = ()


class RowScorer:
    """Scores renders in batches."""

    def __init__(
        self,
        scorers: Scorers,
        *,
        superclasses: Mapping[str, str],
        source: PictureSource,
        training: TrainingMeans | None,
    ) -> None:
        """Bind what all renders share.

        Args:
            scorers: loaded scorers.
            superclasses: superclass by concept id.
            source: reads renders.
            training: means of photos by `scorers.image`; None without such a scorer.
        """
        self._scorers, self._superclasses, self._source, self._training = scorers, superclasses, source, training

    def score(self, renders: Sequence[RenderRef]) -> list[Score]:
        """One score for each render, in order.

        Raises:
            StorageError, ScorerError: storage or a scorer fails for a reason that is not the render.
        """
        read = self._source.read([row.uri for row in renders], [row.sha256 for row in renders])
        both = list(zip(renders, read, strict=True))
        shown = [(row, frames) for row, frames in both if not isinstance(frames, RowError)]
        scored = iter(self._scored([row for row, _ in shown], [frames for _, frames in shown]) if shown else ())
        return [
            Score(row.render_key, problems=(picture,)) if isinstance(picture, RowError) else next(scored)
            for row, picture in both
        ]

    def _scored(self, renders: Sequence[RenderRef], pictures: Sequence[Sequence[Image.Image]]) -> list[Score]:
        scorers = self._scorers
        by_text = _means(scorers.text.embed_images, pictures) if scorers.text else None
        if scorers.image is scorers.text:
            by_image = by_text
        else:
            by_image = _means(scorers.image.embed_images, pictures) if scorers.image else None
        nothing: list[None] = [None] * len(renders)
        text_scores: _Scores = list(nothing)
        if scorers.text and by_text is not None:
            text_scores = self._text_similarities(scorers.text, renders, by_text)
        image_scores = self._image_similarities(renders, by_image) if by_image is not None else nothing
        contexts = self._contexts(renders, pictures) if scorers.reader else nothing
        return [
            Score(
                render_key=render.render_key,
                text_similarity=None if isinstance(text_score, RowError) else text_score,
                image_similarity=None if isinstance(image_score, RowError) else image_score,
                context_correct=context,
                problems=tuple(each for each in (text_score, image_score) if isinstance(each, RowError)),
            )
            for render, text_score, image_score, context in zip(
                renders, text_scores, image_scores, contexts, strict=True
            )
        ]

    def _text_similarities(self, scorer: TextEmbedder, renders: Sequence[RenderRef], vectors: _Means) -> _Scores:
        texts = [self._scored_text(scorer, row) for row in renders]
        distinct = list(dict.fromkeys(text for text in texts if isinstance(text, str)))
        embedded = dict(zip(distinct, scorer.embed_texts(distinct), strict=True)) if distinct else {}
        return [
            text if isinstance(text, RowError) else _product(vector, embedded[text])
            for text, vector in zip(texts, vectors, strict=True)
        ]

    def _scored_text(self, scorer: TextEmbedder, row: RenderRef) -> str | RowError:
        try:
            text = spoken(row.prompt, self._superclasses)
            scorer.check_text(text)
        except RowError as error:
            return error
        except PromptTooLongError as error:
            return RowError(Code.PROMPT_TOO_LONG, str(error))
        return text

    def _image_similarities(self, renders: Sequence[RenderRef], vectors: _Means) -> _Scores:
        assert self._training is not None, "an image scorer comes with the photos' means"
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

    def _contexts(self, renders: Sequence[RenderRef], pictures: Sequence[Sequence[Image.Image]]) -> list[bool | None]:
        reader = self._scorers.reader
        labels = reader.heads.get("context", ()) if reader else ()
        if not reader or not labels:
            return [None] * len(renders)
        seen = _means(lambda frames: reader.read(frames)["context"], pictures)
        shown = [labels[place] for place in seen.argmax(1)]
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
                f"the run's concepts table has no {match[1]!r}, so {prompt!r} has no text: run the spec again",
            )
        return " ".join(superclasses[match[1]].split())

    return _PLACEHOLDER.sub(words, prompt)


def _means(
    read: Callable[[Sequence[Image.Image]], NDArray[np.float32]], pictures: Sequence[Sequence[Image.Image]]
) -> _Means:
    """The mean over the frames of each picture (B, D) of what a scorer reads in a frame.

    The inner product with the mean of unit vectors is the mean of their cosines.
    """
    frames = [frame for each in pictures for frame in each]
    if len(frames) == len(pictures):
        return read(frames).astype(np.float64)
    found = np.concatenate([read(frames[at : at + _FRAMES_AT_ONCE]) for at in range(0, len(frames), _FRAMES_AT_ONCE)])
    ends = np.cumsum([len(each) for each in pictures])
    return np.stack([part.astype(np.float64).mean(0) for part in np.split(found, ends[:-1])])


def _product(unit: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Inner product in double precision; of two unit vectors, their cosine."""
    return float(unit.astype(np.float64) @ other.astype(np.float64))
