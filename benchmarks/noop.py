"""A no-op run: a catalogue with a million existing pictures is run again the next night.

10,000 products with a photograph each and 100 prompts. Manifests, photographs and a million objects exist on this
machine's disk. The run checks both manifests, finds the first run, and checks that each of its objects exists with its
size. The lower bound is to list the objects with their sizes and to join their keys with one column of the published
table.
"""

import argparse
import os
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow.fs import FileSelector, LocalFileSystem

from benchmarks.measure import finish, peak_memory_gb, reset_peak_memory, show
from pipeline.contract.errors import Status
from pipeline.contract.kinds import Counts, PlanCounts
from pipeline.contract.layout import image_path, weights_path
from pipeline.contract.units import Origin, Outcome
from pipeline.database.plandb import PlanDB
from pipeline.prepare import check, make_plan
from pipeline.run import Engine, RunResult, execute
from pipeline.runs.find import find_runs
from pipeline.runs.parts import PartWriter
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from pipeline.worker.settings import WorkerSettings

BAR = 1e6 / 10  # rows per second: a million in under ten seconds
_PROMPTS = 100


class _Stages:
    """Prints the stages and their durations."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", time.perf_counter()

    def stage(self, name: str, detail: str) -> None:
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now
        show(f"{name} {detail}")

    def planned(self, work: PlanCounts) -> None:
        pass

    def begun(self, run: object) -> None:
        pass

    def working(self, pulse: object) -> None:
        pass

    def outcomes(self, outcomes: object) -> None:
        pass


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bar is met."""
    concepts = options.rows or 10_000
    rows = concepts * _PROMPTS
    with tempfile.TemporaryDirectory(prefix="perfusion-noop-") as name:
        folder = Path(name)
        settings = _catalogue(folder, concepts)
        storage = Storage(settings.root)
        _make_everything(settings, storage)
        first = _execute(settings, _Stages())
        assert first.published is not None
        assert first.published.statuses["renders"] == {"ok": rows}
        show("all is there: once more")
        stages = _Stages()
        reset_peak_memory()
        begin = time.perf_counter()
        second = _execute(settings, stages)
        seconds = time.perf_counter() - begin
        stages.stage("end", "")
        assert second.published is not None
        assert second.repeated
        assert second.planned.work.renders == Counts(rows, 0, rows, 0, rows, 0)
        peak_gb = peak_memory_gb()
        bare_s = _bare(folder / "root")
    figures = {
        "rows": rows,
        "seconds": seconds,
        "rows_per_s": rows / seconds,
        **{f"of_it_{stage}_s": taken for stage, taken in stages.seconds.items()},
        "bare_s": bare_s,
        "over_bare": seconds / bare_s,
        "peak_memory_gb": peak_gb,
    }
    return finish("noop", figures, {"rows_per_s": BAR})


def _execute(settings: RunSettings, stages: _Stages) -> RunResult:
    def no_engine(_: WorkerSettings) -> AbstractContextManager[Engine]:
        raise AssertionError("there is something to do")

    return execute(settings, make_engine=no_engine, observer=stages)


def _catalogue(folder: Path, concepts: int) -> RunSettings:
    """Photographs and manifests on disk."""
    photographs = folder / "photographs"
    photographs.mkdir()
    noise = np.random.default_rng(0)
    paths = []
    for number in range(concepts):
        paths.append(str(photographs / f"{number}.png"))
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(paths[-1])
    ids = [f"product-{number}" for number in range(concepts)]
    products = {"concept_id": ids, "superclass": ["mug"] * concepts, "images": [[path] for path in paths]}
    pq.write_table(pa.table(products), folder / "concepts.parquet")
    prompts = [f"a {{product}} in place {number}" for number in range(_PROMPTS)]
    pq.write_table(pa.table({"prompt": prompts}), folder / "prompts.parquet")
    return RunSettings(
        root=str(folder / "root"),
        concepts=str(folder / "concepts.parquet"),
        prompts=str(folder / "prompts.parquet"),
        base="mini",
    )


def _make_everything(settings: RunSettings, storage: Storage) -> None:
    """An object of one byte for every key, recorded in parts of the run that `execute` will then resume."""
    with PlanDB() as db:
        checked = check(db, storage, settings, _Stages())
        make_plan(db, storage, settings, checked)
        writer = PartWriter(storage, find_runs(storage, checked.digest).next, 1, clock=time.monotonic)
        keys = db.connection.execute(
            "SELECT 'concept', concept_key FROM concept_keys UNION ALL SELECT 'render', render_key FROM requests"
        )
        while page := keys.fetchmany(50_000):
            writer.add(_outcome(storage, kind, key) for kind, key in page)
            show(f"{len(page):,} objects more")
        writer.flush()


def _outcome(storage: Storage, kind: str, key: str) -> Outcome:
    path = weights_path(key) if kind == "concept" else image_path(key)
    file = Path(storage.full(path))
    if not file.parent.is_dir():
        file.parent.mkdir(parents=True)
    file.write_bytes(b".")
    origin = Origin.TRAINED if kind == "concept" else Origin.RENDERED
    return Outcome(
        kind=kind,  # pyright: ignore[reportArgumentType]
        key=key, status=Status.OK, origin=origin, uri=storage.uri(path), sha256=key, bytes=1,
        attempts=1, accelerator_s=1.0, batch=8, worker="worker-0", finished_at=1.0,
    )  # fmt: skip


def _bare(root: Path) -> float:
    """Seconds to list every object with its size, and for DuckDB to find every key of the table among them."""
    begin = time.perf_counter()
    paths, sizes = [], []
    for shard in os.scandir(root / "images"):
        for info in LocalFileSystem().get_file_info(FileSelector(shard.path)):
            paths.append(info.path)
            sizes.append(info.size)
    listed = pa.table({"path": paths, "bytes": sizes})
    connection = duckdb.connect()
    [(lost,)] = connection.execute(f"""
        SELECT count(*) FROM '{root}/tables/renders/**/*.parquet' r
        ANTI JOIN (SELECT path[-68:-5] AS render_key, bytes FROM listed) o USING (render_key, bytes)
    """).fetchall()
    assert lost == 0 < listed.num_rows
    return time.perf_counter() - begin
