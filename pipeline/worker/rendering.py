"""Rendering of a unit's rows: prompts with concepts to pictures, which `pipeline.worker.storing` writes.

A file that an earlier attempt wrote, and whose outcome was lost, is checked and adopted. Each row is checked by itself,
so that a row that cannot be rendered does not fail its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from perfusion_ops.concept import Concept, GatedConcept
from perfusion_ops.conditioning import count_chunks, prompt_row
from perfusion_ops.config import Combine
from perfusion_ops.controls.net import Control
from perfusion_ops.edit import solve_targets
from perfusion_ops.regions import prompts_of, spelled
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.scenes.scene import Scene
from perfusion_ops.text import PromptTooLongError
from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.messages import reason
from pipeline.contract.units import InputControl, InputScene, Outcome, RenderShape, RenderTask
from pipeline.inputs.store import InputStore
from pipeline.storage.objects import StorageError
from pipeline.worker.concept_files import ConceptFiles
from pipeline.worker.controls import ControlNets, load_picture
from pipeline.worker.models import Models
from pipeline.worker.outcomes import failed
from pipeline.worker.scenes import load_scene
from pipeline.worker.storing import Picture, PictureStore

_FRAMES_AT_ONCE = 16  # of short videos; a longer one is drawn alone


@dataclass
class Drawn:
    """What became of the tasks of a unit: each is in one of the three.

    Attributes:
        adopted: outcomes of files that existed, by key.
        outcomes: of other tasks that have ended, by key: rows that failed, trainings.
        pictures: to be stored.
    """

    adopted: dict[str, Outcome] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)


class Rendering:
    """Renders units on one worker."""

    def __init__(
        self,
        models: Models,
        pictures: PictureStore,
        files: ConceptFiles,
        inputs: InputStore,
        controls: ControlNets,
        *,
        edit_unconditional: bool,
        combine: Combine,
        prompt_weights: bool = False,
        prompt_chunks: int = 1,
        vae_tiling: bool = False,
    ) -> None:
        """Start without any unit.

        Args:
            models: base model and metric.
            pictures: of the root.
            files: of concepts.
            inputs: of the run, for scenes and for the pictures of ControlNets.
            controls: of the run.
            edit_unconditional: concepts act on unconditional rows as well.
            combine: how several concepts of a prompt act together.
            prompt_weights: whether prompts have weights.
            prompt_chunks: encodings side by side that a prompt may take.
            vae_tiling: see `perfusion_ops.rendering.Sampler`.
        """
        self._models, self._pictures, self._files, self._inputs = models, pictures, files, inputs
        self._controls = controls
        self._edit_unconditional = edit_unconditional
        self._combine: Combine = combine
        self._vae_tiling = vae_tiling
        self._prompt_weights, self._prompt_chunks = prompt_weights, prompt_chunks

    def draw(self, tasks: Sequence[RenderTask]) -> Drawn:
        """Adopt what exists and draw the rest; writes nothing.

        Raises:
            torch.OutOfMemoryError, MemoryError: the tasks do not fit together.
        """
        drawn = Drawn()
        rows: list[tuple[RenderTask, RenderRow]] = []
        scenes: dict[InputScene, Scene] = {}
        controls: dict[InputControl, Control] = {}
        found = self._pictures.find([task.key for task in tasks])
        for task in tasks:
            outcome = found.get(task.key)
            if outcome is not None:
                (drawn.adopted if outcome.status == Status.OK else drawn.outcomes)[task.key] = outcome
                continue
            try:
                row = self.row(task)
                if task.scene is not None:
                    row = replace(row, scene=self._scene(task.scene, task.shape, scenes))
                if task.control is not None:
                    row = replace(row, control=self._control(task.control, task.shape, controls))
                rows.append((task, row))
            except (RowError, StorageError) as error:
                drawn.outcomes[task.key] = failed("render", task.key, error)
        if rows:
            self._render(rows, drawn)
        return drawn

    def row(self, task: RenderTask) -> RenderRow:
        """The prompts of a task with their concepts, without its scene and its ControlNet.

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
        acting = partial(
            prompt_row,
            concepts=concepts,
            bias=task.bias,
            temperature=task.temperature,
            lock=task.lock,
            weighted=self._prompt_weights,
        )
        positive = acting(task.prompt, combine=self._combine, strength=task.strength)
        everywhere = positive.concepts if self._edit_unconditional else ()
        negative = acting(task.negative_prompt, everywhere=everywhere)
        chunks = 1
        for column, row, text in (
            ("prompt", positive, task.prompt),
            ("negative_prompt", negative, task.negative_prompt),
        ):
            try:
                # A ControlNet reads the superclasses.
                read = [*prompts_of(row), *([spelled(row)] if task.control else [])]
                chunks = max(chunks, count_chunks(self._models.drawing, read, self._prompt_chunks))
            except PromptTooLongError as error:
                message = f"{column}: {error} ({task.written(text)!r})"
                raise RowError(Code.PROMPT_TOO_LONG, message, column=column) from error
        return RenderRow(replace(positive, chunks=chunks), replace(negative, chunks=chunks), task.seed)

    def _scene(self, scene: InputScene, shape: RenderShape, known: dict[InputScene, Scene]) -> Scene:
        """A scene at the size of its render; tasks of a unit share it.

        Raises:
            RowError: see `load_scene`.
        """
        if scene not in known:
            sampler = self._sampler(shape)
            strength = 1.0 if shape.scene_strength is None else shape.scene_strength
            known[scene] = load_scene(
                scene,
                self._inputs,
                width=sampler.width,
                height=sampler.height,
                factor=self._models.drawing.latent_factor,
                strength=strength,
            )
        return known[scene]

    def _control(self, control: InputControl, shape: RenderShape, known: dict[InputControl, Control]) -> Control:
        """A ControlNet and what it is shown at the size of the render; tasks of a unit share the picture.

        Raises:
            RowError: see `ControlNets.get` and `load_picture`.
        """
        if control not in known:
            sampler = self._sampler(shape)
            known[control] = load_picture(
                control, self._controls.get(control.name), self._inputs, width=sampler.width, height=sampler.height
            )
        return known[control]

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

    def _render(self, rows: list[tuple[RenderTask, RenderRow]], drawn: Drawn) -> None:
        sampler = self._sampler(rows[0][0].shape)
        # The denoiser sees each frame of a video as a row.
        at_once = len(rows) if sampler.frames is None else max(1, _FRAMES_AT_ONCE // sampler.frames)
        models, asked = self._models, [row for _, row in rows]
        try:
            renders = [
                pixels
                for start in range(0, len(rows), at_once)
                for pixels in render(models.drawing, models.metric, asked[start : start + at_once], sampler)
            ]
        except ValueError as error:
            # Each row has been checked by itself, so diffusers refuses what the rows share.
            message = (
                f"the base model cannot render {sampler.width} x {sampler.height} pixels in {sampler.steps} steps of "
                f"{sampler.scheduler} ({reason(error)}): change one of them"
            )
            failure = RowError(Code.OUT_OF_RANGE, message)
            drawn.outcomes.update((task.key, failed("render", task.key, failure)) for task, _ in rows)
            return
        for (task, _), pixels in zip(rows, renders, strict=True):
            try:
                if pixels is None:
                    raise _not_finite(task.shape)
                # Read here, because the next unit reads concepts while this one is stored.
                weights = tuple(self._files.load(key)[1] for key in task.concepts)
            except (RowError, StorageError) as error:
                drawn.outcomes[task.key] = failed("render", task.key, error)
            else:
                photo = task.scene.photo.sha256 if task.scene else None
                drawn.pictures.append(Picture(task.key, pixels, weights, photo, task.shape.fps))

    def _sampler(self, shape: RenderShape) -> Sampler:
        side = self._models.drawing.resolution
        return Sampler(
            shape.width or side,
            shape.height or side,
            shape.steps,
            shape.guidance,
            shape.scheduler,
            frames=shape.frames,
            guidance_rescale=shape.guidance_rescale,
            vae_tiling=self._vae_tiling,
        )


def _not_finite(shape: RenderShape) -> RowError:
    message = (
        f"the render is not finite after {shape.steps} steps of {shape.scheduler}: "
        "lower guidance, take more steps or another scheduler, or train the concept again"
    )
    return RowError(Code.RENDER_NOT_FINITE, message, status=Status.FAILED)
