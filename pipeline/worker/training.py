"""Training of a unit's concepts: photos to a concept file under the root, with checkpoints on the way.

A file that an earlier attempt wrote, and whose outcome was lost, is checked and adopted. Checkpoints only save time:
without one, training starts from the beginning, and an error in one never fails a row.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from perfusion_ops.concept_file import ConceptFileError, write_concept
from perfusion_ops.training.checkpoint import CheckpointError, read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.training.state import ConceptState, Example, start
from perfusion_ops.training.trainer import Trainer
from pipeline.clock import Clock
from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.layout import checkpoint_path, weights_path
from pipeline.contract.units import Activity, ConceptTask, Outcome
from pipeline.inputs.store import InputStore
from pipeline.storage.objects import MissingObjectError, Storage, StorageError
from pipeline.storage.patience import Patience
from pipeline.worker.concept_files import ConceptFiles
from pipeline.worker.models import Models
from pipeline.worker.outcomes import failed, ok
from pipeline.worker.training_data import load_example

_log = logging.getLogger(__name__)
_FEW = 4  # samples: with fewer, an accelerator is not busy, and activations are computed twice instead


class Training:
    """Trains units on one worker; remembers the micro-batch that fits its memory."""

    def __init__(
        self,
        models: Models,
        storage: Storage,
        files: ConceptFiles,
        *,
        inputs: InputStore,
        patience: Patience,
        micro_batch: int,
        recompute: str,
        checkpoint_s: float,
        clock: Clock,
        show: Callable[[Activity | None], None],
    ) -> None:
        """Start without any unit.

        Args:
            models: of the worker.
            storage: the root; retries transient errors.
            files: concept files of the root.
            inputs: reads photos.
            patience: retries photos that cannot be read for a moment.
            micro_batch: samples in the denoiser at once, to begin with.
            recompute: `on`: training computes activations twice; `off`: never; `auto`: once few samples fit.
            checkpoint_s: seconds between checkpoints.
            clock: for the time between checkpoints.
            show: learns each optimiser step, and None at the end.
        """
        self._models, self._storage, self._files = models, storage, files
        self._inputs, self._patience, self._clock, self._show = inputs, patience, clock, show
        self._checkpoint_s = checkpoint_s
        self.micro_batch = micro_batch
        self.recomputes = recompute == "on"
        self._may_recompute = recompute == "auto"

    def run(self, tasks: Sequence[ConceptTask]) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
        """Outcomes by key: of adopted files, and of all other tasks.

        Raises:
            torch.OutOfMemoryError, MemoryError: one sample at a time does not fit.
        """
        adopted: dict[str, Outcome] = {}
        outcomes: dict[str, Outcome] = {}
        examples: dict[str, Example] = {}
        for task in tasks:
            try:
                outcome = self._adopt(task)
                if outcome is not None:
                    adopted[task.key] = outcome
                else:
                    examples[task.key] = self._patience(partial(self._example, task))
            except (RowError, StorageError) as error:
                outcomes[task.key] = failed("concept", task.key, error)
        if examples:
            try:
                trainer = self._train(list(examples), list(examples.values()))
            finally:
                self._show(None)
            for key, example, state in zip(examples, trainer.examples, trainer.states, strict=True):
                outcomes[key] = self._store(key, example, state)
        return adopted, outcomes

    def _example(self, task: ConceptTask) -> Example:
        self._models.superclass_checks[task.training.recipe](task.superclass)
        return load_example(self._models.base, task, self._inputs)

    def _train(self, keys: list[str], examples: list[Example]) -> Trainer:
        """Train from the checkpoints that exist; out of memory halves the micro-batch, which changes no result."""
        while True:
            trainer = self._trainer(keys, examples)
            self._show(_activity(trainer))
            saved = self._clock.monotonic()

            def on_step(trainer: Trainer) -> None:
                nonlocal saved
                self._show(_activity(trainer))
                if self._clock.monotonic() - saved >= self._checkpoint_s:
                    self._write_checkpoints(keys, trainer)
                    saved = self._clock.monotonic()

            try:
                trainer.run(on_step)
            except torch.OutOfMemoryError:
                if not self._need_less():
                    raise
            else:
                return trainer
            # Only here are the error, and the tensors that its frames hold, gone.
            del trainer
            torch.cuda.empty_cache()

    def _need_less(self) -> bool:
        """Train with less memory from now on; False if it cannot be done with less.

        Fewer samples cost little time until a handful is left. Computing activations twice costs half as much again.
        """
        if self._may_recompute and not self.recomputes and self.micro_batch < 2 * _FEW:
            self.recomputes = True
            _log.warning("training ran out of memory: from now on it computes activations twice")
            return True
        if self.micro_batch == 1:
            return False
        self.micro_batch //= 2
        _log.warning("training ran out of memory: from now on %d samples at once", self.micro_batch)
        return True

    def _trainer(self, keys: list[str], examples: list[Example]) -> Trainer:
        base = self._models.base
        found = [self._read_checkpoint(key, start(base, example)) for key, example in zip(keys, examples, strict=True)]
        states = [state for state, _ in found]
        trainer = Trainer(
            base,
            self._models.metric,
            examples,
            states=states,
            micro_batch=self.micro_batch,
            checkpointed=self.recomputes,
        )
        for state, moments in found:
            restore_moments(trainer.optimizer, state, moments)
        return trainer

    # Checkpoints

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
                _log.warning("concept %s continues without a checkpoint: %s", key, error)

    def _drop_checkpoint(self, key: str) -> None:
        try:
            self._storage.delete(checkpoint_path(key))
        except StorageError as error:
            _log.warning("the checkpoint of concept %s could not be deleted: %s", key, error)

    # Files

    def _store(self, key: str, example: Example, state: ConceptState) -> Outcome:
        path = weights_path(key)
        try:
            data = self._file(key, example, state)
            # Another worker may have stored the same concept first; then its file is the one.
            if not self._storage.create(path, data):
                data = self._storage.read(path)
        except StorageError as error:
            return failed("concept", key, error)
        except RowError as error:
            self._drop_checkpoint(key)
            return failed("concept", key, error)
        self._drop_checkpoint(key)
        return ok("concept", key, self._storage.uri(path), data, loss=state.loss)

    def _file(self, key: str, example: Example, state: ConceptState) -> bytes:
        problem = state.problem
        if problem is None:
            try:
                concept = state.concept(example, self._models.base, self._models.metric)
                return write_concept(concept, key=key, packed=example.config.store == "int8")
            except ConceptFileError as error:
                problem = f"{error}; lower train.lr_value, or check the product's photos"
        raise RowError(Code.TRAINING_DIVERGED, problem, status=Status.FAILED)

    def _adopt(self, task: ConceptTask) -> Outcome | None:
        path = weights_path(task.key)
        try:
            data = self._storage.read(path)
            loss = self._files.check(task.key, data).loss
        except MissingObjectError:
            return None
        except ConceptFileError as error:
            _log.warning("%s is trained again: %s", self._storage.uri(path), error)
            self._storage.delete(path)
            return None
        return ok("concept", task.key, self._storage.uri(path), data, loss=loss)


def _activity(trainer: Trainer) -> Activity | None:
    """The steps of the active concept that has taken the fewest; None if all have ended."""
    active = trainer.active()
    if not active:
        return None
    done, total = min((trainer.states[index].step, trainer.examples[index].config.steps) for index in active)
    return Activity("training", done, total, len(trainer.states))
