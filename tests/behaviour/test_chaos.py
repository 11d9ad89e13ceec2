"""A small share of `make chaos`: a run on three Ray nodes and a real S3 server, of which each is hurt once."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)
def test_a_run_that_is_hurt_ends_as_if_nobody_had_touched_it():
    arguments = ["--concepts", "6", "--prompts", "5", "--hurts", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(timeout=1150)
    finally:
        with suppress(psutil.NoSuchProcess):
            for each in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        process.kill()
    assert process.returncode == 0, err.decode()[-4000:]
    figures = json.loads(out.decode().splitlines()[-1])
    assert figures["hurts"] == {"worker": 1, "node": 1, "driver": 1, "storage": 1}
    assert (figures["concepts"], figures["renders"], figures["exit_code"]) == (6, 33, 0)
    assert min(figures["requests"][fate] for fate in ("refused", "broken", "lost", "passed")) > 0
