"""Executes a sweep: one run per point of the grid, under a root of its own, then scores, fronts and chosen points."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

from cluster.metrics import Metrics
from jobs.output import FAILED_ROWS, OK, STOPPED, complain, counted, location, say, say_json, tell_notices
from jobs.placement.engine import engines
from jobs.progress import watching
from jobs.score import score
from perfusion_ops.scoring.choice import ScorerChoice
from pipeline.contract.layout import sweeps_root
from pipeline.database.plandb import PlanDB
from pipeline.observer import Observers
from pipeline.plan.selection import Selection
from pipeline.prepare import check
from pipeline.run import MakeEngine, RunResult, execute
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from pipeline.sweep.front import Select
from pipeline.sweep.grid import Grid, SweepError, default_grid
from pipeline.sweep.measured import measure
from pipeline.sweep.page import write_page
from pipeline.sweep.record import Sweep, write_sweep
from pipeline.sweep.sharing import copy_missing, shared_paths


@dataclass(frozen=True)
class Scoring:
    """How renders are scored: the scorers, the batch, and the device (auto, cpu or cuda)."""

    choice: ScorerChoice
    batch: int = 16
    device: str = "auto"


def sweep(
    settings: RunSettings,
    *,
    grid: Grid | None,
    select: Select,
    selection: Selection | None,
    scoring: Scoring,
    json: bool,
    make_engine: MakeEngine | None = None,
) -> int:
    """Render, score and choose; returns the exit code. Resumes where an earlier call stopped.

    Args:
        settings: the run whose plan is swept. Its file of points is not used.
        grid: what to sweep; default: by the recipe of its training settings.
        select: how a concept's point is chosen.
        selection: a part of the plan; default: all of it.
        scoring: needs a scorer for texts and one for photos.
        json: whether to print one JSON object instead of text.
        make_engine: gives the workers of each run; default: Ray, as the settings say.

    Raises:
        PerfusionError: the sweep cannot start or continue.
    """
    if scoring.choice.text is None or scoring.choice.image is None:
        raise SweepError("a sweep needs both scores: give --scorer a CLIP folder, or --text and --image")
    storage = Storage(settings.root, settings.storage_options or None)
    swept = Storage(sweeps_root(settings.root), settings.storage_options or None)
    under = _with(settings, {}, root=swept.root)
    with redirect_stdout(sys.stderr):
        with watching() as progress, PlanDB(memory_limit=settings.engine.plan_memory) as db:
            checked = check(db, swept, under, progress)
            paths = shared_paths(db, checked.worker.metric_key)
        if not json:
            tell_notices(checked.notices)
        grid = grid or default_grid(settings.training(checked.base).recipe, settings.sampling(checked.drawing))
        copy_missing(storage, swept, paths)
        try:
            runs = _run_points(under, grid, selection, make_engine)
        finally:
            copy_missing(swept, storage, paths)
        if runs is None:
            return STOPPED
        for run in runs:
            score(swept, run.run_id, scoring.choice, batch=scoring.batch, device=scoring.device)
    done = _concluded(swept, runs, grid, select, scoring.choice)
    if json:
        say_json(_summary(done, checked.notices))
    else:
        _tell(done)
    return done.exit_code


def _with(settings: RunSettings, render: Mapping[str, Any], root: str) -> RunSettings:
    """The settings of one point."""
    values = settings.model_dump(mode="json")
    return RunSettings.model_validate(
        {**values, "root": root, "points": None, "render": {**values["render"], **render}}
    )


def _run_points(
    settings: RunSettings, grid: Grid, selection: Selection | None, make_engine: MakeEngine | None
) -> list[RunResult] | None:
    """The run of each point; None if one was stopped."""
    runs: list[RunResult] = []
    with nullcontext(make_engine) if make_engine else engines(settings) as start:
        for number, point in enumerate(grid.points, 1):
            complain(f"point {number} of {len(grid.points)}: {_shown(point)}")
            with watching(brief=number > 1) as progress, Metrics(settings.engine) as metrics:
                result = execute(
                    _with(settings, point, settings.root),
                    make_engine=start,
                    observer=Observers(progress, metrics),
                    selection=selection,
                )
            if result.published is None:
                why = f": {result.summary.stopped}" if result.summary.stopped else ""
                complain(f"the sweep stopped at point {number}{why}; run the same command again to resume")
                return None
            runs.append(result)
    return runs


@dataclass(frozen=True)
class _Finished:
    """A sweep that is written, and what to say about it.

    Attributes:
        found: the sweep.
        points: URI of the file of chosen points.
        page: URI of the report.
        without: concepts without a picture that is scored at every point.
        failed: rows of all runs that are not ok.
    """

    found: Sweep
    points: str
    page: str
    without: int
    failed: int

    @property
    def unmet(self) -> int:
        """Concepts that are below the identity asked for at every point."""
        return sum(not choice.met for choice in self.found.choices.values())

    @property
    def exit_code(self) -> int:
        return FAILED_ROWS if self.failed or self.without else OK


def _concluded(
    storage: Storage, runs: Sequence[RunResult], grid: Grid, select: Select, choice: ScorerChoice
) -> _Finished:
    """Measure the runs, choose the points, and write both files."""
    run_ids = [run.run_id for run in runs]
    measured = measure(storage, run_ids, choice.digest)
    if not measured:
        raise SweepError(
            "no concept has a picture that is scored at every point: "
            f"see `perfusion status {location(storage.root)}` for what failed"
        )
    found = Sweep(grid.points, run_ids, choice.name, choice.digest, select, measured)
    _, points = write_sweep(storage, found)
    without = max(run.planned.work.concepts.rows for run in runs) - len(measured)
    page = write_page(storage, found, points_uri=points, without=without)
    return _Finished(found, points, page, without, sum(map(_failed, runs)))


def _failed(run: RunResult) -> int:
    """Rows of a run that are not ok."""
    tables = run.published.statuses.values() if run.published else ()
    return sum(count for counts in tables for status, count in counts.items() if status != "ok")


def _summary(done: _Finished, notices: Sequence[str]) -> dict[str, Any]:
    found = done.found
    return {
        "sweep_id": found.sweep_id,
        "points": [
            {"settings": point, "run_id": run, "chosen": _times(found, number)}
            for number, (point, run) in enumerate(zip(found.points, found.runs, strict=True))
        ],
        "concepts": len(found.measured),
        "without": done.without,
        "unmet": done.unmet,
        "failed_rows": done.failed,
        "notices": notices,
        "points_file": done.points,
        "report": done.page,
        "exit_code": done.exit_code,
    }


def _tell(done: _Finished) -> None:
    found = done.found
    say(f"{found.sweep_id}: {counted(len(found.measured), 'concept')} at {counted(len(found.points), 'point')}")
    for number, point in enumerate(found.points):
        say(f"  {_shown(point):40} chosen {_times(found, number):,} times")
    if done.unmet:
        say(f"  {counted(done.unmet, 'concept')} below the identity asked for at every point: given their highest")
    if done.without:
        say(f"  {counted(done.without, 'concept')} without a picture that is scored at every point: left to the spec")
    if done.failed:
        say(f"  {counted(done.failed, 'row')} of the runs not ok: see `perfusion status`")
    say(f"  report    {location(done.page)}")
    say(f"  to use it, add this line to the spec: points: {location(done.points)}")


def _times(found: Sweep, point: int) -> int:
    return sum(choice.chosen.point == point for choice in found.choices.values())


def _shown(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items())
