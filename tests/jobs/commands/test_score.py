"""`perfusion score` publishes a table of scores, shows it in the report, and names renders that cannot be read."""

import json
from pathlib import Path

import pytest

from tests.support import scorer_folders as small_scorers
from tests.support.command import only_object, rows_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = small_scorers.all_three(tmp_path_factory.mktemp("scorers"))
    return [word for purpose, folder in found.items() for word in (f"--{purpose}", folder)]


def test_score_publishes_a_table_and_shows_it_in_the_report(done, perfusion, folders, monkeypatch):
    monkeypatch.chdir(done.folder)
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, err = perfusion("score", "results", run_id, *folders, "--json")
    found = only_object(out)
    assert (code, err, found["exit_code"], found["run_id"]) == (0, "", 0, run_id)
    assert (found["rows"], found["added"], found["errors"]) == (2, True, {})
    assert found["scorer"] == "text=dual(clip) image=identity(resnet) reader=reader(resnet)"
    assert 'id="scores"' in (done.folder / found["report"].removeprefix("file://")).read_text()
    sql = "SELECT count(*) AS n FROM scores JOIN renders USING (run_id, render_key) WHERE image_similarity <= 1"
    assert only_object(perfusion("query", "results", sql, "--json")[1]) == {"n": 2}

    newest = only_object(perfusion("status", "results", "--json")[1])["runs"][-1]["run_id"]
    code, out, _ = perfusion("score", "results", *folders[2:4], "--json")
    assert (code, only_object(out)["run_id"]) == (0, newest)

    code, out, _ = perfusion("score", "spoilt.yaml", run_id, *folders)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"run {run_id}: scores of 2 renders by {found['scorer']}, which existed already"
    assert lines[1].split()[:2] == ["text_similarity", f"{found['text_similarity']:.4f}"]
    assert lines[3].split(maxsplit=1) == ["context_correct", "not scored"], "the prompt names no context"
    assert (done.folder / lines[-1].split()[1]).is_file()


def test_a_picture_that_is_gone_is_3_and_stands_in_the_table(done, perfusion, folders):
    run_id = json.loads(done.run.stdout)["run_id"]
    rows = rows_of(done, perfusion, f"SELECT uri FROM renders WHERE run_id = '{run_id}' AND status = 'ok'", "--json")
    picture = Path(json.loads(rows.splitlines()[0])["uri"].removeprefix("file://"))
    data = picture.read_bytes()
    picture.unlink()
    try:
        code, out, err = perfusion("score", done.root, run_id, *folders[:2])
    finally:
        picture.write_bytes(data)
    assert code == 3
    assert "Traceback" not in err
    assert "  1 image_missing: There is no photo at an address in the manifest" in out


def test_score_takes_finished_runs_alone(perfusion, shop, folders, monkeypatch):
    monkeypatch.chdir(shop.folder)
    shop.spec("good")
    code, out, err = perfusion("score", "good.yaml", *folders)
    assert (code, out) == (2, "")
    assert "there is no finished run under good.yaml: see `perfusion status good.yaml`" in err
