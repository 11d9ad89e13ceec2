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
    """One photo, or another file, as planned: its address and the sha256 (hex) that its bytes must have.

    `uri` may be a pre-signed address, which is a secret: it is not in the repr.
    """

    uri: str = field(repr=False)
    sha256: str


@dataclass(frozen=True)
class ConceptTask:
    """Train one concept and store it under its key; `start` is the file of the word embedding that it starts from."""

    key: str
    concept_id: str
    superclass: str
    images: tuple[InputImage, ...]
    masks: tuple[InputImage, ...]
    training: TrainingConfig
    start: InputImage | None = None


@dataclass(frozen=True)
class InputScene:
    """A photo of which a part stays in the render.

    Attributes:
        photo: the scene, or a photo of the product.
        mask: white where is drawn; with `keep`, white where the product is, which stays. None with a box.
        box: left, top, right, bottom of what is drawn, as shares (0..1) of the photo.
        keep: whether the product of the photo stays, and not what is around it.
    """

    photo: InputImage
    mask: InputImage | None = None
    box: tuple[float, float, float, float] | None = None
    keep: bool = False


@dataclass(frozen=True)
class InputControl:
    """What a ControlNet adds to a render.

    Attributes:
        name: of the ControlNet in the spec.
        picture: what it follows, such as edges or a depth map.
        strength: factor of what it adds, above 0 to 2.
    """

    name: str
    picture: InputImage
    strength: float = 1.0


@dataclass(frozen=True)
class RenderShape:
    """What all renders of one batch have in common.

    `scene_strength` is None if they have no scene, `control` and `control_strength` if they have no ControlNet, and
    `frames` and `fps` if they are pictures.
    """

    width: int | None
    height: int | None
    steps: int
    guidance: float
    scheduler: Scheduler
    scene_strength: float | None = None
    guidance_rescale: float = 0.0
    control: str | None = None
    control_strength: float | None = None
    frames: int | None = None
    fps: int | None = None


@dataclass(frozen=True)
class RenderTask:
    """Make one render and store it under its key.

    `prompt` has `{0}`, `{1}`, ... in the place of concept number 0, 1, ... of `concepts` (concept keys); the same
    numbers may appear in `negative_prompt`. `concept_ids` are the manifests' ids of the same concepts, for messages.
    `strength` is the factor of the offsets of recipe `offset`. With a `scene`, only a part of its photo is drawn.
    With a `control`, a ControlNet takes part in the drawing.
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
    strength: float = 1.0
    scene: InputScene | None = None
    control: InputControl | None = None

    def written(self, text: str) -> str:
        """A prompt of the task with `{id}` in the place of each concept's number."""
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
    """Renders of one shape made together, each with its own concepts."""

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
class Machine:
    """What a worker runs on.

    Attributes:
        kind: name and memory of the device; what fits in memory on one fits on all of its kind.
        memory_bytes: of the device in total.
        peak_bytes: the most that this process has had of it, with what its libraries reserve.
    """

    kind: str
    memory_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Outcome:
    """How one task ended.

    The error fields are set if `status` is not ok; `origin`, `uri`, `sha256` and `bytes` are set if it is.

    Attributes:
        kind: concept or render.
        key: its content key, 64 hex digits.
        status: ok, invalid or failed.
        error_code: why it is not ok.
        error_message: what is wrong and what to do.
        attempts: how often the task was tried.
        origin: whether the object was made or reused.
        uri: of the object.
        sha256: hex digest of the object's bytes.
        bytes: size of the object.
        accelerator_s: the task's share of the accelerator time of its unit, in seconds.
        batch: tasks in its unit.
        worker: name of the worker.
        finished_at: seconds since 1970.
        loss: of a trained concept.
        error_column: column of the manifest that is at fault, if one is.
    """

    kind: Kind
    key: str
    status: Status
    error_code: Code | None = None
    error_message: str | None = None
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
    error_column: str | None = None
