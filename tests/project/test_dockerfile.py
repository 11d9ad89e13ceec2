"""The Dockerfile passes its checker, copies what the wheel needs, and ends without root."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = {
    re.search(r" AS (\w+)", stage)[1]: stage for stage in re.split(r"(?m)^(?=FROM )", TEXT) if stage.startswith("FROM ")
}


def test_it_passes_its_checker():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(ROOT / "Dockerfile")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_it_copies_every_package_and_nothing_that_is_left_out_of_the_context():
    copied = [name for line in re.findall(r"(?m)^COPY (.+)$", STAGES["wheel"]) for name in line.split()[:-1]]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(packages) <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in copied} <= set(ignored)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_has_the_tested_versions_and_runs_without_root(target):
    stage = STAGES[target]
    assert "--constraint /constraints.txt" in stage
    assert "set -- /wheels/*.whl " in stage
    assert '"${1}[s3,gcs,azure]"' in stage, "by its path: an index may have another package of this name"
    assert re.findall(r"(?m)^USER (.+)$", stage) == ["1000"], "Kubernetes needs a number to see that it is not root"
    assert 'ENTRYPOINT ["perfusion"]' in STAGES["base"]


def test_no_registry_s_address_is_written_down():
    assert not re.search(r"https?://", TEXT)
