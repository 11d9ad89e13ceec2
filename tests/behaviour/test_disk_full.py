"""A run on a disk that is full, and again when it has room: a real one, of half a megabyte."""

import os
import subprocess
from dataclasses import replace

import pytest

from pipeline.run import execute
from pipeline.runs.lease import Owner
from pipeline.storage.objects import Storage, StorageError
from pipeline.tables.views import query
from tests.support.runs import Engines, Silent, keep_metric, manifest, photo, run_settings


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("free", [0, 8, 24, 40, 56], ids=lambda free: f"{free}-KB-free")
def test_a_full_disk_loses_nothing(disk, tmp_path, monkeypatch, free):
    monkeypatch.setattr("pipeline.storage.patience.WAITS_S", (0.01,))
    photo(tmp_path / "mug.png")
    manifest(tmp_path / "concepts.parquet", [{"concept_id": "mug", "superclass": "mug", "images": ["mug.png"]}])
    manifest(tmp_path / "prompts.parquet", [{"prompt": "a {product}", "seed": seed} for seed in range(6)])
    root = str(disk / "root")
    keep_metric(Storage(root))
    settings = run_settings(root, tmp_path)
    filler = disk / "filler"
    room = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free * 1024)))
    # A lease cannot be given back there either: as ever, it ends with its process.
    us = Owner.this_process()
    monkeypatch.setattr(Owner, "this_process", lambda: replace(us, started=0))
    said = ""
    try:
        result = execute(settings, make_engine=Engines(), observer=Silent())
    except StorageError as error:
        said = str(error)
    if said:
        assert "the disk is full; free space or choose another root, then run again" in said
    else:
        failed = query(Storage(root), "SELECT error_code, error_message FROM renders WHERE status <> 'ok'").to_pylist()
        assert result.published is not None
        assert failed
        assert {row["error_code"] for row in failed} <= {"storage", "concept_failed"}
        assert all("the disk is full" in row["error_message"] for row in failed)
    monkeypatch.undo()
    filler.unlink()
    again = execute(settings, make_engine=Engines(), observer=Silent())
    assert again.published is not None
    assert again.published.statuses == {"concepts": {"ok": 1}, "renders": {"ok": 6}}
    for path, size in Storage(root).list("images"):
        assert len(Storage(root).read(path)) == size > 100
