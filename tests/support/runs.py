"""Small real runs: photos on disk, the embedded base, workers in this process, and storage that fails on demand."""

import functools
import hashlib
import io
import itertools
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from safetensors.torch import load

from perfusion_ops.config import MetricConfig, TrainingConfig
from pipeline.bases.find import find_base
from pipeline.contract.keys import metric_key
from pipeline.contract.layout import metric_path
from pipeline.contract.units import ConceptTask, InputImage, RenderShape, RenderTask, RenderUnit, TrainUnit
from pipeline.engine.executor import Completion, Failure
from pipeline.inputs.pictures import InputLimits
from pipeline.run import Engine
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from pipeline.worker.perfusion_worker import PerfusionWorker
from pipeline.worker.settings import WorkerSettings

METRIC = MetricConfig(captions=2000)
TRAINING = TrainingConfig(steps=2, batch=1)
SHAPE = RenderShape(None, None, 2, 4.5, "ddim")

# The tolerance that docs/method.md states for an object made again in another group or batch, or on another machine.
WEIGHTS_APART = 2e-3  # of the largest number of the tensor
PIXELS_APART = 4  # of 255


# Tasks


def key(name):
    return hashlib.sha256(name.encode()).hexdigest()


def photo(path, *, seed=0, size=(64, 64), mode="RGB", **save):
    """Save a smooth random photo; returns it as the input of a task."""
    channels = len(mode)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, channels), dtype=np.uint8).squeeze()
    picture = Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **save)
    return planned(path)


def planned(path):
    return InputImage(f"file://{path}", hashlib.sha256(Path(path).read_bytes()).hexdigest())


def concept(folder, name, *, superclass="mug", images=None, masks=(), **training):
    if images is None:
        images = [photo(Path(folder) / f"{name}.png", seed=int(key(name)[:6], 16))]
    return ConceptTask(key(name), name, superclass, tuple(images), tuple(masks), TRAINING.model_copy(update=training))


def picture(name, *concepts, prompt="a photo of a {0}", negative="", lock="local", bias=0.5, shape=SHAPE, seed=None):
    seed = int(key(name)[:6], 16) if seed is None else seed
    keys = tuple(key(each) for each in concepts)
    return RenderTask(key(f"picture {name}"), prompt, negative, keys, seed, bias, 0.15, lock, shape)


def trainings(*tasks):
    return TrainUnit("train", tuple(tasks))


def renders(*tasks):
    return RenderUnit("render", tuple(tasks))


# Comparison of objects


def check_same_weights(one, other):
    """Two concept files hold the same weights within the stated tolerance."""
    ours, theirs = load(one), load(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        apart = WEIGHTS_APART * float(tensor.abs().max())
        torch.testing.assert_close(ours[name].float(), tensor.float(), rtol=0, atol=apart)


def check_alike(one, other):
    """Two tensors are those of one training that was repeated, perhaps with several threads."""
    torch.testing.assert_close(one, other, rtol=0, atol=WEIGHTS_APART * float(other.abs().max()))


def check_same_picture(one, other):
    """Two files hold the same render within the stated tolerance."""
    ours, theirs = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (one, other))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= PIXELS_APART


# Workers


def worker_settings(root, **changes):
    digest = find_base("mini").digest
    settings = {
        "root": str(root),
        "storage_options": None,
        "base": "mini",
        "base_digest": digest,
        "metric": METRIC,
        "metric_key": metric_key(base_digest=digest, metric=METRIC),
        "limits": InputLimits(),
    }
    return WorkerSettings(**{**settings, **changes})


def ready_worker(root, *, clock=None, sleep=None, **changes):
    """A worker after its setup; the metric is estimated once for all roots."""
    settings = worker_settings(root, **changes)
    if settings.metric == METRIC:
        keep_metric(Storage(settings.root))
    clocks = {name: value for name, value in (("clock", clock), ("sleep", sleep)) if value}
    worker = PerfusionWorker(settings, **clocks)
    worker.setup()
    return worker


@functools.cache
def metric_object():
    """Path and bytes of the metric that every small run uses."""
    with tempfile.TemporaryDirectory() as folder:
        settings = worker_settings(folder)
        PerfusionWorker(settings).setup()
        path = metric_path(settings.metric_key)
        return path, Storage(folder).read(path)


def keep_metric(storage):
    path, data = metric_object()
    if not storage.exists(path):
        storage.create(path, data)


def limit_rows(worker, most):
    """Let the worker's denoiser run out of memory with more than `most` samples at once."""
    unet = worker.models.base.denoiser
    base = next(each for each in type(unet).__mro__ if not hasattr(each, "most_rows"))

    class Limited(base):
        most_rows = most

        def forward(self, sample, *arguments, **named):
            if len(sample) > self.most_rows:
                raise torch.OutOfMemoryError(f"{len(sample)} rows do not fit")
            return super().forward(sample, *arguments, **named)

    unet.__class__ = Limited


class InProcess:
    """`pipeline.engine.executor.Executor` on real workers that take turns in this process."""

    def __init__(self, settings, slots=1):
        self.settings = settings
        self.count = slots
        self.workers = {}
        self.calls = deque()
        self.numbers = itertools.count()
        self.units = []
        self.most_calls = 0
        for slot in range(slots):
            self.replace(slot)

    def machine(self, slot):
        return ""

    def slots(self):
        return tuple(sorted(self.workers))

    def starting(self):
        return ()

    def submit(self, slot, unit):
        self.calls.append((next(self.numbers), slot, unit))
        self.most_calls = max(self.most_calls, len(self.calls))
        return self.calls[-1][0]

    def wait(self, timeout_s):
        if not self.calls:
            return []
        call, slot, unit = self.calls.popleft()
        try:
            outcomes = tuple(self.workers[slot].run(unit))
        except torch.OutOfMemoryError as error:
            return [Completion(call, slot, failure=Failure("out_of_memory", str(error)))]
        self.units.append(unit)
        return [Completion(call, slot, outcomes)]

    def retire(self, slot):
        self.workers.pop(slot, None)

    def replace(self, slot):
        self.workers[slot] = PerfusionWorker(self.settings)
        self.workers[slot].setup()

    def close(self):
        for worker in self.workers.values():
            worker.close()


@dataclass
class Engines:
    """Makes engines for `execute`, remembers them, and asks for a stop after `stop_after` units."""

    stop_after: int | None = None
    slots: int = 1
    made: list = field(default_factory=list)

    @contextmanager
    def __call__(self, worker):
        executor = InProcess(worker, self.slots)
        self.made.append(executor)
        stop = "it was asked to end" if self.stop_after is not None else None
        yield Engine(executor, lambda: stop if len(executor.units) >= (self.stop_after or 0) else None)
        executor.close()

    @property
    def units(self):
        return [unit for executor in self.made for unit in executor.units]

    @property
    def keys(self):
        return {task.key for unit in self.units for task in unit.tasks}


class Silent:
    """An observer that records its events."""

    def __init__(self):
        self.seen = []
        self.stages = []
        self.activities = []

    def stage(self, name, detail):
        self.stages.append(name)

    def planned(self, work):
        self.work = work

    def begun(self, run):
        self.run = run

    def working(self, pulse):
        self.activities += pulse.activities

    def outcomes(self, outcomes):
        self.seen += outcomes


# Runs


def manifest(path, rows):
    """A Parquet manifest of these rows, with every column that any of them has."""
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


def run_settings(root, folder, **changes):
    settings = {
        "root": str(root),
        "concepts": str(Path(folder) / "concepts.parquet"),
        "prompts": str(Path(folder) / "prompts.parquet"),
        "metric": METRIC,
        "train": {"steps": 2, "batch": 1},
        "render": {"steps": 2},
        "engine": {"group_size": 2, "render_batch": 2, "plan_memory": "200MB", "threads": 2},
    }
    return RunSettings.model_validate({**settings, **changes})


# Storage that fails


class Killed(BaseException):
    """The process ends here: nothing catches it, and nothing more can be written."""


@dataclass
class Trouble:
    """How a root `trouble://name` fails.

    Attributes:
        writes_left: number of writes and deletions after which the process is dead.
        errors: number of operations that fail first, with the message of a busy object store.
        where: only in paths that contain this text.
        operations: which ones: read, write.
    """

    writes_left: int | None = None
    errors: int = 0
    where: str = ""
    operations: tuple = ("read", "write")
    writes: int = 0


TROUBLES: dict[str, Trouble] = {}


class TroubledFileSystem(MemoryFileSystem):
    """An object store in memory that fails as `TROUBLES` says for the bucket's name."""

    protocol = "trouble"
    store: dict = {}  # noqa: RUF012 (as in the class above)
    pseudo_dirs = [""]  # noqa: RUF012 (as in the class above)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("trouble://").strip("/")

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._meet("write", path)
        return super().pipe_file(path, value, mode=mode, **options)

    def rm_file(self, path):
        if self.exists(path):
            self._meet("write", path)
        return super().rm_file(path)

    def cat_file(self, path, *arguments, **options):
        self._meet("read", path)
        return super().cat_file(path, *arguments, **options)

    def _meet(self, operation, path):
        trouble = TROUBLES[self._strip_protocol(path).split("/")[1]]
        if trouble.errors and trouble.where in path and operation in trouble.operations:
            trouble.errors -= 1
            raise OSError("503 Slow Down: please reduce your request rate")
        if operation == "write":
            if trouble.writes_left is not None and trouble.writes >= trouble.writes_left:
                raise Killed
            trouble.writes += 1


fsspec.register_implementation("trouble", TroubledFileSystem, clobber=True)


def troubled(name, **trouble):
    """A root of that name that holds only the metric; its trouble begins now."""
    for path in [path for path in TroubledFileSystem.store if path.startswith(f"/{name}/")]:
        del TroubledFileSystem.store[path]
    TROUBLES[name] = Trouble()
    root = f"trouble://{name}/root"
    keep_metric(Storage(root))
    TROUBLES[name] = Trouble(**trouble)
    return root
