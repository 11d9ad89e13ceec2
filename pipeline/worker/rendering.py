"""Rendering of a unit's rows: prompts with concepts to PNG files under the root.

A file that an earlier attempt wrote, and whose outcome was lost, is checked and adopted. Each row is checked by itself,
so that a row that cannot be rendered does not fail its batch.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from perfusion_ops.concept import Concept, GatedConcept
from perfusion_ops.conditioning import check_prompt, prompt_row
from perfusion_ops.config import Combine
from perfusion_ops.edit import solve_targets
from perfusion_ops.regions import prompts_of
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import PromptTooLongError
from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.layout import image_path
from pipeline.contract.messages import reason
from pipeline.contract.units import Outcome, RenderShape, RenderTask
from pipeline.storage.objects import MissingObjectError, Storage, StorageError
from pipeline.worker.concept_files import ConceptFiles
from pipeline.worker.models import Models
from pipeline.worker.outcomes import failed, ok
from pipeline.worker.provenance import answers, encode_render


class Rendering:
    """Renders units on one worker."""

    def __init__(
        self,
        models: Models,
        storage: Storage,
        files: ConceptFiles,
        *,
        edit_unconditional: bool,
        combine: Combine,
    ) -> None:
        """Start without any unit.

        Args:
            models: base model and metric.
            storage: of the root.
            files: of concepts.
            edit_unconditional: concepts act on unconditional rows as well.
            combine: how several concepts of a prompt act together.
        """
        self._models, self._storage, self._files = models, storage, files
        self._edit_unconditional = edit_unconditional
        self._combine: Combine = combine

    def run(self, tasks: Sequence[RenderTask]) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
        """Outcomes by key: of adopted files, and of all other tasks.

        Raises:
            torch.OutOfMemoryError, MemoryError: the tasks do not fit together.
        """
        adopted: dict[str, Outcome] = {}
        outcomes: dict[str, Outcome] = {}
        rows: list[tuple[RenderTask, RenderRow]] = []
        for task in tasks:
            try:
                outcome = self._adopt(task)
                if outcome is not None:
                    adopted[task.key] = outcome
                else:
                    rows.append((task, self.row(task)))
            except (RowError, StorageError) as error:
                outcomes[task.key] = failed("render", task.key, error)
        if rows:
            outcomes.update(self._render(rows))
        return adopted, outcomes

    def row(self, task: RenderTask) -> RenderRow:
        """The prompts of a task with their concepts.

        Raises:
            RowError: a concept is missing, learned no keys or cannot be told from another one, or a prompt is too long.
            StorageError: a concept cannot be read.
        """
        names = task.concept_ids or (None,) * len(task.concepts)
        concepts = tuple(self._files.load(key, name)[0] for key, name in zip(task.concepts, names, strict=True))
        self._check_distinct(task, concepts)
        untrained = [
            place
            for place, concept in enumerate(concepts)
            if not isinstance(concept, GatedConcept) or concept.key_target is None
        ]
        if task.lock == "trained" and untrained:
            who = f"concept {names[untrained[0]]!r}" if task.concept_ids else "a concept"
            message = (
                f"lock is 'trained', but {who} learned no keys: train it with train.lock 'trained', or use 'local'"
            )
            raise RowError(Code.OUT_OF_RANGE, message, column="lock")
        acting = partial(prompt_row, concepts=concepts, bias=task.bias, temperature=task.temperature, lock=task.lock)
        positive = acting(task.prompt, combine=self._combine, strength=task.strength)
        everywhere = positive.concepts if self._edit_unconditional else ()
        negative = acting(task.negative_prompt, everywhere=everywhere)
        for column, row, text in (
            ("prompt", positive, task.prompt),
            ("negative_prompt", negative, task.negative_prompt),
        ):
            try:
                for each in prompts_of(row):
                    check_prompt(self._models.base, each)
            except PromptTooLongError as error:
                message = f"{column}: {error} ({task.written(text)!r})"
                raise RowError(Code.PROMPT_TOO_LONG, message, column=column) from error
        return RenderRow(positive, negative, task.seed)

    def _check_distinct(self, task: RenderTask, concepts: Sequence[Concept]) -> None:
        inverse = self._models.metric.inverse
        gated = [concept.target_input for concept in concepts if isinstance(concept, GatedConcept)]
        if not gated:
            return
        inputs = torch.stack(gated)[None].to(inverse.device)
        try:
            solve_targets(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool, device=inverse.device), inverse)
        except ValueError as error:
            who = f"concepts {' and '.join(map(repr, task.concept_ids))}: " if task.concept_ids else ""
            raise RowError(Code.CONCEPTS_ALIKE, f"{who}{error}", column="prompt", status=Status.FAILED) from error

    def _render(self, rows: list[tuple[RenderTask, RenderRow]]) -> dict[str, Outcome]:
        sampler = self._sampler(rows[0][0].shape)
        try:
            renders = render(self._models.base, self._models.metric, [row for _, row in rows], sampler)
        except ValueError as error:
            # Each row has been checked by itself, so diffusers refuses what the rows share.
            message = (
                f"the base model cannot render {sampler.width} x {sampler.height} pixels in {sampler.steps} steps of "
                f"{sampler.scheduler} ({reason(error)}): change one of them"
            )
            failure = RowError(Code.OUT_OF_RANGE, message)
            return {task.key: failed("render", task.key, failure) for task, _ in rows}
        return {task.key: self._store(task, pixels) for (task, _), pixels in zip(rows, renders, strict=True)}

    def _sampler(self, shape: RenderShape) -> Sampler:
        side = self._models.base.resolution
        return Sampler(shape.width or side, shape.height or side, shape.steps, shape.guidance, shape.scheduler)

    def _store(self, task: RenderTask, pixels: NDArray[np.uint8] | None) -> Outcome:
        path = image_path(task.key)
        try:
            if pixels is None:
                message = (
                    f"the render is not finite after {task.shape.steps} steps of {task.shape.scheduler}: "
                    "lower guidance, take more steps or another scheduler, or train the concept again"
                )
                raise RowError(Code.RENDER_NOT_FINITE, message, status=Status.FAILED)
            weights = [self._files.load(key)[1] for key in task.concepts]
            base_digest = self._models.base.folder.digest
            data = encode_render(pixels, render_key=task.key, weights=weights, base_digest=base_digest)
            self._storage.write(path, data)
        except (RowError, StorageError) as error:
            return failed("render", task.key, error)
        return ok("render", task.key, self._storage.uri(path), data)

    def _adopt(self, task: RenderTask) -> Outcome | None:
        path = image_path(task.key)
        try:
            data = self._storage.read(path)
        except MissingObjectError:
            return None
        return ok("render", task.key, self._storage.uri(path), data) if answers(data, task.key) else None
