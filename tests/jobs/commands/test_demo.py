"""`perfusion demo` writes a spec, runs it and scores what was rendered."""

import pytest

from jobs.spec import load_spec
from tests.support.command import only_object, rows_of


def test_demo_writes_a_spec_that_means_the_same_later(perfusion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []

    def remember(settings, *, json):
        ran.append((settings, json))
        return 3

    monkeypatch.setattr("jobs.run.run", remember)
    code, _, err = perfusion("demo", "--folder", "here", "--root", "there", "--products", 2)
    assert code == 3
    assert "the demo did not finish cleanly" in err
    assert ran[0][0].root == str(tmp_path / "there")
    monkeypatch.chdir("/")
    assert load_spec(str(tmp_path / "here" / "spec.yaml")) == ran[0][0]


@pytest.mark.long
def test_demo_scores_what_it_has_rendered(done, perfusion, tmp_path, monkeypatch):
    # The run itself is another test's; here it is one that has ended well.
    monkeypatch.setattr("jobs.run.run", lambda settings, *, json: 0)
    code, out, _ = perfusion("demo", "--folder", tmp_path / "here", "--root", done.root, "--products", 2)
    assert code == 0
    assert "by mini" in out
    sql = "SELECT count(*) AS n FROM scores WHERE scorer = 'mini' AND image_similarity BETWEEN -1 AND 1"
    assert only_object(rows_of(done, perfusion, sql, "--json"))["n"] > 0
    code, out, _ = perfusion("demo", "--folder", tmp_path / "here", "--root", done.root, "--products", 2, "--json")
    assert (code, out) == (0, "")
