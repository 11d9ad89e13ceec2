"""Scores of real renders, cells that are measured once, the choice of settings, and one whole run."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion_ops.base.folder import describe
from perfusion_ops.compare.methods import Contestant, NoSettings
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.embedded import embedded_scorers
from perfusion_ops.mini.methods import __main__ as command
from perfusion_ops.mini.methods import measure
from perfusion_ops.mini.methods.cells import (
    SCHEMA,
    Cell,
    Row,
    base_identity,
    missing,
    pictures_of,
    read,
    rows_of,
    write,
)
from perfusion_ops.mini.methods.entrants import contestants
from perfusion_ops.mini.methods.measure import real_pictures
from perfusion_ops.mini.methods.scores import Judges, Score
from perfusion_ops.mini.methods.sets import asks, products
from perfusion_ops.mini.methods.sizes import SIZES, Amount
from perfusion_ops.mini.methods.tuning import Plan, by_product, choose, rule
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.scoring.models import load_scorers


@pytest.fixture(scope="module")
def judges():
    loaded = load_scorers(embedded_scorers(), device="cpu")
    return Judges(loaded.image, loaded.text, loaded.reader, strangers=10)


def test_real_renders_have_high_scores_and_another_product_s_do_not(judges):
    [item, *_, other] = products("tuning", 13)  # two mugs
    asked = asks(item, 20)
    real = judges.score(item, asked, real_pictures(item, [(ask, 0) for ask in asked]))
    false = judges.score(item, asked, real_pictures(other, [(ask, 0) for ask in asked]))
    assert [score.identity is None for score in real] == [not ask.alone for ask in asked]
    assert [score.overall is None for score in real] == [not ask.same_look for ask in asked]
    assert [score.attribute is None for score in real] == [ask.kind == "context" for ask in asked]
    for name, least, apart in (("identity", 0.85, 0.3), ("nearest", 0.9, 0.5), ("overall", 0.85, 0.3)):
        ours, theirs = (
            np.mean([getattr(score, name) for score in each if getattr(score, name) is not None])
            for each in (real, false)
        )
        assert ours > least
        assert ours - theirs > apart
    assert np.mean([score.obeyed for score in real]) >= 0.9
    # Obedience does not know which mug it is, except that the judge looks for this one to tell its size.
    assert np.mean([score.obeyed for score in false]) >= 0.75
    assert all(score.obeyed == (score.context and score.noun and score.attribute is not False) for score in real)


AMOUNT = Amount(products=2, prompts=2, seeds=1, steps=3, drift_prompts=0)


def cell(**changes) -> Cell:
    values = {
        "set": "a", "method": "word", "settings": {"lr": 0.1}, "photos": 4, "guidance": 3.0, "amount": AMOUNT,
        "budget": Budget(), "strangers": 5, "base": "b", "scorers": "s",
    }  # fmt: skip
    return Cell(**(values | changes))


def row(instance=1, overall=0.5, nearest=True, obeyed=True, kind="context") -> Row:
    score = Score(
        identity=0.5, nearest=nearest, context=True, noun=True, text=0.6, attribute=None, obeyed=obeyed, color=0.5,
        pattern=0.5, edges=0.5, overall=overall, legible=False,
    )  # fmt: skip
    return Row(
        category="mug", instance=instance, pattern="star", number=0, kind=kind, prompt="a {}", seed=3, score=score,
        drift=None, train_s=1.0, draw_s=0.1, numbers=7, size=14,
    )  # fmt: skip


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_a_cell_is_read_as_it_was_written(tmp_path):
    one, shown = cell(), pictures(2)
    assert missing([one], tmp_path) == [one]
    with pytest.raises(FileNotFoundError):
        read(one, tmp_path)
    write(one, tmp_path, [row(1, overall=None), row(2)], shown)
    assert missing([one], tmp_path) == []
    np.testing.assert_array_equal(pictures_of(one, tmp_path), shown)
    stored, meant = rows_of(one, tmp_path)[1].model_dump(), row(2).model_dump()
    assert stored.pop("score") == pytest.approx(meant.pop("score"))
    assert stored == pytest.approx(meant)
    columns = read(one, tmp_path)
    assert columns["instance"] == [1, 2]
    assert columns["own_pattern"] == ["star", "star"]
    assert columns["pattern"] == [0.5, 0.5]
    assert columns["overall"] == [None, 0.5]
    assert json.loads(columns["settings"][0]) == {"lr": 0.1}
    assert "picture" not in columns
    assert Cell.model_validate_json(pq.read_schema(one.file(tmp_path)).metadata[b"cell"]) == one
    assert pq.read_schema(one.file(tmp_path)).names == SCHEMA.names
    assert [path.suffix for path in (tmp_path / "cells").iterdir()] == [".parquet"]


def test_everything_that_decides_a_cell_decides_its_file(tmp_path):
    changes = {
        "set": "b", "method": "real", "settings": {"lr": 0.2}, "photos": 1, "guidance": 4.0,
        "amount": AMOUNT.model_copy(update={"steps": 4}), "budget": Budget(steps=3), "strangers": 6, "base": "c",
        "scorers": "t",
    }  # fmt: skip
    assert set(changes) == set(Cell.model_fields)
    files = {cell().file(tmp_path), *(cell(**{name: value}).file(tmp_path) for name, value in changes.items())}
    assert len(files) == 1 + len(changes)
    alike = [name for name in changes if cell(**{name: changes[name]}).training == cell().training]
    assert alike == ["guidance", "amount"]  # of the same products, however many pictures of each
    more = cell(amount=AMOUNT.model_copy(update={"products": 3}))
    assert more.training != cell().training


def test_the_rule_averages_products_and_then_pictures(tmp_path):
    rows = [row(1, 0.2), row(1, 0.4), row(2, 0.9, nearest=False), row(2, None, obeyed=False)]
    write(cell(), tmp_path, rows, pictures(4))
    columns = read(cell(), tmp_path)
    assert by_product(columns, "overall").tolist() == pytest.approx([0.3, 0.9])
    assert by_product(columns, "nearest").tolist() == [1, 0.5]
    assert np.isnan(by_product(columns, "attribute")).all()
    assert rule(columns) == pytest.approx(3 / (1 / 0.75 + 1 / 0.6 + 1 / 0.75))


class Lr(NoSettings):
    """Settings of a method that nobody runs."""

    lr: float


def test_the_best_setting_and_guidance_are_chosen(tmp_path):
    size = SIZES["full"].model_copy(update={"guidances": (3.0, 7.0), "tuning": AMOUNT, "settings": 2})
    plan = Plan(size, "b", "s")
    method = Contestant("x", (Lr(lr=1), Lr(lr=2), Lr(lr=3)), None, None)
    tried = plan.tuning(method)
    assert [[(each.settings["lr"], each.guidance) for each in cells] for cells in tried] == [
        [(1, 3), (1, 7)], [(2, 3), (2, 7)],
    ]  # fmt: skip
    scores = {(1, 3): 0.5, (1, 7): 0.6, (2, 3): 0.7, (2, 7): 0.7}
    for each in (each for cells in tried for each in cells):
        with pytest.raises(FileNotFoundError):
            choose(plan, method, tmp_path)
        write(each, tmp_path, [row(1, scores[each.settings["lr"], each.guidance])], pictures(1))
    choice = choose(plan, method, tmp_path)
    assert (choice.place, choice.guidance) == (1, 3.0)  # of equals the first
    assert choice.value == pytest.approx(3 / (1 + 1 + 1 / 0.7))
    final = plan.final(choice, method, "b", 1)
    assert [(each.set, each.settings["lr"], each.guidance, each.photos) for each in final] == [
        ("b", 2, 3.0, 1), ("b", 2, 7.0, 1),
    ]  # fmt: skip
    assert [each.amount for each in final] == [size.final, size.front]
    untuned = Plan(SIZES["ci"], "b", "s")
    assert untuned.tuning(method) == []
    assert choose(untuned, method, tmp_path).guidance == SIZES["ci"].guidance


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A whole measurement at the smallest size in two calls, the first of three methods alone."""
    out = tmp_path_factory.mktemp("methods")
    names = list(contestants())
    first = command.measure(SIZES["smoke"], out, methods=names[:3])
    whole = command.measure(SIZES["smoke"], out)
    return first, whole, out


def test_a_whole_run_measures_every_method(smoke):
    first, whole, _ = smoke
    names = list(contestants())
    # Two guidance scales in the tuning and in the end, and real renders.
    assert whole.cells == whole.complete == 4 * len(names) + 1
    assert first.complete == first.measured == 4 * 3 + 1
    assert {len(each.front) for each in whole.lines[1:]} == {2}
    assert not first.bars
    assert whole.measured == whole.complete - first.complete
    assert [each.method for each in whole.lines] == ["real", *names]
    assert not whole.ok  # nothing is learned in one step
    real, lines = whole.lines[0], {each.method: each for each in whole.lines[1:]}
    assert real.figures["overall"].mean > 0.8 > lines["dreambooth"].figures["overall"].mean
    assert {name for name, each in lines.items() if each.drift == 0} == {
        *("word", "ours-paper", "ours-offset", "ours-references", "ours-convolutions", "textual-inversion")
    }
    assert all(lines[name].drift > 0 for name in ("custom-diffusion", "dreambooth"))
    assert all(0 < real.frechet_distance < each.frechet_distance for each in lines.values())
    assert len(whole.choices) == len(names)
    table = command.table(whole)
    assert all(name in table for name in names)
    assert f"{whole.cells} of {whole.cells} cells complete" in table


def test_a_run_leaves_rows_figures_and_sheets(smoke):
    _, whole, out = smoke
    rows = pq.read_table(out / "rows.parquet")
    finals = 1 + len(whole.choices)
    assert rows.num_rows == 2 * finals + len(whole.choices)
    assert rows.schema.names == [name for name in SCHEMA.names if name != "picture"]
    assert set(rows["set"].to_pylist()) == {"a"}
    with Image.open(out / "sheet-a-photos2.png") as sheet:
        assert sheet.height == finals * 128
    with Image.open(out / "front-a-photos2.png") as figure:
        assert len(figure.convert("RGB").getcolors(2**20)) > 8
    assert json.loads((out / "methods.json").read_text()) == json.loads(whole.model_dump_json())
    assert len((out / "tuning.txt").read_text().splitlines()) == 2 * len(whole.choices)


def test_what_is_complete_is_not_measured_again(smoke, monkeypatch, capsys):
    _, whole, out = smoke
    monkeypatch.setattr(measure, "_run_group", lambda *_: pytest.fail("a cell was measured again"))
    files = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert command.main(["--out", str(out), "--size", "smoke"]) == 1
    printed = capsys.readouterr().out.splitlines()
    last = json.loads(printed[-1])
    assert (last["name"], last["measured"], last["complete"], last["ok"]) == ("methods", 0, whole.cells, False)
    assert {bar["name"]: bar["met"] for bar in last["bars"]}["set a, 2 photos: real overall"] in {True, False}
    assert files == {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}


def test_an_interrupted_cell_is_measured_again(smoke, monkeypatch):
    _, _, out = smoke
    file, _ = (out / "cells").glob("a-word-*.parquet")
    file.unlink()
    assert command.measure(SIZES["smoke"], out, methods=["word"], sets=["a"]).measured == 1
    assert file.is_file()


def test_pictures_are_judged_again_without_being_drawn_again(smoke, monkeypatch):
    _, whole, out = smoke
    monkeypatch.setattr(measure, "_run_group", lambda *_: pytest.fail("a cell was measured again"))
    [file] = (out / "cells").glob("a-real-*.parquet")
    before = pq.read_table(file)
    columns = [name for name in before.schema.names if name not in Score.model_fields]
    place = before.schema.get_field_index("overall")
    zeros = pa.array([0.0] * before.num_rows, pa.float32())
    spoilt = before.set_column(place, before.schema.field("overall"), zeros)
    pq.write_table(spoilt, file)
    again = command.measure(SIZES["smoke"], out, rescore=True)
    after = pq.read_table(file)
    assert after.select(columns) == before.select(columns)
    assert after["overall"].to_pylist() == before["overall"].to_pylist()
    assert [each.figures for each in again.lines] == [each.figures for each in whole.lines]


def test_a_record_holds_all_but_the_pictures(smoke, tmp_path, monkeypatch, capsys):
    _, whole, out = smoke
    record, elsewhere = tmp_path / "record", tmp_path / "elsewhere"
    kept = command.measure(SIZES["smoke"], out, record=record)
    assert {path.name for path in (record / "cells").iterdir()} == {path.name for path in (out / "cells").iterdir()}
    assert not any("picture" in pq.read_schema(path).names for path in (record / "cells").iterdir())
    files = {path: path.read_bytes() for path in (record / "cells").iterdir()}

    monkeypatch.setattr(measure, "_run_group", lambda *_: pytest.fail("a cell was measured again"))
    brought = command.measure(SIZES["smoke"], elsewhere, record=record)
    assert [each.model_dump() for each in brought.lines] == [each.model_dump() for each in kept.lines]
    assert (brought.measured, brought.complete, brought.bars) == (0, whole.cells, kept.bars)
    assert not list(elsewhere.glob("sheet-*"))
    assert {path: path.read_bytes() for path in (record / "cells").iterdir()} == files

    arguments = ["--out", str(elsewhere), "--size", "smoke", "--record", str(record), "--rescore"]
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "has no pictures to be judged again: delete it" in capsys.readouterr().err


def test_our_own_defaults_do_not_make_the_base_another_one():
    folder = describe(base_folder())
    changed = {"training": {"steps": 7}, "sampling": {"guidance": 3.0}, "name": "other"}
    other = replace(folder, settings=folder.settings.model_copy(update=changed))
    assert base_identity(other) == base_identity(folder)
    for change in ({"templates": ("a {}",)}, {"sampling": {"scheduler": "euler"}}, {"mask_layers": ("x",)}):
        moved = replace(folder, settings=folder.settings.model_copy(update=change))
        assert base_identity(moved) != base_identity(folder)


def test_unknown_methods_and_a_missing_package_end_with_a_message(tmp_path, capsys, monkeypatch):
    for arguments, message in (
        (["--method", "magic"], "there is no method 'magic': use one of word, ours-paper"),
        (["--photos", "3"], "size smoke has no measurement with 3 photos: use one of 2"),
        ([], "pip install 'peft"),
    ):
        if not arguments:
            monkeypatch.setitem(__import__("sys").modules, "peft", None)
        with pytest.raises(SystemExit) as exit_:
            command.main([*arguments, "--out", str(tmp_path / "out"), "--size", "smoke"])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
