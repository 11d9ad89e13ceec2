"""From settings to a plan: both manifests checked, keys for everything, and what of it exists already.

A run does this before it acquires its lease; `perfusion validate` and `perfusion plan` do nothing else.
"""

import hashlib
from dataclasses import dataclass, field, replace

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.base.motion import MotionFolder
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from pipeline.bases.captions import captions_digest
from pipeline.bases.controls import find_controls
from pipeline.bases.find import find_base
from pipeline.bases.motion import check_task, find_motion
from pipeline.bases.recipes import check_settings, train_check
from pipeline.bases.starts import start_check
from pipeline.bases.superclasses import superclass_check
from pipeline.contract.errors import ManifestError
from pipeline.contract.keys import metric_key, settings_json
from pipeline.contract.kinds import RENDERS, PlanCounts
from pipeline.contract.layout import INPUTS_FOLDER
from pipeline.database.plandb import PlanDB
from pipeline.inputs.cache import InputCache
from pipeline.inputs.videos import ensure_mp4
from pipeline.manifest.concepts import load_concepts
from pipeline.manifest.local_files import ensure_shared
from pipeline.manifest.points import PointsSummary, load_points
from pipeline.manifest.prompts import load_prompts
from pipeline.manifest.reading import ManifestSummary
from pipeline.observer import Observer
from pipeline.plan.changes import Changes, find_changes
from pipeline.plan.done import load_done
from pipeline.plan.expand import count_plan, plan_concepts, plan_requests
from pipeline.plan.left_out import find_left_out
from pipeline.plan.repeat import content_digest
from pipeline.plan.selection import Missing, Selection, select
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from pipeline.tables.columns import carried_columns
from pipeline.worker.settings import ControlSource, Encoding, WorkerSettings


@dataclass(frozen=True)
class Checked:
    """Checked manifests, and what follows from them and the settings before any render is planned.

    Attributes:
        base: the base model that trains.
        drawing: the base model that renders, the same one unless the settings name a sibling.
        counter: counts its tokens.
        concepts: the concepts manifest.
        prompts: the prompts manifest.
        points: the file of points, if the settings name one.
        worker: what every worker gets.
        digest: hex sha256 of manifests, base model and settings; part of the run id.
        content: hex sha256 of `digest` and of the key or the error of every concepts row.
        columns: notices about carried columns.
        motion: the motion adapter that draws videos, if the settings name one.
    """

    base: BaseFolder
    drawing: BaseFolder
    counter: TokenCounter
    concepts: ManifestSummary
    prompts: ManifestSummary
    worker: WorkerSettings
    digest: str
    content: str
    columns: tuple[str, ...] = ()
    points: PointsSummary | None = None
    motion: MotionFolder | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """What was skipped or assumed in the manifests, and which of their columns the tables carry differently."""
        points = self.points.notices if self.points else ()
        return (*self.concepts.notices, *self.prompts.notices, *points, *self.columns)


@dataclass(frozen=True)
class Planned:
    """A plan: its counts, the chosen keys that it lacks, and why each key is to be done if that was asked for."""

    checked: Checked
    work: PlanCounts
    missing: Missing = field(default_factory=Missing)
    changes: Changes | None = None


def check(
    db: PlanDB, storage: Storage, settings: RunSettings, observer: Observer, selection: Selection | None = None
) -> Checked:
    """Check every row of both manifests and give every good concept its key.

    Raises:
        BaseError, VideoError, ManifestError, StorageError: the run cannot start; with a message for the user.
    """
    observer.stage("base", settings.base)
    base = find_base(settings.base, settings.storage_options)
    drawing = base
    if settings.render_base is not None:
        observer.stage("base", settings.render_base)
        drawing = find_base(settings.render_base, settings.storage_options)
        _check_sibling(settings, base, drawing)
    training, sampling = settings.training(base), settings.sampling(drawing)
    check_settings(training, sampling, base, drawing)
    motion = _motion(settings, drawing, observer)
    controls = _controls(settings, drawing, observer)
    counter = TokenCounter(load_tokenizer(base))
    options = settings.storage_options or None
    cache = InputCache(storage)
    observer.stage("validate", settings.concepts)
    concepts = load_concepts(
        db,
        settings.concepts,
        storage=storage,
        limits=settings.inputs,
        cache=cache,
        storage_options=options,
        threads=settings.engine.threads,
        superclass_check=superclass_check(counter, base.settings.templates, training.recipe),
        train_check=train_check(training, sampling, base, drawing),
        start_check=start_check(base),
    )
    observer.stage("validate", settings.prompts)
    prompts = load_prompts(
        db,
        settings.prompts,
        storage=storage,
        limits=settings.inputs,
        cache=cache,
        storage_options=options,
        threads=settings.engine.threads,
    )
    points = None
    if settings.points is not None:
        observer.stage("validate", settings.points)
        points = load_points(db, settings.points, storage_options=options)
    key = metric_key(
        base_digest=base.metric_digest,
        metric=settings.metric,
        captions_sha256=captions_digest(settings.metric, options),
    )
    local_files = _shared_files(db, storage, settings) if settings.cluster.remote else ()
    training, sampling = settings.training(base), settings.sampling(drawing)
    plan_concepts(db, base_digest=base.digest, metric_key=key, training=training)
    parts = [
        concepts.digest,
        prompts.digest,
        base.digest,
        key,
        settings_json(training),
        settings_json(sampling),
        str(settings.seed),
        *([f"points {points.digest}"] if points else []),
        *([f"render base {drawing.digest}"] if settings.render_base else []),
        *([f"motion {motion.digest}"] if motion else []),
        *(f"control {each.name} {each.digest}" for each in controls),
        *([selection.name] if selection else []),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    worker = WorkerSettings(
        root=storage.root,
        storage_options=options,
        base=settings.base,
        base_digest=base.digest,
        render_base=settings.render_base,
        render_base_digest=drawing.digest,
        motion=settings.motion,
        motion_digest=motion.digest if motion else "",
        controls=controls,
        metric=settings.metric,
        metric_key=key,
        limits=settings.inputs.allowing(storage.uri(INPUTS_FOLDER)),
        device=settings.engine.device,
        dtype=settings.engine.dtype,
        micro_batch=settings.engine.micro_batch,
        recompute=settings.engine.recompute,
        compile=settings.engine.compile,
        checkpoint_s=settings.engine.checkpoint_s,
        edit_unconditional=sampling.edit_unconditional,
        combine=sampling.combine,
        prompt_weights=sampling.prompt_weights,
        prompt_chunks=sampling.prompt_chunks,
        vae_tiling=sampling.vae_tiling,
        encoding=Encoding(sampling.format, sampling.webp_quality, settings.engine.png_level),
        store_threads=settings.engine.store_threads,
        local_files=local_files,
    )
    # The columns of renders include those of concepts.
    _, columns = carried_columns(db, storage, RENDERS)
    return Checked(
        base=base,
        drawing=drawing,
        counter=counter,
        concepts=concepts,
        prompts=prompts,
        worker=worker,
        digest=digest,
        content=content_digest(db, digest),
        columns=columns,
        points=points,
        motion=motion,
    )


def _check_sibling(settings: RunSettings, base: BaseFolder, drawing: BaseFolder) -> None:
    """Refuse a base model in which the concepts of another one do not act.

    Raises:
        BaseError: its text encoders differ, or concepts hold what belongs to one denoiser.
    """
    names = f"render_base {settings.render_base!r} and base {settings.base!r}"
    if drawing.family != base.family:
        raise BaseError(f"{names} are of different families ({drawing.family.title}, {base.family.title})")
    if drawing.text_digest != base.text_digest:
        raise BaseError(f"{names} have different text encoders or tokenizers: concepts act only where these are equal")
    training = settings.training(base)
    if training.store == "target" or (training.store == "auto" and not base.family.shares_metric):
        raise BaseError(f"{names} differ, and concepts fit base alone: set train.store to 'difference' or 'int8'")
    if training.lock == "trained" and training.recipe == "paper":
        raise BaseError(f"{names} differ, and trained keys fit base alone: set train.lock to 'local'")


def _motion(settings: RunSettings, drawing: BaseFolder, observer: Observer) -> MotionFolder | None:
    """The motion adapter of a run that draws videos.

    Raises:
        BaseError, VideoError: what the settings ask for cannot be drawn, or not be written here.
    """
    motion, sampling = None, settings.sampling(drawing)
    if settings.motion is not None:
        observer.stage("base", settings.motion)
        motion = find_motion(settings.motion, settings.storage_options)
    check_task(sampling, settings.render, motion, drawing)
    if sampling.format == "mp4":
        ensure_mp4()
    return motion


def _controls(settings: RunSettings, drawing: BaseFolder, observer: Observer) -> tuple[ControlSource, ...]:
    """The ControlNets of the settings, in the order of their names.

    Raises:
        BaseError: one of them is missing, or does not fit the base model that renders.
    """
    for location in settings.controls.values():
        observer.stage("base", location)
    found = find_controls(settings.controls, drawing, settings.storage_options)
    return tuple(ControlSource(name, settings.controls[name], found[name].digest) for name in sorted(found))


def _shared_files(db: PlanDB, storage: Storage, settings: RunSettings) -> tuple[str, ...]:
    """Local paths that every node must see."""
    locations = {"root": storage.root, "metric.captions_uri": settings.metric.captions_uri}
    return ensure_shared(db, locations, shared_filesystem=settings.cluster.shared_filesystem)


def make_plan(
    db: PlanDB,
    storage: Storage,
    settings: RunSettings,
    checked: Checked,
    *,
    selection: Selection | None = None,
    explain: bool = False,
) -> Planned:
    """Give every render its key, apply the `selection`, and find out what exists; call it after `list_objects`.

    With `explain`, also find out why each key is to be done, which reads the published tables once more.

    Raises:
        ManifestError, StorageError: the run cannot start; with a message for the user.
    """
    drawing, motion = checked.drawing, checked.motion
    digests = (checked.base.digest, drawing.digest)
    plan_requests(
        db,
        base_digest=drawing.digest,
        sampling=settings.sampling(drawing),
        seed=settings.seed,
        counter=checked.counter,
        schedule={**drawing.schedule, **(motion.schedule if motion else {})},
        controls={each.name: each.digest for each in checked.worker.controls},
        motion_digest=motion.digest if motion else None,
        most_frames=motion.most_frames if motion else None,
        pooled=drawing.pools_superclasses,
        rescales=drawing.rescales and settings.sampling(drawing).task == "picture",
    )
    missing = _select(db, storage, selection, digests, settings.engine.plan_memory) if selection else Missing()
    load_done(db, storage)
    work = count_plan(db)
    changes = None
    if explain:
        memory = settings.engine.plan_memory
        changes = find_changes(db, storage, base_digests=digests, memory_limit=memory)
    return Planned(checked=checked, work=work, missing=missing, changes=changes)


def _select(
    db: PlanDB, storage: Storage, selection: Selection, base_digests: tuple[str, str], memory_limit: str
) -> Missing:
    """Apply the selection, and find out why keys of it are not in the plan.

    Raises:
        ManifestError: none of the chosen keys is in the plan.
    """
    if not selection.keys:
        return select(db, selection)
    reasons, refused = find_left_out(db, storage, selection.keys, base_digests=base_digests, memory_limit=memory_limit)
    missing = replace(select(db, selection, refused), reasons=reasons)
    if (missing.concepts, missing.renders) == (len(selection.keys.concepts), len(selection.keys.renders)):
        raise ManifestError(
            "\n".join(each.sentence for each in reasons)
            or "none of the rows to do again is in the plan; `perfusion run` makes what the manifests ask for now"
        )
    return missing
