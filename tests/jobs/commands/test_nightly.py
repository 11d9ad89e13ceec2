"""`perfusion nightly`: one JSON line a night, whatever happens; and the JSON log of such a night."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.logs.events import COMMON, EVENTS
from jobs.results.nightly import FIELDS
from jobs.run import run
from jobs.spec import load_spec
from pipeline.clock import SystemClock
from pipeline.runs.lease import acquire
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage
from tests.support.command import Interrupted, Shop, interrupted, only_object, stopped

PAGE = (Path(__file__).parents[3] / "docs" / "logs.md").read_text()
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
WORDS = [sys.executable, "-m", "jobs"]


def start(*words, log="text", **options):
    """The command in a process of its own."""
    environment = {**ENVIRONMENT, "PERFUSION_LOG": log}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*WORDS, *words], env=environment, **pipes, **options)


def night(*words, log="text"):
    """Exit code, line and stderr of a night."""
    with start("nightly", *words, log=log) as process:
        out, err = process.communicate(timeout=400)
    line = only_object(out)
    assert list(line) == list(FIELDS)
    assert line["exit_code"] == process.returncode
    return line, err


@dataclass
class Nights:
    shop: Shop
    first: dict
    again: tuple  # stdout and stderr of `perfusion run --json` after the first night, with the JSON log
    second: dict
    log: list


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """A night with a bad id, and one with a lost photo, another seed and a damaged file of weights."""
    shop = Shop(tmp_path_factory.mktemp("nights"))
    mug = shop.concepts[0]
    spec = shop.spec("first", concepts=[*shop.concepts, {**mug, "concept_id": "bad id"}])
    first, err = night(spec)
    assert "checking" in err
    with start("run", spec, "--json", log="json") as process:
        again = process.communicate(timeout=400)
    weights = sorted((shop.folder / "results" / "weights").rglob("*.safetensors"))[0]
    weights.write_bytes(b"\0" * weights.stat().st_size)
    lost = {**mug, "concept_id": "lost", "images": ["nowhere.png"], "masks": None}
    spec = shop.spec("second", concepts=[*shop.concepts, lost], seed=5)
    second, err = night(spec, log="json")
    return Nights(shop, first, again, second, [json.loads(line) for line in err.splitlines()])


@pytest.mark.timeout(600)
def test_a_first_night(nights):
    line = nights.first
    assert [line[name] for name in ("state", "exit_code", "resumed", "repeated")] == ["finished", 3, False, False]
    assert line["changes"] == {"concepts": {"new": 2}, "renders": {"new": 2}}
    assert line["work"]["concepts"] == {"rows": 3, "made": 2, "reused": 0, "failed": {"bad_id": 1}}
    assert line["work"]["renders"] == {"rows": 2, "made": 2, "reused": 0, "failed": {}}
    assert line["left"] == {"concepts": 0, "renders": 0}
    assert (line["compared_with"], line["failures"], line["error"]) == (None, None, None)
    assert 0 < line["accelerator_hours"] < line["seconds"] / 3600
    for uri in (*line["tables"].values(), line["report"]):
        path = Path(uri.removeprefix("file://"))
        assert path.is_file() or list(path.glob("*.parquet"))


@pytest.mark.timeout(600)
def test_a_second_night_tells_what_changed_and_which_failures_are_new(nights):
    line = nights.second
    assert [line[name] for name in ("state", "exit_code", "repeated")] == ["finished", 3, False]
    assert line["changes"] == {"concepts": {}, "renders": {"settings": 2}}
    assert line["work"]["concepts"] == {"rows": 3, "made": 0, "reused": 2, "failed": {"image_missing": 1}}
    assert line["work"]["renders"]["made"] == 1
    assert line["work"]["renders"]["failed"] == {"weights_invalid": 1}
    assert line["compared_with"] == nights.first["run_id"] != line["run_id"]
    assert line["failures"] == {
        "concepts": {
            "new": {"image_missing": 1},
            "gone": {"bad_id": 1},
            "delta": {"bad_id": -1, "image_missing": 1},
        },
        "renders": {
            "new": {"weights_invalid": 1},
            "gone": {},
            "delta": {"weights_invalid": 1},
        },
    }


@pytest.mark.timeout(600)
def test_the_json_log_of_a_night(nights):
    """Each line of stderr is an event of the page; of all rows, only the one that failed has a line."""
    for line in nights.log:
        assert line.keys() <= {*COMMON, *EVENTS[line["event"]].fields}, line
    told = {name: [line for line in nights.log if line["event"] == name] for name in EVENTS}
    run_id = nights.second["run_id"]
    names = [line["stage"] for line in told["stage"]]
    assert names == ["base", "validate", "validate", "plan", "start", "publish", "report"]
    [planned], [begun], [task], [end] = (told[name] for name in ("planned", "begun", "task", "end"))
    assert planned["concepts"]["invalid"] == 1
    assert (begun["run_id"], begun["lease"], begun["resumed"]) == (run_id, 1, False)
    assert (task["kind"], task["status"], task["error_code"]) == ("render", "failed", "weights_invalid")
    assert (len(task["key"]), task["run_id"]) == (64, run_id)
    assert told["progress"]
    assert nights.log[-1] is end
    assert (end["exit_code"], end["codes"]["concepts"]) == (3, {"image_missing": 1})
    assert not told["error"]


@pytest.mark.timeout(600)
def test_the_json_log_leaves_stdout_alone(nights):
    out, err = nights.again
    assert (only_object(out)["run_id"], only_object(out)["repeated"]) == (nights.first["run_id"], True)
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["event"] for line in lines} == {"stage", "planned", "end"}
    assert (lines[-1]["run_id"], lines[-1]["statuses"]) == (nights.first["run_id"], only_object(out)["statuses"])


def test_errors_are_one_line(shop, tmp_path):
    spec = shop.spec("shop", concepts=shop.concepts)
    line, err = night(spec, "--set", "concepts=gone.parquet", log="json")
    assert (line["state"], line["exit_code"], line["run_id"], line["work"]) == ("error", 2, None, None)
    assert line["error"]["type"] == "ManifestError"
    assert "gone.parquet" in line["error"]["message"]
    *_, error, end = map(json.loads, err.splitlines())
    assert (error["event"], error["type"], error["exit_code"]) == ("error", "ManifestError", 2)
    assert end["exit_code"] == 2
    line, _ = night(str(tmp_path / "nowhere.yaml"))
    assert (line["exit_code"], line["error"]["type"]) == (2, "SpecError")


def test_a_run_that_someone_works_on_is_one_line(shop):
    spec = shop.spec("shop")
    with pytest.raises(Interrupted):
        run(load_spec(spec), json=False, make_engine=interrupted)
    storage = Storage(str(shop.folder / "results"))
    [status] = read_status(storage, SystemClock())
    with acquire(storage, status.run_id, clock=SystemClock()):
        line, _ = night(spec)
    assert (line["state"], line["exit_code"], line["error"]["type"]) == ("error", 1, "LeaseHeld")
    assert f"is held by process {os.getpid()}" in line["error"]["message"]


def test_wrong_usage_is_one_line():
    line, err = night("spec.yaml", "--frobnicate")
    assert (line["exit_code"], line["error"]["message"]) == (2, "No such option: --frobnicate")
    assert "Usage: perfusion nightly" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_work_is_one_line(shop, number):
    with start("nightly", shop.spec("shop"), log="json") as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "stage"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    line = only_object(out)
    assert (line["state"], line["exit_code"], line["error"]["type"]) == ("error", 130, "KeyboardInterrupt")
    assert process.returncode == 130
    assert json.loads(err.splitlines()[-1])["exit_code"] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_work_ends_every_other_command_alike(shop, number):
    with start("run", shop.spec("shop")) as process:
        assert process.stderr is not None
        assert "reading the base model" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "stopped; run the same command again to resume" in err


def test_a_crash_is_one_line_and_a_traceback(shop, capsysbinary, monkeypatch):
    from jobs.results.nightly import nightly

    monkeypatch.setattr("jobs.results.nightly.newest_whole_run", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        nightly(lambda: load_spec(shop.spec("shop")))
    line = only_object(capsysbinary.readouterr().out.decode())
    assert (line["exit_code"], line["error"]["type"]) == (1, "ZeroDivisionError")


def test_a_night_that_stops_tells_what_is_left(shop, capsysbinary):
    from jobs.results.nightly import nightly

    assert nightly(lambda: load_spec(shop.spec("shop")), make_engine=stopped(lambda: None)) == 4
    found = capsysbinary.readouterr()
    line = only_object(found.out.decode())
    assert (line["state"], line["exit_code"], line["left"]) == ("stopped", 4, {"concepts": 2, "renders": 2})
    assert (line["work"], line["tables"], line["report"]) == (None, None, None)
    assert "run the same command again to resume" in found.err.decode()


def test_the_page_has_every_field():
    assert [name for name, meaning in FIELDS.items() if f"| `{name}` | {meaning} |" not in PAGE] == []
