"""Every kind of file, byte for byte.

To write the files again after a change that is meant: PERFUSION_WRITE_GOLDEN=1 pytest tests/jobs/deploy/test_golden.py;
then read the difference. The version of Ray is the installed one; the files show 0.0.0 in its place.
"""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.jobs.deploy.cases import ENDINGS, FOR, KINDS, OPTIONS, QUEUED, of_kind

GOLDEN = Path(__file__).parent / "golden"
CASES = [(kind, kind, FOR.get(kind, OPTIONS)) for kind in KINDS]
CASES += [(f"{kind}-queued", kind, QUEUED) for kind in ("rayjob", "cronjob")]
CASES += [("systemd-accepting", "systemd", {**OPTIONS, "failed_rows": "accept"})]


@pytest.mark.parametrize(("name", "kind", "options"), CASES, ids=[case[0] for case in CASES])
def test_the_file_is_what_it_was(rendered, name, kind, options):
    text = rendered(kind, options).replace(f"rayVersion: {version('ray')}\n", "rayVersion: 0.0.0\n")
    file = GOLDEN / f"{name}.{ENDINGS.get(kind, 'yaml')}"
    if os.environ.get("PERFUSION_WRITE_GOLDEN"):
        file.write_bytes(text.encode())
    assert text.encode() == file.read_bytes()


def test_no_golden_file_is_left_over():
    expected = {f"{name}.{ENDINGS.get(kind, 'yaml')}" for name, kind, _ in CASES}
    assert {file.name for file in GOLDEN.iterdir()} == expected


def test_the_version_of_ray_is_the_installed_one(rendered):
    assert of_kind(rendered("rayjob"), "RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
