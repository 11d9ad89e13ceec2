"""Measures the embedded models: the scorers on real renders, and the base model with the scorers.

All pictures are made here from fixed seeds, so that two measurements of the same folders agree except for rounding.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perfusion_ops.base_model import Base, quiet_libraries
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import Frozen, SamplingConfig
from perfusion_ops.metric import metric_from_moment
from perfusion_ops.mini.quality.figures import (
    Reading,
    equal_error_rate,
    frechet_distance,
    pair_likenesses,
    reading,
    recall_at_1,
)
from perfusion_ops.mini.quality.prompts import Request, Shown, scene_of, shown
from perfusion_ops.mini.world.grammar import caption
from perfusion_ops.mini.world.products import HELD_OUT, product
from perfusion_ops.mini.world.scene import Scene, photograph, sample_scene
from perfusion_ops.mini.world.scene import render as render_scene
from perfusion_ops.mini.world.vocabulary import CATEGORIES
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.scoring.protocols import DualEmbedder, ImageEmbedder, Reader, Scorers

Pictures = NDArray[np.uint8]

_HELD_OUT_INSTANCES = range(HELD_OUT, HELD_OUT + 1_000_000)
_VIEWS = 4  # photographs of each product
_RECALLED = 200  # captions among which one is found
_BATCH = 64
_ROWS = 8  # rendered at once
_STEPS = 20
_GUIDANCE = 7.0  # emblems that only words name need more of it than a trained concept does


class ScorerQuality(Frozen):
    """The scorers on real renders of products that nothing was trained on.

    Attributes:
        pictures: how many scenes were read.
        read: what the reader finds in them.
        identity_equal_error_rate: over all pairs of photographs of different views.
        identity_equal_error_rate_within_category: over the pairs of one category alone.
        dual_recall_at_1_of_200: pictures and their captions, the mean of both directions.
    """

    pictures: int
    read: Reading
    identity_equal_error_rate: float
    identity_equal_error_rate_within_category: float
    dual_recall_at_1_of_200: float


class BaseQuality(Frozen):
    """Figures of the base model's pictures, and of real renders of the same prompts.

    Attributes:
        prompts: how many.
        drawn: what the reader finds in the base's pictures.
        ceiling: what it finds in real renders.
        frechet_distance: between the reader's features of the base's pictures and of real renders.
        frechet_distance_of_real: between those of two sets of real renders of the same size: the lower bound.
    """

    prompts: int
    drawn: Reading
    ceiling: Reading
    frechet_distance: float
    frechet_distance_of_real: float


def measure_scorers(scorers: Scorers, count: int) -> ScorerQuality:
    """Measure all three scorers.

    Args:
        scorers: dual, image scorer and reader.
        count: scenes to read; a tenth as many products are photographed; at least 240.
    """
    assert scorers.text is not None
    assert scorers.image is not None
    assert scorers.reader is not None
    scenes = [sample_scene(number, _HELD_OUT_INSTANCES) for number in range(count)]
    pictures = drawn_for_real(scenes)
    asked = [shown(scene.describe()) for scene in scenes]
    everywhere, within = _identity_errors(scorers.image, count // 10)
    return ScorerQuality(
        pictures=count,
        read=read(scorers.reader, pictures, asked),
        identity_equal_error_rate=everywhere,
        identity_equal_error_rate_within_category=within,
        dual_recall_at_1_of_200=_recall(scorers.text, scenes, pictures),
    )


def measure_base(
    base: Base, reader: Reader, reader_folder: Path, requests: Sequence[Request]
) -> tuple[BaseQuality, Pictures]:
    """Measure the base model; also returns its picture for every request.

    Raises:
        RuntimeError: a picture has values that are not finite.
    """
    drawn = draw(base, requests)
    asked = [request.shown for request in requests]
    real, more = (
        drawn_for_real([scene_of(want, start + number) for number, want in enumerate(asked)])
        for start in (0, len(asked))
    )
    features = [trunk_features(reader_folder, pictures) for pictures in (drawn, real, more)]
    measured = BaseQuality(
        prompts=len(requests),
        drawn=read(reader, drawn, asked),
        ceiling=read(reader, real, asked),
        frechet_distance=frechet_distance(features[0], features[1]),
        frechet_distance_of_real=frechet_distance(features[2], features[1]),
    )
    return measured, drawn


def drawn_for_real(scenes: Sequence[Scene]) -> Pictures:
    """(N, 64, 64, 3) renders of scenes."""
    return np.stack([render_scene(scene).pixels for scene in scenes])


def draw(base: Base, requests: Sequence[Request]) -> Pictures:
    """The base's pictures of all requests, (N, H, W, 3), in 20 steps at guidance 7; request n has the seed n.

    Raises:
        RuntimeError: a picture has values that are not finite.
    """
    defaults = SamplingConfig.model_validate(base.folder.settings.sampling)
    sampler = Sampler(base.resolution, base.resolution, _STEPS, _GUIDANCE, defaults.scheduler)
    # The metric only affects concepts, and there are none.
    metric = metric_from_moment(torch.eye(base.text_width), ridge=0.0, base_digest=base.folder.digest)
    negative = PromptRow(defaults.negative_prompt)
    pictures: list[Pictures] = []
    for start in range(0, len(requests), _ROWS):
        rows = [
            RenderRow(PromptRow(request.prompt), negative, start + number)
            for number, request in enumerate(requests[start : start + _ROWS])
        ]
        for row, picture in zip(rows, render(base, metric, rows, sampler), strict=True):
            if picture is None:
                raise RuntimeError(
                    f"{base.folder.path} drew {row.positive.prompt!r} with numbers that are not finite: "
                    "its weights are damaged, or their type is too small"
                )
            pictures.append(picture)
        if len(pictures) % 200 < _ROWS:
            show(f"{len(pictures)} of {len(requests)} prompts drawn")
    return np.stack(pictures)


def read(reader: Reader, pictures: Pictures, asked: Sequence[Shown]) -> Reading:
    """How well N pictures show what was asked of each, according to the reader."""
    parts = [reader.read(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)]
    return reading({head: np.concatenate([part[head] for part in parts]) for head in reader.heads}, reader.heads, asked)


@torch.inference_mode()
def trunk_features(reader_folder: Path, pictures: Pictures) -> NDArray[np.float32]:
    """Features of N pictures before the reader's heads: (N, D)."""
    from transformers import ResNetModel

    with quiet_libraries():
        trunk: Any = ResNetModel.from_pretrained(reader_folder, dtype=torch.float32, local_files_only=True)
    trunk.eval()
    found = []
    for start in range(0, len(pictures), _BATCH):
        values = torch.from_numpy(pictures[start : start + _BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
        found.append(trunk(values).pooler_output.flatten(1).numpy())
    return np.concatenate(found)


def _embedded(embedder: ImageEmbedder, pictures: Pictures) -> NDArray[np.float32]:
    return np.concatenate(
        [embedder.embed_images(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)]
    )


def _identity_errors(embedder: ImageEmbedder, count: int) -> tuple[float, float]:
    """Equal error rates of `count` products: over all pairs of photographs, and over those of one category."""
    items = [product(CATEGORIES[number % len(CATEGORIES)], HELD_OUT + number) for number in range(count)]
    pictures = drawn_for_real([photograph(item, view) for item in items for view in range(_VIEWS)])
    vectors, numbers = _embedded(embedder, pictures), np.repeat(np.arange(count), _VIEWS)
    same, different = pair_likenesses(vectors, numbers)
    kinds = numbers % len(CATEGORIES)
    near = [pair_likenesses(vectors[kinds == kind], numbers[kinds == kind])[1] for kind in np.unique(kinds)]
    return equal_error_rate(same, different), equal_error_rate(same, np.concatenate(near))


def _recall(dual: DualEmbedder, scenes: Sequence[Scene], pictures: Pictures) -> float:
    """Recall at 1 of the first scenes whose captions differ from all before."""
    rng = Random(0)  # noqa: S311
    captions: dict[str, int] = {}
    for number, scene in enumerate(scenes):
        captions.setdefault(caption(scene.describe(), rng), number)
    chosen = dict(list(captions.items())[:_RECALLED])
    texts = list(chosen)
    told = np.concatenate([dual.embed_texts(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)])
    return recall_at_1(_embedded(dual, pictures[list(chosen.values())]), told)


def show(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
