"""`perfusion retry`: which rows it does again, under which settings, and what it says when there are none."""

import json
import re

import pytest

from pipeline.clock import SystemClock
from pipeline.plan.retry import DEAD_LETTER
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage
from tests.support.command import all_failed, only_object


def test_retry_of_a_run_without_failures_says_so(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    refused = "1 bad_id, 1 concept_invalid, 1 image_missing, 1 no_placeholder, 1 unknown_concept"
    assert perfusion("retry", done.root, run_id) == (
        0,
        f"no row of run {run_id} failed: nothing to do\n  5 rows were refused before any work ({refused}): "
        "correct what is wrong, then use `perfusion run`\n",
        "",
    )
    code, out, _ = perfusion("retry", done.root, run_id, "--code", "timed_out", "--json")
    assert (code, only_object(out)["rows"], only_object(out)["refused"]) == (0, 0, {})
    _, out, _ = perfusion("retry", done.root, run_id, "--code", "image_missing")
    assert f"no row of run {run_id} failed with image_missing: nothing to do" in out
    assert "1 row was refused before any work (1 image_missing): " in out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--code", "oops"), "'oops' is not an error code: give one of bad_character, "),
        (("--code", ""), "'' is not an error code: give one of "),
        (("--code", "internal", "--dead-letters"), "--failed, --code and --dead-letters exclude each other"),
        (("--failed", "--only", "failed"), "--failed, --code and --dead-letters exclude each other"),
        (("--only", "everything"), "give --failed, --code CODE or --dead-letters"),
        (("--only", "code=oops"), "'oops' is not an error code"),
        (("run-none",), "there is no finished run 'run-none'"),
    ],
)
def test_retry_of_nothing_is_2(done, perfusion, words, why):
    code, _, err = perfusion("retry", done.root, *words)
    assert code == 2
    assert why in err


def test_retry_of_rows_whose_photos_are_still_missing_says_so_and_is_2(done, perfusion, tmp_path):
    moved = all_failed(done, tmp_path / "moved")
    photos = [path for path in (done.folder / "catalog").rglob("*.png") if "mask" not in str(path)]
    for path in photos:
        path.rename(path.with_suffix(".away"))
    try:
        code, out, err = perfusion("retry", moved)
    finally:
        for path in photos:
            path.with_suffix(".away").rename(path)
    assert (code, out) == (2, "")
    assert "2 concepts cannot be done again: the first of them: row 1 of the concepts manifest, " in err
    assert "is still refused (image_missing, column images: " in err
    assert "have changed" not in err
    code, _, err = perfusion("retry", moved, "--set", "train.steps=7")
    assert code == 2
    assert "photos, masks, start or training settings of " in err
    assert "image_missing" not in err.splitlines()[-1]


# Options, and the words by which the new run knows its rows: an unfinished retry of an earlier version is resumed.
RETRIES = (
    ((), "failed"),
    (("--failed",), "failed"),
    (("--dead-letters",), "from=dead-letter"),
    (("--code", "worker_died"), "code=worker_died"),
    (("--only", "failed"), "failed"),
    (("--only", "from=dead-letter"), "from=dead-letter"),
    (("--only", "code=worker_died"), "code=worker_died"),
)


def test_retry_help_lists_the_codes_of_dead_letters(perfusion):
    _, out, _ = perfusion("retry", "--help")
    listed = " ".join(out.split()).partition("--dead-letters retry only ")[2].partition(" --")[0]
    assert set(listed.split(", ")) == DEAD_LETTER
    assert "--only" not in out


def test_retry_takes_the_settings_of_the_run_from_where_it_lies_now(done, perfusion, monkeypatch, tmp_path):
    moved, ran = all_failed(done, tmp_path / "moved"), []
    monkeypatch.setattr("jobs.run.run", lambda settings, **given: ran.append((settings, given)) or 3)
    for words, which in RETRIES:
        code, _, err = perfusion("retry", moved, *words, "--set", "cluster.slots=3")
        assert code == 3
        assert ("old spelling" in err) == ("--only" in words)
        run_id = read_status(Storage(str(moved)), SystemClock())[-1].run_id
        assert re.search(rf"retrying [1-9]\d* rows? of run {run_id}", err)
        settings, given = ran.pop()
        stored = json.loads((moved / "runs" / run_id / "spec.json").read_text())["settings"]
        cluster = {**stored["cluster"], "slots": 3, "address": "local"}
        assert settings.model_dump(mode="json") == {**stored, "root": f"file://{moved}", "cluster": cluster}
        assert len(given["selection"].keys.concepts) >= 1
        assert given["selection"].name == f"retry {run_id} {which}", "it is part of the identity of the new run"
