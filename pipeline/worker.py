"""What a slot does: trains groups of concepts and renders batches, writes the objects, returns small outcomes.

Objects are written before their outcome is returned. An object that is there already, left by an attempt whose
outcome was lost, is checked and adopted instead of made again. A row's own trouble ends as that row's outcome; what
concerns the whole unit (out of memory, a bug) is raised for the scheduler to judge.
"""

import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from perfusion_ops.base import Base, load_base
from perfusion_ops.checkpoint import CheckpointError, read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.concept import Concept, ConceptFileError, read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, check_prompt
from perfusion_ops.metric import Metric
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import PromptTooLongError, pieces
from perfusion_ops.training import ConceptState, Example, Trainer, start
from pipeline.bases import find_base
from pipeline.errors import Code, Origin, RowError, Status
from pipeline.layout import checkpoint_path, image_path, weights_path
from pipeline.metrics import load_metric
from pipeline.provenance import answers, digest, encode_picture
from pipeline.storage import Storage, StorageError
from pipeline.training_data import load_example
from pipeline.units import ConceptTask, Kind, Outcome, RenderShape, RenderTask, RenderUnit, TrainUnit, Unit
from pipeline.worker_settings import WorkerSettings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_MESSAGE = 500
# A concept file is tens of kilobytes; a few thousand of them fit beside any model.
_CONCEPTS_KEPT = 4096


class PerfusionWorker:
    """One warm worker: base model and metric loaded once, concepts swapped as small tensors."""

    def __init__(self, settings: WorkerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._storage = Storage(settings.root, settings.storage_options)
        self._concepts: OrderedDict[str, tuple[Concept, str]] = OrderedDict()
        self._micro_batch = settings.micro_batch
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._base: Base
        self._metric: Metric

    def setup(self) -> None:
        """Load the base model, check that it is the planned one, and load or estimate its metric.

        Raises:
            BaseError, MetricError: with the sentence for the user.
            RuntimeError: this machine's copy of the base model is not the one that was planned with.
        """
        settings = self._settings
        folder = find_base(settings.base)
        if folder.digest != settings.base_digest:
            raise RuntimeError(
                f"the base model {settings.base!r} on {socket.gethostname()} digests to {folder.digest[:12]}..., "
                f"the run was planned with {settings.base_digest[:12]}...: give every machine the same files"
            )
        gpu = torch.cuda.is_available()
        device = settings.device if settings.device != "auto" else ("cuda" if gpu else "cpu")
        dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
        self._base = load_base(folder, device=device, dtype=_DTYPES[dtype])
        self._metric = load_metric(self._storage, self._base, settings.metric, settings.metric_key)

    def close(self) -> None:
        """Forget the models."""
        self._concepts.clear()

    def run(self, unit: Unit) -> list[Outcome]:
        """One outcome for each task of the unit, in its order.

        Raises:
            torch.OutOfMemoryError, MemoryError: the unit is too large for this slot.
        """
        begin = self._clock()
        if isinstance(unit, TrainUnit):
            found = self._train(unit.tasks)
            return [self._finish(found[task.key], begin, len(unit.tasks)) for task in unit.tasks]
        found = self._render(unit)
        return [self._finish(found[task.key], begin, len(unit.tasks)) for task in unit.tasks]

    def _finish(self, outcome: Outcome, begin: float, rows: int) -> Outcome:
        """Stamp an outcome; the unit's time is shared evenly by the rows it was spent on."""
        spent = (self._clock() - begin) / rows if outcome.origin != Origin.REUSED else 0.0
        return Outcome(
            **{
                **{name: getattr(outcome, name) for name in outcome.__dataclass_fields__},
                "accelerator_s": spent,
                "batch": rows,
                "worker": self._name,
                "finished_at": time.time(),
            }
        )

    # Training

    def _train(self, tasks: Sequence[ConceptTask]) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        examples: dict[str, Example] = {}
        for task in tasks:
            try:
                adopted = self._adopt_concept(task)
                if adopted is not None:
                    outcomes[task.key] = adopted
                else:
                    examples[task.key] = load_example(
                        self._base, task, self._settings.limits, self._settings.storage_options
                    )
            except (RowError, StorageError) as error:
                outcomes[task.key] = _failed("concept", task.key, error)
        if examples:
            trainer = self._run_training(list(examples), list(examples.values()))
            for key, example, state in zip(examples, trainer.examples, trainer.states, strict=True):
                outcomes[key] = self._store_concept(key, example, state)
        return outcomes

    def _run_training(self, keys: list[str], examples: list[Example]) -> Trainer:
        """Train from the checkpoints there are; out of memory halves the micro-batch, which changes no result."""
        while True:
            trainer = self._trainer(keys, examples)
            saved = self._clock()

            def checkpoint(trainer: Trainer) -> None:
                nonlocal saved
                if self._clock() - saved >= self._settings.checkpoint_s:
                    for key, state in zip(keys, trainer.states, strict=True):
                        if state.problem is None:
                            self._storage.write(checkpoint_path(key), write_checkpoint(state, trainer.optimizer))
                    saved = self._clock()

            try:
                trainer.run(checkpoint)
            except torch.OutOfMemoryError:
                if self._micro_batch == 1:
                    raise
                self._micro_batch = max(1, self._micro_batch // 2)
                del trainer
                torch.cuda.empty_cache()
                continue
            return trainer

    def _trainer(self, keys: list[str], examples: list[Example]) -> Trainer:
        states: list[ConceptState] = []
        moments = []
        for key, example in zip(keys, examples, strict=True):
            state, moment = start(self._base, example), {}
            path = checkpoint_path(key)
            if self._storage.exists(path):
                try:
                    state, moment = read_checkpoint(self._storage.read(path), state)
                except CheckpointError:
                    self._storage.delete(path)
            states.append(state)
            moments.append(moment)
        trainer = Trainer(self._base, self._metric, examples, states=states, micro_batch=self._micro_batch)
        for state, moment in zip(states, moments, strict=True):
            restore_moments(trainer.optimizer, state, moment)
        return trainer

    def _store_concept(self, key: str, example: Example, state: ConceptState) -> Outcome:
        try:
            if state.problem is not None:
                raise RowError(Code.TRAINING_DIVERGED, state.problem, status=Status.FAILED)
            data = write_concept(state.concept(example, self._base, self._metric))
            # Someone else's identical work may have come first; then that object is the one.
            if not self._storage.create(weights_path(key), data):
                data = self._storage.read(weights_path(key))
            self._storage.delete(checkpoint_path(key))
        except (RowError, StorageError, ConceptFileError) as error:
            return _failed("concept", key, error)
        return _ok("concept", key, self._storage.uri(weights_path(key)), data, Origin.TRAINED, loss=state.loss)

    def _adopt_concept(self, task: ConceptTask) -> Outcome | None:
        path = weights_path(task.key)
        if not self._storage.exists(path):
            return None
        data = self._storage.read(path)
        try:
            self._read_concept(data)
        except ConceptFileError:
            self._storage.delete(path)
            return None
        return _ok("concept", task.key, self._storage.uri(path), data, Origin.REUSED)

    def _read_concept(self, data: bytes) -> Concept:
        return read_concept(
            data,
            base_digest=self._base.folder.digest,
            metric_digest=self._metric.digest,
            embedding_width=self._base.embedding_width,
            text_width=self._base.text_width,
            value_width=self._base.stack.key_rows,
        )

    def _concept(self, key: str) -> tuple[Concept, str]:
        """A concept and its file's digest, from memory or storage."""
        if key not in self._concepts:
            try:
                data = self._storage.read(weights_path(key))
                self._concepts[key] = (self._read_concept(data), digest(data))
            except (ConceptFileError, StorageError) as error:
                message = f"the weights of concept {key[:12]}... cannot be used: {error}"
                raise RowError(Code.WEIGHTS_INVALID, message, status=Status.FAILED) from error
            while len(self._concepts) > _CONCEPTS_KEPT:
                self._concepts.popitem(last=False)
        self._concepts.move_to_end(key)
        return self._concepts[key]

    # Rendering

    def _render(self, unit: RenderUnit) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        ready: list[tuple[RenderTask, RenderRow]] = []
        for task in unit.tasks:
            try:
                adopted = self._adopt_picture(task)
                if adopted is not None:
                    outcomes[task.key] = adopted
                else:
                    ready.append((task, self._row(task)))
            except (RowError, StorageError) as error:
                outcomes[task.key] = _failed("render", task.key, error)
        if ready:
            outcomes.update(self._render_rows(ready))
        return outcomes

    def _render_rows(self, rows: list[tuple[RenderTask, RenderRow]]) -> dict[str, Outcome]:
        sampler = self._sampler(rows[0][0].shape)
        try:
            pictures = render(self._base, self._metric, [row for _, row in rows], sampler)
        except ValueError as error:
            if len(rows) > 1:
                return {task.key: self._render_rows([(task, row)])[task.key] for task, row in rows}
            task = rows[0][0]
            return {task.key: _failed("render", task.key, RowError(Code.BAD_PLACEHOLDER, str(error), column="prompt"))}
        outcomes = {}
        for (task, _), pixels in zip(rows, pictures, strict=True):
            if pixels is None:
                message = "the picture came out not finite: lower guidance, or train the concept again"
                failure = RowError(Code.RENDER_NOT_FINITE, message, status=Status.FAILED)
                outcomes[task.key] = _failed("render", task.key, failure)
                continue
            weights = [self._concept(key)[1] for key in task.concepts]
            data = encode_picture(pixels, render_key=task.key, weights=weights, base_digest=self._base.folder.digest)
            try:
                self._storage.write(image_path(task.key), data)
            except StorageError as error:
                outcomes[task.key] = _failed("render", task.key, error)
                continue
            outcomes[task.key] = _ok("render", task.key, self._storage.uri(image_path(task.key)), data, Origin.RENDERED)
        return outcomes

    def _row(self, task: RenderTask) -> RenderRow:
        concepts = tuple(self._concept(key)[0] for key in task.concepts)
        negative_slots = set(pieces(task.negative_prompt)[1])
        bias, temperature = (task.bias,) * len(concepts), (task.temperature,) * len(concepts)
        positive = PromptRow(task.prompt, concepts, bias, temperature, task.lock)
        negative = PromptRow(task.negative_prompt)
        if negative_slots or self._settings.edit_unconditional:
            negative = PromptRow(task.negative_prompt, concepts, bias, temperature, task.lock)
        for column, row in (("prompt", positive), ("negative_prompt", negative)):
            try:
                check_prompt(self._base, row)
            except PromptTooLongError as error:
                raise RowError(Code.PROMPT_TOO_LONG, str(error), column=column) from error
        return RenderRow(positive, negative, task.seed)

    def _sampler(self, shape: RenderShape) -> Sampler:
        side = self._base.resolution
        return Sampler(shape.width or side, shape.height or side, shape.steps, shape.guidance, shape.scheduler)

    def _adopt_picture(self, task: RenderTask) -> Outcome | None:
        path = image_path(task.key)
        if not self._storage.exists(path):
            return None
        data = self._storage.read(path)
        if not answers(data, task.key):
            return None
        return _ok("render", task.key, self._storage.uri(path), data, Origin.REUSED)


def _ok(kind: Kind, key: str, uri: str, data: bytes, origin: Origin, *, loss: float | None = None) -> Outcome:
    return Outcome(kind, key, Status.OK, origin=origin, uri=uri, sha256=digest(data), bytes=len(data), loss=loss)


def _failed(kind: Kind, key: str, error: Exception) -> Outcome:
    if isinstance(error, RowError):
        return Outcome(kind, key, error.status, error.code, str(error)[:_MAX_MESSAGE])
    code = Code.WEIGHTS_INVALID if isinstance(error, ConceptFileError) else Code.STORAGE
    return Outcome(kind, key, Status.FAILED, code, str(error)[:_MAX_MESSAGE])
