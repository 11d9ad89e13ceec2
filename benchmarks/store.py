"""Pictures a second with their encoding and storing beside the next batch, against the denoiser alone.

The whole path is real but for the denoiser: scheduler, Ray, the worker, its threads and files on disk. The fake
denoiser sleeps for 0.2 s a picture, which leaves the processor to the others as a GPU does, and gives pictures that
compress like renders. No overlap can exceed `best`: nothing is drawn beside the writing of the last batch.
`no_overlap` gives a worker one batch at a time, and `serial` writes one picture after the other as well.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray

from benchmarks.measure import finish, show
from cluster.fleet import SlotResources
from cluster.ray_executor import RayExecutor
from perfusion_ops.config import MetricConfig
from pipeline.clock import SystemClock
from pipeline.contract.keys import digest
from pipeline.contract.units import Machine, Outcome, RenderShape, RenderTask, RenderUnit, Unit
from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run as schedule
from pipeline.inputs.pictures import InputLimits
from pipeline.worker.concept_files import ConceptFiles
from pipeline.worker.perfusion_worker import PerfusionWorker
from pipeline.worker.provenance import encode_render
from pipeline.worker.rendering import Drawn, Rendering
from pipeline.worker.settings import Encoding, WorkerSettings
from pipeline.worker.storing import Picture, PictureStore

BAR = 0.95  # of the denoiser alone
_SIDES = (512, 1024)
_PICTURE_S = 0.2
_BATCH, _PICTURES = 8, 96


class FakeDenoiser(PerfusionWorker):
    """A real worker whose denoiser sleeps; its pictures are prepared."""

    def __init__(self, settings: WorkerSettings, seconds: float) -> None:
        """`seconds`: of the denoiser, for each picture."""
        super().__init__(settings)
        self._seconds = seconds

    def setup(self) -> None:
        """Load no models."""
        settings = self.settings
        self.files = ConceptFiles(self._storage, cast("Any", None))
        self.pictures = PictureStore(
            self._storage, settings.encoding, base_digest=settings.base_digest, threads=settings.store_threads
        )
        self.rendering = cast("Rendering", _FakeRendering(self.pictures, self._seconds))

    def machine(self) -> Machine:
        """All workers are alike."""
        return Machine("no accelerator", 1, 1)


class _FakeRendering:
    def __init__(self, pictures: PictureStore, seconds: float) -> None:
        self._pictures, self._seconds = pictures, seconds
        self._pixels = {side: _like_renders(side) for side in _SIDES}

    def draw(self, tasks: Sequence[RenderTask]) -> Drawn:
        """As `Rendering.draw`."""
        assert not self._pictures.find([task.key for task in tasks])
        time.sleep(self._seconds * len(tasks))
        pixels = [self._pixels[task.shape.width or 0][number % 4] for number, task in enumerate(tasks)]
        return Drawn(pictures=[Picture(task.key, each, ("w" * 64,)) for task, each in zip(tasks, pixels, strict=True)])


def _settings(root: str, encoding: Encoding, threads: int) -> WorkerSettings:
    return WorkerSettings(
        root=root,
        storage_options=None,
        base="none",
        base_digest="b" * 64,
        metric=MetricConfig(),
        metric_key="m" * 64,
        limits=InputLimits(),
        encoding=encoding,
        store_threads=threads,
    )


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bar is met."""
    count, batch = options.rows or _PICTURES, options.batch or _BATCH
    figures: dict[str, Any] = {"cores": os.cpu_count(), "picture_s": _PICTURE_S, "batch": batch, "pictures": count}
    bars = {}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints to stdout, which is for the result
        os.environ.setdefault("RAY_worker_niceness", "0")  # as on a machine of a run (`cluster.local`)
        ray.init(address="local", num_cpus=2, include_dashboard=False)
        stack.callback(ray.shutdown)
        for side in _SIDES:
            for name, encoding, threads, depth in _CASES:
                pictures_s, size = _measured(side, encoding, threads, depth, count=count, batch=batch)
                ratio = pictures_s * _PICTURE_S
                show(f"{side} px, {name}: {pictures_s:.2f} pictures a second, {ratio:.3f} of the denoiser")
                figures |= {f"{name}_{side}_ratio": ratio, f"{name}_{side}_bytes": size}
                if name == "ours":
                    figures[f"pictures_s_{side}"] = pictures_s
                    bars[f"{name}_{side}_ratio"] = BAR
            figures[f"best_{side}_ratio"] = _best(side, count=count, batch=batch)
            figures[f"encode_cpu_s_{side}"] = _encode_cpu_s(side)
    return finish("store", figures, bars)


# Name, encoding, threads, and units at the slot at once; one unit at a time is no overlap.
_CASES = (
    ("ours", Encoding(), 4, 2),
    ("level6", Encoding(png_level=6), 4, 2),
    ("webp", Encoding("webp"), 4, 2),
    ("no_overlap", Encoding(), 4, 1),
    ("serial", Encoding(png_level=6), 1, 1),
)


def _measured(side: int, encoding: Encoding, threads: int, depth: int, *, count: int, batch: int) -> tuple[float, int]:
    """Pictures a second, from the first unit to the last outcome, and bytes of a picture."""
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="perfusion-store-"))
        executor = stack.enter_context(
            closing(
                RayExecutor(
                    partial(FakeDenoiser, _settings(root, encoding, threads), _PICTURE_S),
                    slots=1,
                    resources=SlotResources(num_cpus=0, threads=1),
                )
            )
        )
        while not executor.slots():
            failed = executor.wait(1.0)
            assert not failed, failed
        outcomes: list[Outcome] = []
        begin = time.perf_counter()
        schedule(
            _Source(side, count, batch),
            executor,
            outcomes.extend,
            policy=Policy(render_depth=depth),
            clock=SystemClock(),
            stop=lambda _: None,
        )
        seconds = time.perf_counter() - begin
        written = sum(file.stat().st_size for file in Path(root).glob("images/*/*"))
        assert len(outcomes) == count
        assert written == sum(outcome.bytes or 0 for outcome in outcomes)
        return count / seconds, written // count


def _best(side: int, *, count: int, batch: int) -> float:
    """What no overlap can exceed: the seconds of the denoiser, and of the last batch's writing."""
    with tempfile.TemporaryDirectory(prefix="perfusion-store-") as root:
        worker = FakeDenoiser(_settings(root, Encoding(), 4), 0.0)
        worker.setup()
        source, times = _Source(side, 3 * batch, batch), list[float]()
        while (unit := source.next()) is not None:
            end = worker.compute(unit)
            begin = time.perf_counter()
            end()
            times.append(time.perf_counter() - begin)
        worker.close()
    return count * _PICTURE_S / (count * _PICTURE_S + min(times))


def _encode_cpu_s(side: int) -> float:
    """Processor seconds to encode a picture. If the cores give less than that in 0.2 s, they are the limit."""
    pictures = _like_renders(side)
    begin = time.thread_time()
    for pixels in pictures:
        encode_render(pixels, render_key="k" * 64, weights=(), base_digest="b" * 64)
    return (time.thread_time() - begin) / len(pictures)


class _Source:
    """`pipeline.engine.backlog.WorkSource` of renders of one size."""

    def __init__(self, side: int, count: int, batch: int) -> None:
        shape = RenderShape(side, side, 50, 6.0, "ddim")
        tasks = [
            RenderTask(digest(f"{side} {number}".encode()), "", "", (), 0, 0.6, 0.15, "local", shape)
            for number in range(count)
        ]
        self._units = [RenderUnit(f"u{at}", tuple(tasks[at : at + batch])) for at in range(0, count, batch)]
        self._left = count

    def next(self) -> Unit | None:
        """The next batch."""
        return self._units.pop(0) if self._units else None

    def record(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Counts."""
        self._left -= len(outcomes)
        return []

    def unfinished(self) -> int:
        """Renders without an outcome."""
        return self._left


def _like_renders(side: int) -> list[NDArray[np.uint8]]:
    """Four pictures that take as many bytes as PNG as photos of products do: 0.3 MB at 512 px, 1.1 MB at 1024 px."""
    found = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
        frequency[0, 0] = 1.0
        planes = []
        for _ in range(4):
            noise = random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)
            plane = np.fft.irfft2(noise / frequency**1.8, s=(side, side))
            planes.append((plane - plane.mean()) / plane.std())
        pixels = 50 * np.stack([0.8 * planes[3] + 0.2 * plane for plane in planes[:3]], axis=-1) + 128
        found.append((pixels + 0.7 * random.normal(size=pixels.shape)).clip(0, 255).astype(np.uint8))
    return found
