"""A private local Ray starts without output and leaves nothing behind; signals set a flag."""

import os
import signal
import subprocess
import sys

import pytest

from cluster.errors import ClusterError
from cluster.local import share_out, start_local
from cluster.signals import stop_on_signals

TALK = """
import os, signal, sys
from cluster.local import start_local
from cluster.signals import stop_on_signals
with start_local() as cluster, stop_on_signals() as stop:
    import ray
    print(cluster.slots, cluster.num_gpus, cluster.threads, stop(), flush=True)
    @ray.remote(num_cpus=0)
    class Worker:
        def pid(self): return os.getpid()
        def niceness(self): return os.nice(0)
    worker = Worker.remote()
    pid = ray.get(worker.pid.remote())
    print(ray.get(worker.niceness.remote()) == os.nice(0))
    os.killpg(0, signal.SIGINT)  # what a terminal sends: to every process of the group
    print(stop(), ray.get(worker.pid.remote()) == pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
print(ray.is_initialized(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.fixture(autouse=True)
def own_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_starts_quietly_survives_signals_and_shuts_down():
    done = subprocess.run(
        [sys.executable, "-c", TALK],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "RAY_ADDRESS": "10.0.0.1:6379"},
    )
    cores = len(os.sched_getaffinity(0))
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"1 0.0 {cores} False", "True", "True True", "still here", "False True"]


def test_a_second_start_in_one_process_and_a_failed_start_are_errors_with_a_remedy(monkeypatch, tmp_path):
    with start_local(cpus=1) as cluster:
        assert (cluster.slots, cluster.threads) == (1, 1)
        with pytest.raises(ClusterError, match="already runs in this process"), start_local():
            pass
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(ClusterError, match=r"Ray could not start on this machine: .*short path"), start_local():
        pass
    import ray

    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("slots", "cpus", "gpus", "expected"),
    [
        (None, 8, 0, (1, 0.0, 8)),
        (None, 16, 4, (4, 1.0, 4)),
        (2, 16, 4, (2, 1.0, 8)),
        (4, 8, 2, (4, 0.5, 2)),
        (3, 8, 2, (3, 0.5, 2)),
        (4, 2, 0, (4, 0.0, 1)),
    ],
)
def test_slots_share_the_machine(slots, cpus, gpus, expected):
    assert share_out(slots=slots, cpus=cpus, gpus=gpus) == expected


def test_no_slots_is_an_error_with_a_remedy():
    with pytest.raises(ClusterError, match="slots is 0: use 1 or more"):
        share_out(slots=0, cpus=1, gpus=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_the_second_acts(number):
    class SecondSignalError(Exception):
        pass

    def act(*_):
        raise SecondSignalError

    signal.signal(number, act)
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(SecondSignalError):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is act


def test_command_line_can_import_it_without_ray():
    code = "import sys, cluster.local, pipeline.engine.scheduler, pipeline.runs.lease; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=500).returncode == 0
