"""Concepts for programs and notebooks: trained, saved and loaded."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from perfusion_ops.api.files import content
from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept
from perfusion_ops.concept_file import read_concept, write_concept
from perfusion_ops.config import TrainingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.training.examples import make_example
from perfusion_ops.training.start_file import StartFileError, read_start
from perfusion_ops.training.trainer import Trainer, TrainingDivergedError

Photo = Image.Image | str | Path


def train_concept(
    base: Base,
    metric: Metric,
    superclass: str,
    photos: Sequence[Photo],
    *,
    masks: Sequence[Photo] | None = None,
    start: bytes | str | Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> Concept:
    """Train the concept of one product.

    Args:
        base: the base model.
        metric: its metric.
        superclass: what the product is, in one or more words, such as "teddy bear".
        photos: PIL images or local files, of any size. EXIF orientation is applied; colour profiles and transparency
            are not, although a run applies them.
        masks: one greyscale picture per photo and of its size, white where the product is.
        start: a word embedding of textual inversion, as a local file or its contents, in one of the forms of
            `perfusion_ops.training.start_file`; the concept's word starts there instead of at the superclass.
        on_step: called after each optimiser step with its number, from 1, and the mean of the latest losses.
        settings: fields of `perfusion_ops.config.TrainingConfig` that differ from the base model's defaults.

    Raises:
        TrainingDivergedError: the loss or its gradient is not finite.
        StartFileError: the file of `start` is no word embedding that fits the base model.
        ValueError: a setting is out of range, there is no photo, or a mask is empty at the size of the latents.

    >>> import perfusion_ops
    >>> from PIL import Image
    >>> from perfusion_ops.mini.world.products import product
    >>> from perfusion_ops.mini.world.scene import photograph, render
    >>> mug = product("mug", 10_000_007)
    >>> photos = [Image.fromarray(render(photograph(mug, number)).pixels) for number in range(4)]
    >>> base = perfusion_ops.load_base("mini")
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> concept = perfusion_ops.train_concept(base, metric, "mug", photos, steps=5)
    >>> concept.superclass, concept.embedding.shape, concept.value_offset.shape
    ('mug', torch.Size([128]), torch.Size([800]))
    """
    config = TrainingConfig.model_validate(base.folder.settings.training).overridden(settings)
    vector = None if start is None else _start(base, start)
    pairs = zip(photos, masks if masks is not None else [None] * len(photos), strict=True)
    opened = ((_opened(photo, "RGB"), None if mask is None else _opened(mask, "L")) for photo, mask in pairs)
    example = replace(make_example(base, superclass, opened, config), start=vector)
    trainer = Trainer(base, metric, [example])
    [state] = trainer.states

    def report(_: Trainer) -> None:
        if on_step is not None and state.problem is None:
            on_step(state.step, state.loss)

    trainer.run(report)
    if state.problem is not None:
        raise TrainingDivergedError(state.problem)
    return state.concept(trainer.examples[0], base, metric)


def save_concept(concept: Concept, path: str | Path) -> None:
    """Write a concept to a local safetensors file, of the format that a run keeps under `weights/`.

    Numbers are stored in float16: a concept that is read back differs from the trained one by rounding.

    Raises:
        ConceptFileError: a number does not fit float16.

    >>> import perfusion_ops
    >>> from PIL import Image
    >>> base = perfusion_ops.load_base("mini")
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> concept = perfusion_ops.train_concept(base, metric, "mug", [Image.new("RGB", (64, 64), "red")], steps=1)
    >>> perfusion_ops.save_concept(concept, "mug.safetensors")
    """
    Path(path).write_bytes(write_concept(concept))


def load_concept(base: Base, metric: Metric, source: bytes | str | Path) -> Concept:
    """Read a concept that `save_concept` or a run has written.

    Args:
        base: the base model that it was trained with.
        metric: the metric that it was trained with.
        source: a local file, or its contents.

    Raises:
        ConceptFileError: the file is damaged, or belongs to another base model or metric.

    >>> import perfusion_ops
    >>> from PIL import Image
    >>> base = perfusion_ops.load_base("mini")
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> concept = perfusion_ops.train_concept(base, metric, "mug", [Image.new("RGB", (64, 64), "red")], steps=1)
    >>> perfusion_ops.save_concept(concept, "mug.safetensors")
    >>> perfusion_ops.load_concept(base, metric, "mug.safetensors").superclass
    'mug'
    """
    return read_concept(
        content(source),
        base_digest=base.folder.digest,
        metric_digest=metric.digest,
        embedding_width=base.embedding_width,
        text_width=base.text_width,
        value_width=base.stack.key_rows,
        text_digest=base.folder.text_digest,
    )


def _start(base: Base, source: bytes | str | Path) -> Tensor:
    try:
        return read_start(content(source), base.texts.widths, base.folder.family.word_tensors)
    except StartFileError as error:
        raise StartFileError(f"start: the file {error}") from error


def _opened(photo: Photo, mode: str) -> Image.Image:
    if isinstance(photo, Image.Image):
        return ImageOps.exif_transpose(photo).convert(mode)
    with Image.open(photo) as picture:
        return ImageOps.exif_transpose(picture).convert(mode)
