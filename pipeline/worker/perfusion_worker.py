"""The worker of a slot: loads the models once, then trains concepts or renders rows, unit by unit.

An object is written before its outcome is returned; renders are written after the accelerator is done with their unit,
so that it can begin the next one. An error of one row becomes that row's outcome; a storage error only after the
retries of `pipeline.storage.patience`. An error of the whole unit (out of memory, a bug) is raised, and the scheduler
decides what follows.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from pipeline.clock import Clock, SystemClock
from pipeline.contract.units import Activity, Machine, Outcome, TrainUnit, Unit
from pipeline.inputs.store import InputStore
from pipeline.storage.patience import UNIT_S, Patience, PatientStorage
from pipeline.worker.concept_files import ConceptFiles
from pipeline.worker.controls import ControlNets
from pipeline.worker.machine import machine_of
from pipeline.worker.models import Models, load_models
from pipeline.worker.rendering import Drawn, Rendering
from pipeline.worker.settings import WorkerSettings
from pipeline.worker.storing import PictureStore
from pipeline.worker.training import Training


class PerfusionWorker:
    """`pipeline.engine.executor.Worker`: one base model and its metric; concepts are exchanged as small tensors."""

    models: Models
    files: ConceptFiles
    training: Training
    pictures: PictureStore
    rendering: Rendering

    def __init__(
        self, settings: WorkerSettings, *, clock: Clock | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Load nothing yet.

        Args:
            settings: of the run.
            clock: times the work and its checkpoints; the machine's when absent.
            sleep: waits between retries of the storage.
        """
        self.settings = settings
        self._clock = clock or SystemClock()
        self._patience = Patience(sleep)
        self._storage = PatientStorage(settings.root, settings.storage_options, self._patience)
        # Threads that wait at the same time must not leave each other too little, so each has the budget of a unit.
        self._patience_of_pictures = Patience(sleep, budget_s=UNIT_S * settings.store_threads)
        self.inputs = InputStore(settings.limits, settings.storage_options)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._activity: Activity | None = None

    def setup(self) -> None:
        """Load the models.

        Raises:
            BaseError, MetricError, RuntimeError: see `load_models`.
        """
        settings = self.settings
        self.models = load_models(
            settings, self._storage, lambda done, total: self._show(Activity("metric", done, total))
        )
        self._show(None)
        self.files = ConceptFiles(self._storage, self.models)
        self.training = Training(
            self.models,
            self._storage,
            self.files,
            inputs=self.inputs,
            patience=self._patience,
            micro_batch=settings.micro_batch,
            recompute=settings.recompute,
            checkpoint_s=settings.checkpoint_s,
            clock=self._clock,
            show=self._show,
        )
        self.pictures = PictureStore(
            PatientStorage(settings.root, settings.storage_options, self._patience_of_pictures),
            settings.encoding,
            base_digest=self.models.drawing.folder.digest,
            threads=settings.store_threads,
            motion_digest=settings.motion_digest or None,
        )
        self.rendering = Rendering(
            self.models,
            self.pictures,
            self.files,
            self.inputs,
            ControlNets(settings.controls, self.models.drawing, settings.storage_options),
            edit_unconditional=settings.edit_unconditional,
            combine=settings.combine,
            prompt_weights=settings.prompt_weights,
            prompt_chunks=settings.prompt_chunks,
            vae_tiling=settings.vae_tiling,
        )

    def _show(self, activity: Activity | None) -> None:
        self._activity = activity

    def machine(self) -> Machine:
        """See `Worker`."""
        return machine_of(self.models.base.device)

    def activity(self) -> Activity | None:
        """See `Worker`."""
        return self._activity

    def counters(self) -> Mapping[str, float]:
        """See `Worker`."""
        return {"storage_retries": self._patience.retries + self._patience_of_pictures.retries}

    def close(self) -> None:
        """End the threads, and forget the concepts in memory."""
        self.pictures.close()
        self.files.clear()

    def run(self, unit: Unit) -> list[Outcome]:
        """`compute`, then what it returns: one outcome for each task of the unit, in its order.

        Raises:
            torch.OutOfMemoryError, MemoryError: the unit is too large for this slot.
        """
        return self.compute(unit)()

    def compute(self, unit: Unit) -> Callable[[], list[Outcome]]:
        """See `Worker`. The returned function writes the renders of the unit; a training has written its files already.

        Raises:
            torch.OutOfMemoryError, MemoryError: the unit is too large for this slot.
        """
        self._patience.renew()
        self._patience_of_pictures.renew()
        begin = self._clock.monotonic()
        drawn = (
            Drawn(*self.training.run(unit.tasks)) if isinstance(unit, TrainUnit) else self.rendering.draw(unit.tasks)
        )
        # The accelerator's time is shared evenly by the rows that it was spent on. Writing takes none of it. What an
        # adopted object took is unknown.
        spent_s = self._clock.monotonic() - begin
        share_s = spent_s / max(len(drawn.outcomes) + len(drawn.pictures), 1)
        return partial(self._finish, unit, drawn, share_s)

    def _finish(self, unit: Unit, drawn: Drawn, share_s: float) -> list[Outcome]:
        outcomes = {**drawn.outcomes, **self.pictures.store(drawn.pictures)}
        return [
            replace(
                drawn.adopted.get(task.key) or outcomes[task.key],
                accelerator_s=0.0 if task.key in drawn.adopted else share_s,
                batch=len(unit.tasks),
                worker=self._name,
                finished_at=self._clock.wall(),
            )
            for task in unit.tasks
        ]
