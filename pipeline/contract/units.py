"""What the driver and a worker send each other: tasks, units of tasks, and the outcome of each task.

All of it is small: photos, renders and weights go between worker and storage, never through the driver. An outcome is
about 1 KB at most, because its message is cut to `MESSAGE_BYTES`.
"""

from dataclasses import dataclass, field
from typing import Literal

from perfusion_ops.config import Lock, Scheduler, TrainingConfig
from pipeline.contract.errors import Code, Origin, Status

Kind = Literal["concept", "render"]
MESSAGE_BYTES = 500  # of an outcome's message in UTF-8


@dataclass(frozen=True)
class InputImage:
    """One input picture as planned: where it lies and what its bytes must digest to (hex sha256).

    `uri` may be a pre-signed address, a secret: it is in no representation.
    """

    uri: str = field(repr=False)
    sha256: str


@dataclass(frozen=True)
class ConceptTask:
    """Train one concept and store it under its key."""

    key: str
    concept_id: str
    superclass: str
    images: tuple[InputImage, ...]
    masks: tuple[InputImage, ...]
    training: TrainingConfig


@dataclass(frozen=True)
class RenderShape:
    """What all rows of one render batch must share."""

    width: int | None
    height: int | None
    steps: int
    guidance: float
    scheduler: Scheduler


@dataclass(frozen=True)
class RenderTask:
    """Render one picture and store it under its key.

    `prompt` holds `{0}`, `{1}`, ... where concept number 0, 1, ... of `concepts` (concept keys) stands; the same
    numbers may appear in `negative_prompt`. `concept_ids` are what the manifests call the same concepts, for messages.
    """

    key: str
    prompt: str
    negative_prompt: str
    concepts: tuple[str, ...]
    seed: int
    bias: float
    temperature: float
    lock: Lock
    shape: RenderShape
    concept_ids: tuple[str, ...] = ()

    def written(self, text: str) -> str:
        """A prompt of the task as people write it: `{id}` where the text holds a concept's number."""
        for number, name in enumerate(self.concept_ids):
            text = text.replace(f"{{{number}}}", f"{{\0{name}}}")
        return text.replace("\0", "")


@dataclass(frozen=True)
class TrainUnit:
    """Concepts trained together in one batch."""

    unit_id: str
    tasks: tuple[ConceptTask, ...]


@dataclass(frozen=True)
class RenderUnit:
    """Pictures of one shape rendered together, each with its own concepts."""

    unit_id: str
    tasks: tuple[RenderTask, ...]


Unit = TrainUnit | RenderUnit


@dataclass(frozen=True)
class Activity:
    """What a worker is doing at this moment; for display only.

    Attributes:
        doing: `metric` while the metric is estimated, `training` while concepts are trained.
        done: captions encoded, or optimiser steps taken by the concept that has taken the fewest.
        total: captions, or steps, in all.
        concepts: concepts trained together; 0 for the metric.
    """

    doing: Literal["metric", "training"]
    done: int
    total: int
    concepts: int = 0


@dataclass(frozen=True)
class Outcome:
    """How one task ended; `key` is its concept or render key. Object fields are set exactly when `status` is ok."""

    kind: Kind
    key: str
    status: Status
    code: Code | None = None
    message: str | None = None
    attempts: int = 1
    origin: Origin | None = None
    uri: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    accelerator_s: float = 0.0
    batch: int = 1
    worker: str | None = None
    finished_at: float = 0.0
    loss: float | None = None
    column_name: str | None = None
