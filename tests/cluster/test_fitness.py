"""A node is fit, or says in one sentence each what it lacks and what to do, even where this program is missing."""

import dataclasses
import pickle
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from diffusers import MotionAdapter
from ray import cloudpickle

from cluster import fitness
from cluster.errors import ClusterError
from cluster.fitness import PROGRAM, Needs, needs_of, package_folders, package_versions, problems, program_digest
from perfusion_ops.config import MetricConfig
from pipeline.bases.controls import find_control
from pipeline.bases.find import find_base
from pipeline.bases.motion import find_motion
from pipeline.inputs.pictures import InputLimits
from pipeline.worker.settings import ControlSource, Encoding, WorkerSettings
from tests.support.tiny_base import small_parts
from tests.support.tiny_control import control_folder, sd_folder

MINI = find_base("mini").digest
WITHOUT_PROGRAM = """
import importlib.abc, pathlib, pickle, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {program}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
ask, needs = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
for line in ask(needs):
    print(line)
"""


def needs(**changes):
    """What this machine has, but for some changes."""
    here = Needs(program=program_digest(), packages=package_versions(), base="mini", base_digest=MINI)
    return dataclasses.replace(here, **changes)


def only(found):
    """The only problem; it is one sentence with a remedy after the colon."""
    [problem] = found
    assert "\n" not in problem
    before, colon, remedy = problem.rpartition(": ")
    assert before
    assert colon
    assert remedy
    return problem


# The digest of the program


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of this program's."""
    folder = tmp_path / "program"
    (folder / "rooms").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("ONE = 1\n")
    (folder / "rooms" / "two.py").write_text("TWO = 2\n")
    monkeypatch.setattr(fitness, "package_folders", lambda: [folder])
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "one.py").write_text("ONE = 2\n"),
        lambda folder: (folder / "rooms" / "two.py").write_text("TWO = 2 \n"),
        lambda folder: (folder / "rooms" / "three.py").write_text(""),
        lambda folder: (folder / "rooms" / "two.py").unlink(),
        lambda folder: (folder / "one.py").rename(folder / "uno.py"),
        lambda folder: (folder / "one.py").rename(folder / "rooms" / "one.py"),
    ],
)
def test_every_change_of_the_source_changes_the_digest(package, change):
    before = program_digest()
    assert program_digest() == before
    change(package)
    assert program_digest() != before


def test_neither_other_files_nor_the_place_change_the_digest(package, tmp_path, monkeypatch):
    before = program_digest()
    (package / "one.pyc").write_bytes(b"compiled")
    (package / "rooms" / "notes.txt").write_text("for people")
    (package / "one.py").touch()
    assert program_digest() == before
    moved = tmp_path / "elsewhere" / "program"
    shutil.copytree(package, moved)
    monkeypatch.setattr(fitness, "package_folders", lambda: [moved])
    assert program_digest() == before
    renamed = moved.rename(tmp_path / "another")
    monkeypatch.setattr(fitness, "package_folders", lambda: [renamed])
    assert program_digest() != before


def test_a_copy_of_the_program_has_its_digest_until_a_line_is_added(tmp_path):
    for folder in package_folders():
        unread = shutil.ignore_patterns("*.safetensors", "*.npz", "*.parquet", "__pycache__")
        shutil.copytree(folder, tmp_path / folder.name, ignore=unread)
    code = "from cluster.fitness import package_folders, program_digest; print(program_digest(), *package_folders())"

    def ask():
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    digest, *folders = ask()
    assert folders == [str(tmp_path / name) for name in PROGRAM]
    assert digest == program_digest()
    with (tmp_path / "jobs" / "output.py").open("a") as file:
        file.write("# one more line\n")
    assert ask()[0] not in (digest, "")


def test_the_whole_program_is_looked_at():
    assert [folder.name for folder in package_folders()] == list(PROGRAM)
    assert Path(fitness.__file__).parent in package_folders()


def test_a_package_of_the_program_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(fitness, "PROGRAM", ("cluster", "no_such_package"))
    with pytest.raises(ClusterError, match="the package no_such_package of this program is missing: install"):
        package_folders()


# What a machine lacks


def test_this_machine_is_fit(tmp_path):
    (tmp_path / "photo.png").touch()
    assert problems(needs(files=(str(tmp_path), str(tmp_path / "photo.png")))) == []
    assert problems(needs(base="", base_digest="")) == []


def test_another_program():
    found = only(problems(needs(program="0" * 64)))
    assert found.startswith("its perfusion is not the driver's version: ")
    assert "set cluster.ship_code" in found


def test_another_version_of_a_package():
    packages = {**package_versions(), "numpy": "1.0"}
    assert only(problems(needs(packages=packages))) == (
        f"it has numpy {version('numpy')}, the driver 1.0: install that version"
    )


def test_a_missing_package(monkeypatch):
    here = {name: value for name, value in package_versions().items() if name != "safetensors"}
    wanted = needs()
    monkeypatch.setattr(fitness, "package_versions", lambda: here)
    assert only(problems(wanted)) == (
        f"it has safetensors (not installed), the driver {version('safetensors')}: install that version"
    )


def test_a_package_that_the_driver_lacks_is_no_problem():
    fewer = {name: value for name, value in package_versions().items() if name != "torch"}
    assert problems(needs(packages=fewer)) == []


def test_the_packages_that_decide_a_picture_are_compared():
    found = package_versions()
    assert {"torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow"} <= set(found)
    assert found["torch"] == version("torch")


def test_a_motion_adapter_is_looked_for_on_each_node(tmp_path):
    found = only(problems(needs(motion=str(tmp_path / "motion"))))
    assert found.startswith(f"it cannot read the motion adapter: there is no motion adapter '{tmp_path / 'motion'}': ")
    MotionAdapter(block_out_channels=(8,), motion_num_attention_heads=2, motion_norm_num_groups=4).save_pretrained(
        tmp_path / "motion"
    )
    digest = find_motion(str(tmp_path / "motion")).digest
    assert problems(needs(motion=str(tmp_path / "motion"), motion_digest=digest)) == []
    other = only(problems(needs(motion=str(tmp_path / "motion"), motion_digest="f" * 64)))
    assert other.startswith(
        f"its motion adapter {tmp_path / 'motion'} has digest {digest[:12]}, the driver's ffffffffffff"
    )


def test_controlnets_are_looked_for_on_each_node(tmp_path):
    base, net = sd_folder(tmp_path / "sd"), str(tmp_path / "canny")
    here = {"base": str(base), "base_digest": find_base(str(base)).digest}
    lost = only(problems(needs(**here, controls=((net, "0" * 64),))))
    assert lost.startswith(f"it cannot read a ControlNet: there is no ControlNet '{net}': ")
    control_folder(net, small_parts()["unet"])
    digest = find_control(net, find_base(str(base))).digest
    assert problems(needs(**here, controls=((net, digest),))) == []
    other = only(problems(needs(**here, controls=((net, "f" * 64),))))
    assert other.startswith(f"its ControlNet {net} has digest {digest[:12]}, the driver's ffffffffffff: copy the same")
    # Without the base model, that is the problem.
    assert only(problems(needs(base="gone", controls=((net, digest),)))).startswith("it cannot read the base model")


def test_a_base_model_that_is_not_there(tmp_path):
    found = only(problems(needs(base=str(tmp_path / "sd"))))
    assert found.startswith(f"it cannot read the base model: there is no base model '{tmp_path / 'sd'}': ")


def test_a_base_model_in_an_object_store_is_read_with_the_options():
    found = problems(needs(base="s3://bucket/sd", options={"s3": "not a table"}))
    assert only(found) == (
        "it cannot read the base model: the base model s3://bucket/sd cannot be copied: the storage options of 's3' "
        "must be a mapping of option names to values"
    )


def test_another_base_model():
    found = only(problems(needs(base_digest="f" * 64)))
    assert found.startswith(
        f"its base model mini has digest {MINI[:12]}, the driver's ffffffffffff: copy the same model"
    )


def test_missing_files(tmp_path):
    (tmp_path / "there").touch()
    there, lost, more = (str(tmp_path / name) for name in ("there", "lost", "more"))
    one = only(problems(needs(files=(there, lost))))
    assert one.startswith(f"it does not see {lost}: mount the same folders on every node")
    assert only(problems(needs(files=(lost, there, more)))).startswith(f"it does not see {lost} and 1 more: ")


def test_all_problems_are_told_at_once(tmp_path):
    packages = {**package_versions(), "numpy": "1.0", "pyarrow": "2.0"}
    found = problems(needs(program="0" * 64, packages=packages, base_digest="f" * 64, files=(str(tmp_path / "lost"),)))
    starts = ["its perfusion", "it has numpy", "it has pyarrow", "its base model", "it does not see"]
    assert len(found) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(found, starts, strict=True))


def test_what_a_run_needs_is_what_its_driver_has():
    worker = WorkerSettings(
        root="s3://bucket/root",
        storage_options={"anon": True},
        base="mini",
        base_digest=MINI,
        metric=MetricConfig(),
        metric_key="k",
        limits=InputLimits(),
    )
    pictures = {name: found for name, found in package_versions().items() if name != "av"}
    wanted = needs(options={"anon": True}, files=("/data/a", "/data/b"), packages=pictures)
    assert needs_of(worker, ["/data/a", "/data/b"]) == wanted
    videos = dataclasses.replace(worker, encoding=Encoding("mp4"), motion="s3://motion", motion_digest="m")
    assert needs_of(videos, ["/data/a", "/data/b"]) == dataclasses.replace(
        wanted, packages={**pictures, "av": version("av")}, motion="s3://motion", motion_digest="m"
    )
    nets = dataclasses.replace(worker, controls=(ControlSource("canny", "s3://canny", "c"),))
    assert needs_of(nets, ["/data/a", "/data/b"]) == dataclasses.replace(wanted, controls=(("s3://canny", "c"),))


# The question


def test_the_question_is_answered_where_the_program_is():
    ask = pickle.loads(cloudpickle.dumps(fitness._question()))
    assert ask(cloudpickle.dumps(needs())) == []
    assert only(ask(cloudpickle.dumps(needs(program="0" * 64)))).startswith("its perfusion is not")


def test_the_question_is_answered_where_the_program_is_missing(tmp_path):
    content = cloudpickle.dumps(needs())
    (tmp_path / "sent").write_bytes(cloudpickle.dumps((fitness._question(), content)))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PROGRAM.format(program=PROGRAM), tmp_path / "sent"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert only(done.stdout.splitlines()) == (
        "it cannot import perfusion (No module named 'cluster'): install perfusion-pipeline there, or set "
        "cluster.ship_code to send the driver's"
    )
