"""`perfusion run`: its exit codes, what it says, and what a run that has stopped leaves."""

import os
import re
import sys
from contextlib import redirect_stdout

import pytest

from jobs.run import run
from jobs.spec import load_spec
from pipeline.clock import SystemClock
from pipeline.runs.lease import acquire
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage
from tests.support.command import Interrupted, interrupted, only_object, stopped


def test_a_run_that_someone_works_on_is_1(perfusion, shop):
    spec = shop.spec("good")
    with pytest.raises(Interrupted):
        run(load_spec(spec), json=False, make_engine=interrupted)
    [status] = read_status(Storage(str(shop.folder / "results")), SystemClock())
    with acquire(Storage(str(shop.folder / "results")), status.run_id, clock=SystemClock()):
        code, out, err = perfusion("run", spec)
    assert (code, out) == (1, "")
    assert f"run {status.run_id!r} is held by process {os.getpid()}" in err.splitlines()[-1]


def test_stopped_is_4_and_status_tells_running_from_interrupted(perfusion, shop, capsysbinary):
    settings, seen, stdout = load_spec(shop.spec("good")), [], sys.stdout

    def look():
        with redirect_stdout(stdout):  # a run keeps it for its result
            seen.append(perfusion("status", settings.root))

    assert run(settings, json=False, make_engine=stopped(look)) == 4
    assert (
        "stopped with 2 concepts and 2 renders left: it was asked to end; run the same command again to resume"
        in capsysbinary.readouterr().err.decode()
    )
    [(code, out, _)] = seen
    assert code == 0
    assert out.splitlines()[1].split()[3:] == ["running", "none", "of", "2", "none", "of", "2"]
    assert f"is running: process {os.getpid()} on " in out.splitlines()[2]

    code, out, _ = perfusion("status", settings.root)
    assert code == 0
    assert out.splitlines()[1].split()[3] == "interrupted"
    assert "was interrupted: run the command that started it again to resume" in out.splitlines()[2]

    assert run(settings, json=True, make_engine=stopped(lambda: None)) == 4
    found = only_object(capsysbinary.readouterr().out.decode())
    assert (found["exit_code"], found["resumed"], found["left"]) == (4, True, {"concepts": 2, "renders": 2})
    assert (found["files"], found["report"]) == ([], None)
    _, out, _ = perfusion("status", settings.root, "--json")
    [status] = only_object(out)["runs"]
    assert (status["run_id"], status["state"]) == (found["run_id"], "interrupted")


def test_a_run_with_bad_rows_is_3_and_json_alone(done):
    assert done.run.returncode == 3, done.run.stderr
    found = only_object(done.run.stdout)
    assert found["exit_code"] == 3
    assert found["statuses"] == {"concepts": {"invalid": 2, "ok": 2}, "renders": {"invalid": 3, "ok": 2}}
    assert found["codes"]["concepts"] == {"bad_id": 1, "image_missing": 1}
    assert found["left"] == {"concepts": 0, "renders": 0}
    assert len(found["files"]) == 2
    assert "concepts 2/2 | renders 2/2" in done.run.stderr
    assert "Traceback" not in done.run.stderr


def test_the_same_again_reuses_and_tells_what_to_do(done, perfusion, monkeypatch):
    monkeypatch.chdir(done.folder)
    code, out, _ = perfusion("run", "spoilt.yaml")
    assert code == 3
    lines = out.splitlines()
    assert lines[1:4] == [
        "  concepts  2 invalid, 2 ok; 2 of them reused",
        "  renders   3 invalid, 2 ok; 2 of them reused",
        "  nothing to do: everything that can be made exists already",
    ]
    assert re.fullmatch(r"run run-\S+ of \d{4}-\d\d-\d\d already covers this spec \(checked in .*s\)", lines[0])
    assert (
        "  concepts  1 image_missing: There is no photo at an address in the manifest: correct the address, "
        "or put the photo there." in lines
    )
    tables, report = (line.split()[1] for line in lines[-2:])
    assert tables.startswith("results/tables/*/run_date=")
    assert len(list(done.folder.glob(f"{tables}/*.parquet"))) == 2
    assert (done.folder / report).read_text().startswith("<!")


def test_all_good_is_0(done, perfusion):
    spec = done.spec("good")
    code, out, _ = perfusion("run", spec, "--json")
    found = only_object(out)
    assert (code, found["exit_code"]) == (0, 0)
    assert found["reused"] == {"concepts": 2, "renders": 2}
    code, _, _ = perfusion("run", spec)
    assert code == 0
