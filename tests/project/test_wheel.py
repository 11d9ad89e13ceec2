"""The wheel: all that is needed and nothing else, and it works where the source tree is not."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "jobs", "perfusion_ops", "pipeline")
NEEDED = {
    *(f"{package}/py.typed" for package in PACKAGES),
    "perfusion_ops/mini/base/model_index.json",
    "perfusion_ops/mini/base/perfusion.json",
    "perfusion_ops/mini/base/text_encoder/model.safetensors",
    "perfusion_ops/mini/base/tokenizer/merges.txt",
    "perfusion_ops/mini/base/tokenizer/vocab.json",
    "perfusion_ops/mini/base/unet/diffusion_pytorch_model.safetensors",
    "perfusion_ops/mini/base/vae/diffusion_pytorch_model.safetensors",
    "perfusion_ops/mini/metric.safetensors",
    *(f"perfusion_ops/mini/scorers/{part}/model.safetensors" for part in ("dual", "identity", "reader")),
    "perfusion_ops/mini/scorers/dual/vocab.json",
    "pipeline/report/templates/report.css",
    "pipeline/report/templates/report.html.j2",
    "pipeline/report/templates/tiles.html.j2",
}
SUFFIXES = {".css", ".j2", ".json", ".jsonl", ".py", ".safetensors", ".txt", ".typed", ".yaml"}


def pip(*words):
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    done = subprocess.run([sys.executable, "-m", "pip", *words, *quiet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Isolation would download the build backend; it is among the development packages instead.
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel alone, the packages it depends on borrowed from this one, and a folder to be in."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    # Python does not read the .pth files of a folder that a .pth file names: this environment's editable install,
    # which is one, stays out of sight.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "elsewhere").mkdir()
    return folder


def run(installed, *words, code=0):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(installed / "venv" / "bin" / words[0]), *words[1:]],
        cwd=installed / "elsewhere",
        env=clean,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_holds_what_is_needed_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    metadata = f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    inside = {name for name in names if not name.startswith(metadata)}
    assert inside >= NEEDED
    assert {Path(name).suffix for name in inside} <= SUFFIXES
    assert not [name for name in inside if "__pycache__" in name or "/." in name or "test" in Path(name).name]
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == modules
    assert wheel.stat().st_size < 32 * 2**20


def test_is_for_any_machine_and_has_one_command(wheel):
    assert wheel.name == "perfusion_pipeline-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = {
            Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name
        }
    assert metadata["entry_points.txt"].split() == ["[console_scripts]", "perfusion", "=", "jobs.cli:main"]
    assert "License-Expression: Apache-2.0" in metadata["METADATA"]
    assert "Apache License" in metadata["LICENSE"]


def test_works_where_the_source_tree_is_not(installed):
    places = run(
        installed,
        "python",
        "-c",
        "import cluster, jobs.cli, perfusion_ops, pipeline, sys, json;"
        "print(json.dumps([sys.modules[name].__file__ for name in ('cluster', 'jobs', 'perfusion_ops', 'pipeline')]))",
    )
    assert all(place.startswith(str(installed / "venv")) for place in json.loads(places))

    assert "Usage: perfusion" in run(installed, "perfusion", "--help")
    summary = json.loads(run(installed, "perfusion", "catalog", "--products", "2", "shop", "--json"))
    assert (summary["products"], summary["concepts"]) == (2, "shop/concepts.parquet")
    spec = installed / "elsewhere" / "spec.yaml"
    spec.write_text("root: results\nconcepts: shop/concepts.parquet\nprompts: shop/prompts.parquet\n")
    assert "every row is good" in run(installed, "perfusion", "validate", "spec.yaml")
    planned = json.loads(run(installed, "perfusion", "plan", "spec.yaml", "--json"))
    assert planned["base"] == "mini"
    assert planned["work"]["concepts"]["to_do"] == 2
    assert "no runs" in run(installed, "perfusion", "status", "spec.yaml")
