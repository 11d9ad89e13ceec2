"""`perfusion status` shows the runs of a root, and follows one of them until it ends."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from jobs.run import run
from jobs.spec import load_spec
from tests.support.command import only_object, stopped


@contextmanager
def watching(*words):
    """`perfusion status --watch` in a process of its own."""
    command = [sys.executable, "-m", "jobs", "status", *words, "--watch", "--every", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process


def test_status_of_finished_runs(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, _ = perfusion("status", done.root)
    first = next(line.split() for line in out.splitlines() if line.startswith(run_id))
    assert code == 0
    assert " ".join(first[3:]) == "finished 2 invalid, 2 ok of 4 3 invalid, 2 ok of 5"
    code, out, _ = perfusion("status", done.root, run_id, "--json")
    [status] = only_object(out)["runs"]
    assert (status["state"], status["statuses"]["concepts"]) == ("finished", {"invalid": 2, "ok": 2})


def test_the_watch_of_a_finished_run_ends_at_once(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, _ = perfusion("status", done.root, "--watch")
    assert code == 0
    assert f"| {run_id} finished | concepts 2 invalid, 2 ok | renders 3 invalid, 2 ok\n" in out
    code, out, _ = perfusion("status", done.root, run_id, "--watch", "--json")
    assert (code, only_object(out)["state"], only_object(out)["left_s"]) == (0, "finished", None)


@pytest.mark.timeout(120)
def test_a_watch_follows_a_run_until_it_is_interrupted(shop, capsysbinary):
    settings, seen = load_spec(shop.spec("good")), []
    with watching_when_it_runs(settings, seen, "--json") as process:
        out, err = process.communicate(timeout=60)
    assert [line["state"] for line in [*seen, *map(json.loads, out.splitlines())]] == ["running", "interrupted"]
    assert seen[0]["left"] == {"concepts": 2, "renders": 2}
    assert process.returncode == 4
    assert f"run {seen[0]['run_id']} was interrupted" in err


@pytest.mark.timeout(120)
def test_control_c_ends_the_watch_and_leaves_the_run_alone(shop, capsysbinary):
    ended = []

    def interrupt():
        with watching(str(shop.folder / "results")) as process:
            assert " running | " in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            ended.append((process.communicate(timeout=60)[1], process.returncode))

    assert run(load_spec(shop.spec("good")), json=False, make_engine=stopped(interrupt)) == 4
    [(err, code)] = ended
    assert code == 130
    assert "is not affected" in err
    assert "to resume" not in err


@contextmanager
def watching_when_it_runs(settings, seen, *words):
    """A watch whose first line is read while the run holds its lease; the run has stopped when the block begins."""
    processes = []

    def begin():
        command = watching(settings.root, *words)
        processes.append((command, command.__enter__()))
        seen.append(json.loads(processes[0][1].stdout.readline()))

    assert run(settings, json=False, make_engine=stopped(begin)) == 4
    [(command, process)] = processes
    yield process
    command.__exit__(None, None, None)


def test_a_terminal_gets_a_table(done):
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "jobs", "status", done.root, "--watch"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done_ = subprocess.run(words, stdout=follower, stderr=subprocess.PIPE, timeout=60, check=False, env=environment)
    os.close(follower)
    shown = os.read(leader, 65_536).decode()
    os.close(leader)
    assert done_.returncode == 0, done_.stderr
    assert "2 invalid, 2 ok" in shown
    assert " | " not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run-9", "--watch"), "there is no run 'run-9' under "),
        (("--every", "3"), "--every needs --watch"),
        (("--watch", "--every", "0"), "--every"),
    ],
)
def test_what_cannot_be_watched_is_2(done, perfusion, words, message):
    code, out, err = perfusion("status", done.root, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_a_root_without_runs_cannot_be_watched(perfusion, shop):
    code, _, err = perfusion("status", shop.spec("good"), "--watch")
    assert code == 2
    assert "there is no run under " in err
