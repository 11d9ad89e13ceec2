"""What a slot does: trains groups of concepts and renders batches, writes the objects, returns small outcomes.

Objects are written before their outcome is returned. An object that an earlier attempt left, and whose outcome was
lost, is checked and adopted; if it fails its checks, it is made again. An error of one row becomes that row's outcome,
a storage error only after the retries of `pipeline.storage.patience`. An error of the whole unit (out of memory, a
bug) is raised, and the scheduler decides. Checkpoints only save time: without one, training starts from the
beginning, and an error in one never fails a row.
"""

import logging
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perfusion_ops.base.tokenizer import TokenCounter
from perfusion_ops.base_model import Base, load_base
from perfusion_ops.checkpoint import CheckpointError, read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.concept import Concept, ConceptFileError, read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, check_prompt
from perfusion_ops.edit import solve_targets
from perfusion_ops.metric import Metric
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import PromptTooLongError, pieces
from perfusion_ops.training import ConceptState, Example, Trainer, start
from pipeline.bases.find import find_base
from pipeline.bases.metrics import load_metric
from pipeline.bases.superclasses import superclass_check
from pipeline.contract.errors import Code, Origin, RowError, Status
from pipeline.contract.keys import digest
from pipeline.contract.layout import checkpoint_path, image_path, weights_path
from pipeline.contract.messages import reason
from pipeline.contract.units import ConceptTask, Kind, Outcome, RenderShape, RenderTask, TrainUnit, Unit
from pipeline.storage.objects import MissingObjectError, StorageError
from pipeline.storage.patience import Patience, PatientStorage
from pipeline.worker.provenance import answers, encode_picture
from pipeline.worker.settings import WorkerSettings
from pipeline.worker.training_data import load_example

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_MESSAGE = 500
# A concept file is tens of kilobytes; a few thousand of them fit beside any model.
_CONCEPTS_KEPT = 4096

_log = logging.getLogger(__name__)


class PerfusionWorker:
    """One warm worker: base model and metric loaded once, concepts swapped as small tensors."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Bind the settings; `clock` times the work and its checkpoints, `sleep` waits for storage."""
        self._settings = settings
        self._clock = clock
        self._patience = Patience(sleep)
        self._storage = PatientStorage(settings.root, settings.storage_options, self._patience)
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
        self._check_superclass = superclass_check(TokenCounter(self._base.tokenizer), folder.settings.templates)
        self._metric = load_metric(self._storage, self._base, settings.metric, settings.metric_key)

    def close(self) -> None:
        """Forget the models."""
        self._concepts.clear()

    def run(self, unit: Unit) -> list[Outcome]:
        """One outcome for each task of the unit, in its order.

        Raises:
            torch.OutOfMemoryError, MemoryError: the unit is too large for this slot.
        """
        self._patience.renew()
        begin = self._clock()
        adopted, found = self._train(unit.tasks) if isinstance(unit, TrainUnit) else self._render(unit.tasks)
        # The unit's time is shared evenly by the rows that it was spent on. What an adopted object took is not known.
        share_s = (self._clock() - begin) / max(len(found), 1)
        return [
            replace(
                adopted.get(task.key) or found[task.key],
                accelerator_s=0.0 if task.key in adopted else share_s,
                batch=len(unit.tasks),
                worker=self._name,
                finished_at=time.time(),
            )
            for task in unit.tasks
        ]

    # Training

    def _train(self, tasks: Sequence[ConceptTask]) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
        """Outcomes by key: of objects that are there though nobody recorded them, and of the rest."""
        adopted: dict[str, Outcome] = {}
        outcomes: dict[str, Outcome] = {}
        examples: dict[str, Example] = {}
        for task in tasks:
            try:
                there = self._adopt_concept(task)
                if there is not None:
                    adopted[task.key] = there
                else:
                    examples[task.key] = self._patience(partial(self._example, task))
            except (RowError, StorageError) as error:
                outcomes[task.key] = _failed("concept", task.key, error)
        if examples:
            trainer = self._run_training(list(examples), list(examples.values()))
            for key, example, state in zip(examples, trainer.examples, trainer.states, strict=True):
                outcomes[key] = self._store_concept(key, example, state)
        return adopted, outcomes

    def _example(self, task: ConceptTask) -> Example:
        self._check_superclass(task.superclass)
        return load_example(self._base, task, self._settings.limits, self._settings.storage_options)

    def _run_training(self, keys: list[str], examples: list[Example]) -> Trainer:
        """Train from the checkpoints there are; out of memory halves the micro-batch, which changes no result."""
        while True:
            trainer = self._trainer(keys, examples)
            saved = self._clock()

            def checkpoint(trainer: Trainer) -> None:
                nonlocal saved
                if self._clock() - saved >= self._settings.checkpoint_s:
                    self._write_checkpoints(keys, trainer)
                    saved = self._clock()

            try:
                trainer.run(checkpoint)
            except torch.OutOfMemoryError:
                if self._micro_batch == 1:
                    raise
                self._micro_batch //= 2
                _log.warning("training ran out of memory: from now on %d rows at once", self._micro_batch)
            else:
                return trainer
            # Only here are the error, and the tensors that its frames hold, gone.
            del trainer
            torch.cuda.empty_cache()

    def _trainer(self, keys: list[str], examples: list[Example]) -> Trainer:
        found = [
            self._read_checkpoint(key, start(self._base, example)) for key, example in zip(keys, examples, strict=True)
        ]
        states = [state for state, _ in found]
        trainer = Trainer(self._base, self._metric, examples, states=states, micro_batch=self._micro_batch)
        for state, moments in found:
            restore_moments(trainer.optimizer, state, moments)
        return trainer

    def _read_checkpoint(self, key: str, fresh: ConceptState) -> tuple[ConceptState, dict[str, dict[str, Tensor]]]:
        try:
            return read_checkpoint(self._storage.read(checkpoint_path(key)), fresh)
        except MissingObjectError:
            pass
        except (CheckpointError, StorageError) as error:
            _log.warning("concept %s is trained from the beginning: %s", key, error)
        return fresh, {}

    def _write_checkpoints(self, keys: list[str], trainer: Trainer) -> None:
        for key, state in zip(keys, trainer.states, strict=True):
            if state.problem is not None:
                continue
            try:
                self._storage.write(checkpoint_path(key), write_checkpoint(state, trainer.optimizer))
            except StorageError as error:
                _log.warning("concept %s goes on without a checkpoint: %s", key, error)

    def _drop_checkpoint(self, key: str) -> None:
        try:
            self._storage.delete(checkpoint_path(key))
        except StorageError as error:
            _log.warning("the checkpoint of concept %s stays behind: %s", key, error)

    def _store_concept(self, key: str, example: Example, state: ConceptState) -> Outcome:
        path = weights_path(key)
        try:
            data = self._concept_file(key, example, state)
            # Someone else's identical work may have come first; then that object is the one.
            if not self._storage.create(path, data):
                data = self._storage.read(path)
        except StorageError as error:
            return _failed("concept", key, error)
        except RowError as error:
            self._drop_checkpoint(key)
            return _failed("concept", key, error)
        self._drop_checkpoint(key)
        return _ok("concept", key, self._storage.uri(path), data, Origin.TRAINED, loss=state.loss)

    def _concept_file(self, key: str, example: Example, state: ConceptState) -> bytes:
        problem = state.problem
        if problem is None:
            try:
                return write_concept(state.concept(example, self._base, self._metric), key=key)
            except ConceptFileError as error:
                problem = f"{error}; lower train.lr_value, or look at the product's pictures"
        raise RowError(Code.TRAINING_DIVERGED, problem, status=Status.FAILED)

    def _adopt_concept(self, task: ConceptTask) -> Outcome | None:
        path = weights_path(task.key)
        try:
            data = self._storage.read(path)
            loss = self._read_concept(task.key, data).loss
        except MissingObjectError:
            return None
        except ConceptFileError as error:
            _log.warning("%s is made again: %s", self._storage.uri(path), error)
            self._storage.delete(path)
            return None
        return _ok("concept", task.key, self._storage.uri(path), data, Origin.TRAINED, loss=loss)

    def _read_concept(self, key: str, data: bytes) -> Concept:
        return read_concept(
            data,
            base_digest=self._base.folder.digest,
            metric_digest=self._metric.digest,
            embedding_width=self._base.embedding_width,
            text_width=self._base.text_width,
            value_width=self._base.stack.key_rows,
            key=key,
        )

    def _concept(self, key: str, name: str | None = None) -> tuple[Concept, str]:
        """A concept and its file's digest, from memory or storage; `name` is its id for messages."""
        if key not in self._concepts:
            try:
                data = self._storage.read(weights_path(key))
                self._concepts[key] = (self._read_concept(key, data), digest(data))
            except (ConceptFileError, MissingObjectError) as error:
                if isinstance(error, ConceptFileError):
                    self._storage.delete(weights_path(key))  # so that the next run trains it anew
                who = f"concept {name!r}" if name else f"the concept with key {key[:12]}..."
                message = f"the weights of {who} cannot be used: {reason(error)}; run again to train a new one"
                raise RowError(Code.WEIGHTS_INVALID, message, status=Status.FAILED) from error
            while len(self._concepts) > _CONCEPTS_KEPT:
                self._concepts.popitem(last=False)
        self._concepts.move_to_end(key)
        return self._concepts[key]

    # Rendering

    def _render(self, tasks: Sequence[RenderTask]) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
        """As `_train`."""
        adopted: dict[str, Outcome] = {}
        outcomes: dict[str, Outcome] = {}
        ready: list[tuple[RenderTask, RenderRow]] = []
        for task in tasks:
            try:
                there = self._adopt_picture(task)
                if there is not None:
                    adopted[task.key] = there
                else:
                    ready.append((task, self._row(task)))
            except (RowError, StorageError) as error:
                outcomes[task.key] = _failed("render", task.key, error)
        if ready:
            outcomes.update(self._render_rows(ready))
        return adopted, outcomes

    def _render_rows(self, rows: list[tuple[RenderTask, RenderRow]]) -> dict[str, Outcome]:
        sampler = self._sampler(rows[0][0].shape)
        try:
            pictures = render(self._base, self._metric, [row for _, row in rows], sampler)
        except ValueError as error:
            # Every row has been checked by itself, so it is what they share that diffusers refuses.
            message = (
                f"the base model cannot make {sampler.width} x {sampler.height} pixels in {sampler.steps} steps of "
                f"{sampler.scheduler} ({reason(error)}): change one of them"
            )
            failure = RowError(Code.OUT_OF_RANGE, message)
            return {task.key: _failed("render", task.key, failure) for task, _ in rows}
        return {task.key: self._store_picture(task, pixels) for (task, _), pixels in zip(rows, pictures, strict=True)}

    def _store_picture(self, task: RenderTask, pixels: NDArray[np.uint8] | None) -> Outcome:
        try:
            if pixels is None:
                message = (
                    f"the picture came out not finite in {task.shape.steps} steps of {task.shape.scheduler}: "
                    "lower guidance, take more steps or another scheduler, or train the concept again"
                )
                raise RowError(Code.RENDER_NOT_FINITE, message, status=Status.FAILED)
            weights = [self._concept(key)[1] for key in task.concepts]
            data = encode_picture(pixels, render_key=task.key, weights=weights, base_digest=self._base.folder.digest)
            self._storage.write(image_path(task.key), data)
        except (RowError, StorageError) as error:
            return _failed("render", task.key, error)
        return _ok("render", task.key, self._storage.uri(image_path(task.key)), data, Origin.RENDERED)

    def _row(self, task: RenderTask) -> RenderRow:
        names = task.concept_ids or (None,) * len(task.concepts)
        concepts = tuple(self._concept(key, name)[0] for key, name in zip(task.concepts, names, strict=True))
        self._check_distinct(task, concepts)
        untrained = [place for place, concept in enumerate(concepts) if concept.key_target is None]
        if task.lock == "trained" and untrained:
            who = f"concept {names[untrained[0]]!r}" if task.concept_ids else "a concept"
            message = (
                f"lock is 'trained', but {who} learned no keys: train it with train.lock 'trained', or use 'local'"
            )
            raise RowError(Code.OUT_OF_RANGE, message, column="lock")
        positive = _prompt_row(task, task.prompt, concepts)
        everywhere = positive.concepts if self._settings.edit_unconditional else ()
        negative = _prompt_row(task, task.negative_prompt, concepts, everywhere)
        for column, row, text in (
            ("prompt", positive, task.prompt),
            ("negative_prompt", negative, task.negative_prompt),
        ):
            try:
                check_prompt(self._base, row)
            except PromptTooLongError as error:
                message = f"{column}: {error} ({task.written(text)!r})"
                raise RowError(Code.PROMPT_TOO_LONG, message, column=column) from error
        return RenderRow(positive, negative, task.seed)

    def _check_distinct(self, task: RenderTask, concepts: Sequence[Concept]) -> None:
        """The edit of one row alone, so that a row that cannot be edited does not fail its batch."""
        inverse = self._metric.inverse
        inputs = torch.stack([concept.target_input for concept in concepts])[None].to(inverse.device)
        try:
            solve_targets(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool, device=inverse.device), inverse)
        except ValueError as error:
            who = f"concepts {' and '.join(map(repr, task.concept_ids))}: " if task.concept_ids else ""
            raise RowError(Code.CONCEPTS_ALIKE, f"{who}{error}", column="prompt", status=Status.FAILED) from error

    def _sampler(self, shape: RenderShape) -> Sampler:
        side = self._base.resolution
        return Sampler(shape.width or side, shape.height or side, shape.steps, shape.guidance, shape.scheduler)

    def _adopt_picture(self, task: RenderTask) -> Outcome | None:
        path = image_path(task.key)
        try:
            data = self._storage.read(path)
        except MissingObjectError:
            return None
        if not answers(data, task.key):
            return None
        return _ok("render", task.key, self._storage.uri(path), data, Origin.RENDERED)


def _prompt_row(
    task: RenderTask, text: str, concepts: Sequence[Concept], everywhere: Sequence[Concept] = ()
) -> PromptRow:
    """A text with the concepts that it names, and those that act `everywhere`; a concept acts in no other text."""
    texts, numbers = pieces(text)
    place = {number: index for index, number in enumerate(dict.fromkeys(numbers))}
    renumbered = "".join([texts[0], *(f"{{{place[n]}}}{after}" for n, after in zip(numbers, texts[1:], strict=True))])
    named = [concepts[number] for number in place]
    acting = (*named, *(concept for concept in everywhere if not any(concept is each for each in named)))
    count = len(acting)
    return PromptRow(renumbered, acting, (task.bias,) * count, (task.temperature,) * count, task.lock)


def _ok(kind: Kind, key: str, uri: str, data: bytes, origin: Origin, *, loss: float | None = None) -> Outcome:
    return Outcome(kind, key, Status.OK, origin=origin, uri=uri, sha256=digest(data), bytes=len(data), loss=loss)


def _failed(kind: Kind, key: str, error: RowError | StorageError) -> Outcome:
    message = str(error)[:_MAX_MESSAGE]
    if isinstance(error, RowError):
        return Outcome(kind, key, error.status, error.code, message, error_column=error.column)
    return Outcome(kind, key, Status.FAILED, Code.STORAGE, message)
