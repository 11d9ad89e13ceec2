"""The `perfusion run` command with a real Ray, scraped while it works."""

import json
import os
import subprocess
import sys
import time
import urllib.error

import pytest

from tests.support.command import Shop
from tests.support.metrics import free_port, scrape

pytestmark = pytest.mark.timeout(900)


def test_a_run_on_this_machine_is_scraped_at_its_port(tmp_path):
    shop, port = Shop(tmp_path), free_port()
    words = ["run", shop.spec("shop"), "--json", "--set", f"cluster.metrics_port={port}", "--set", "engine.budget_h=2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "RAY_metrics_report_interval_ms": "1000"}
    code = "from jobs.cli import main; main()"
    with (
        (tmp_path / "out").open("w") as out,
        (tmp_path / "err").open("w") as err,
        subprocess.Popen([sys.executable, "-c", code, *words], stdout=out, stderr=err, env=environment) as run,
    ):
        try:
            found = {}
            while run.poll() is None:
                found = scraped(port) or found
                time.sleep(0.2)
        finally:
            run.kill()
    assert run.returncode == 0, (tmp_path / "err").read_text()
    run_id = json.loads((tmp_path / "out").read_text())["run_id"]
    assert found["ray_perfusion_accelerator_budget_seconds", run_id] == 7200
    assert found["ray_perfusion_tasks_planned", run_id, "concept"] == 2
    assert found["ray_perfusion_tasks_planned", run_id, "render"] == 2
    assert found["ray_perfusion_lease_heartbeat_age_seconds", run_id] < 30
    [info] = [key for key in found if key[0] == "ray_perfusion_run_info"]
    assert info[1] == run_id


def scraped(port):
    """The samples of the run, while the port answers."""
    try:
        return scrape(port)
    except (urllib.error.URLError, OSError):
        return {}
