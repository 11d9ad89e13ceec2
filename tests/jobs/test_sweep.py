"""A sweep with real workers and scorers: it trains nothing, keeps to its own root, and its points are used later."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.output import OK, STOPPED
from jobs.sweep import Scoring, sweep
from perfusion_ops.mini.embedded import embedded_scorers
from pipeline.contract.units import TrainUnit
from pipeline.storage.objects import Storage
from pipeline.sweep.front import Measured, Select, choose
from pipeline.sweep.grid import SweepError, make_grid
from pipeline.tables.views import query
from tests.support.command import only_object
from tests.support.runs import Engines, run_settings
from tests.support.shop import CONCEPTS, go, open_shop, stock

BASE_GUIDANCE = 4.5  # of the embedded base's perfusion.json
GRID = make_grid({"strength": [0.5, 2], "guidance": [2, 6]})
OFFSET = {"recipe": "offset", "steps": 3, "batch": 1, "lr_value": 0.2}
PROMPTS = [
    {"prompt": "a photo of a {product} on the beach", "seed": 1},
    {"prompt": "a {product}", "seed": 2, "guidance": 3.0},
    {"prompt": "a {mug-1} next to a {bag-1}", "seed": 3},
]


class Swept:
    """A shop that was run and then swept."""

    def __init__(self, folder):
        self.shop = open_shop(folder)
        stock(self.shop, CONCEPTS, PROMPTS)
        self.root = str(folder / "root")
        self.first, _ = go(self.root, self.shop, train=OFFSET)
        self.before = self.listed()
        self.settings = run_settings(self.root, self.shop, train=OFFSET)

    def listed(self):
        return {path for path, _ in Storage(self.root).list() if not path.startswith("sweeps/")}

    def sweep(self, engines=None, select="knee", **changes):
        given = {"grid": GRID, "selection": None, "scoring": Scoring(embedded_scorers()), "json": True, **changes}
        return sweep(self.settings, select=Select(select), make_engine=engines or Engines(), **given)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return Swept(tmp_path_factory.mktemp("sweep"))


def rows(uri):
    return pq.read_table(uri.removeprefix("file://")).to_pylist()


def test_a_sweep_chooses_from_what_its_tables_say(swept, capsys):
    engines = Engines()
    assert swept.sweep(engines) == OK
    printed = capsys.readouterr()
    found = only_object(printed.out)
    assert printed.err.count("publishing run") == 1, "the stages of the first point alone"
    assert swept.listed() == swept.before, "nothing in the root but the folder of sweeps"
    assert not any(isinstance(unit, TrainUnit) and unit.tasks for unit in engines.units if trained(swept, unit))
    assert [point["settings"] for point in found["points"]] == list(GRID.points)
    assert (found["concepts"], found["without"], found["unmet"], found["failed_rows"]) == (3, 0, 0, 0)

    means = query(
        Storage(f"{swept.root}/sweeps"),
        "SELECT concept_id, run_id, avg(text_similarity) AS text, avg(image_similarity) AS image, count(*) AS renders "
        "FROM renders JOIN scores USING (run_id, render_key) WHERE len(concept_ids) = 1 GROUP BY ALL",
    ).to_pylist()
    numbers = {point["run_id"]: number for number, point in enumerate(found["points"])}
    assert len(means) == 3 * len(GRID.points)
    for row in rows(found["points_file"]):
        mine = [
            Measured(numbers[each["run_id"]], each["text"], each["image"], each["renders"])
            for each in means
            if each["concept_id"] == row["concept_id"]
        ]
        best = choose(sorted(mine, key=lambda each: each.point), Select("knee")).chosen
        assert {name: row[name] for name in ("strength", "guidance")} == GRID.points[best.point]
        assert (row["bias"], row["temperature"], row["lock"]) == (None, None, None)
        assert row["text_similarity"] == pytest.approx(best.obedience)
        assert row["image_similarity"] == pytest.approx(best.identity)
        assert (row["renders"], row["select"], row["scorer"]) == (2, "knee", "mini")
    grid = rows(str(Path(found["points_file"]).parent / "grid.parquet"))
    assert len(grid) == 12
    assert sum(row["chosen"] for row in grid) == 3
    page = Path(found["report"].removeprefix("file://")).read_text()
    assert page.startswith("<!doctype html>")
    for row in CONCEPTS:
        assert row["concept_id"] in page
    assert page.count("<svg") == 3
    assert "data:image/webp" in page
    assert f"points: {found['points_file']}" in page


def trained(swept, unit):
    """Whether a worker really trained: concepts of the root are adopted."""
    return isinstance(unit, TrainUnit) and not all(
        (Path(swept.root) / "weights" / task.key[:2] / f"{task.key}.safetensors").exists() for task in unit.tasks
    )


def test_the_same_sweep_is_a_no_op(swept, capsys):
    assert swept.sweep() == OK
    first = only_object(capsys.readouterr().out)
    engines = Engines()
    assert swept.sweep(engines) == OK
    assert engines.units == []
    assert only_object(capsys.readouterr().out) == first
    assert swept.sweep(engines, select="harmonic") == OK
    other = only_object(capsys.readouterr().out)
    assert engines.units == [], "another rule renders nothing"
    assert other["sweep_id"] != first["sweep_id"]


def test_a_later_run_uses_the_points_unless_a_row_says_otherwise(swept, capsys):
    assert swept.sweep() == OK
    found = only_object(capsys.readouterr().out)
    points = {row["concept_id"]: row for row in rows(found["points_file"])}
    later, engines = go(swept.root, swept.shop, train=OFFSET, points=found["points_file"])
    assert later.run_id != swept.first.run_id
    assert not [unit for unit in engines.units if isinstance(unit, TrainUnit)]
    renders = query(Storage(swept.root), "FROM renders WHERE run_id = ?", [later.run_id]).to_pylist()
    sweeps = query(Storage(f"{swept.root}/sweeps"), "FROM renders").to_pylist()
    strengths = {task.key: task.strength for unit in engines.units for task in unit.tasks}
    assert len(renders) == 7
    for row in renders:
        assert row["status"] == "ok"
        if len(row["concept_ids"]) > 1:
            assert row["guidance"] == BASE_GUIDANCE
            assert row["render_key"] not in strengths, "several concepts have the spec's settings: the render exists"
            continue
        point = points[row["concept_id"]]
        assert row["guidance"] == (3.0 if row["manifest_row"] == 2 else point["guidance"])
        [same] = {
            each["render_key"]
            for each in sweeps
            if each["run_id"] == point["run_id"]
            and (each["manifest_row"], each["concept_id"]) == (row["manifest_row"], row["concept_id"])
        }
        assert row["render_key"] == same, "the picture that the sweep has scored"
        assert strengths.get(row["render_key"], point["strength"]) == point["strength"]
    assert go(swept.root, swept.shop, train=OFFSET, points=found["points_file"])[0].repeated


@pytest.mark.long
def test_a_stopped_sweep_resumes(tmp_path, capsys):
    fresh = Swept(tmp_path)
    assert fresh.sweep(Engines(stop_after=2)) == STOPPED
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the sweep stopped at point 1: it was asked to end; run the same command again to resume" in printed.err
    assert fresh.sweep() == OK
    assert json.loads(capsys.readouterr().out)["concepts"] == 3


@pytest.mark.long
def test_concepts_that_no_run_has_trained_are_trained_once(tmp_path, capsys):
    shop = open_shop(tmp_path)
    stock(shop, CONCEPTS, PROMPTS[:1])
    root = str(tmp_path / "root")
    settings = run_settings(root, shop, train=OFFSET)
    one = make_grid({"guidance": [2, 6]})
    arguments = {"grid": one, "select": Select(), "selection": None, "scoring": Scoring(embedded_scorers())}
    engines = Engines()
    assert sweep(settings, **arguments, json=False, make_engine=engines) == OK
    text = capsys.readouterr().out
    assert "3 concepts at 2 points" in text
    assert "add this line to the spec: points: " in text
    assert sum(len(unit.tasks) for unit in engines.units if isinstance(unit, TrainUnit)) == 3
    later, engines = go(root, shop, train=OFFSET)
    assert later.published.statuses["concepts"] == {"ok": 3}
    concepts = query(Storage(root), "SELECT accelerator_s FROM concepts").to_pylist()
    assert {row["accelerator_s"] for row in concepts} == {0.0}, "their weights came back from the sweep"


def test_both_scores_are_needed(swept):
    scorers = embedded_scorers()
    without = type(scorers)("mini", scorers.text, None, scorers.reader)
    with pytest.raises(
        SweepError, match="a sweep needs both scores: give --scorer a CLIP folder, or --text and --image"
    ):
        swept.sweep(scoring=Scoring(without))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dial", "guidance"], "--dial 'guidance' is not NAME=A,B,...: write it as in --dial guidance=3,4.5,7"),
        (["--dial", "steps=20"], "'steps' cannot be swept: the dials are guidance, strength, bias, temperature, lock"),
        (["--select", "best"], "--select is 'best': give knee, harmonic or min-identity=X with X from -1 to 1"),
        (["--limit", "1", "--sample", "1"], "--limit and --sample exclude each other: give one of them"),
        (["--device", "tpu"], "there is no device 'tpu': give auto, cpu or cuda"),
    ],
)
def test_wrong_options(perfusion, shop, words, message):
    code, out, err = perfusion("sweep", shop.spec("good"), *words)
    assert (code, out) == (2, "")
    assert message in err
