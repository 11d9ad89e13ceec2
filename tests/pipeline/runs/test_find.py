"""Which runs a root has, and which run a command works on."""

import pytest

from pipeline.contract.layout import PUBLISHED, lease_path, part_path, run_path
from pipeline.runs.find import RunFiles, Runs, find_runs, list_runs
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage
from tests.support.records import finish, published, run_spec

DIGEST = "abcdef012345" + "0" * 52


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


def run_id(number, digest=DIGEST):
    return f"run-{digest[:12]}-{number:04d}"


def test_the_first_run_has_number_one(storage):
    assert find_runs(storage, DIGEST) == Runs(run_id(1), open=False, published=())


def test_an_unfinished_run_is_resumed_and_a_new_one_follows_finished_ones(storage):
    for number in (1, 2):
        finish(storage, published(run_id(number)))
    assert find_runs(storage, DIGEST) == Runs(run_id(3), open=False, published=(run_id(2), run_id(1)))
    storage.write(lease_path(run_id(3), 1), b"{}")
    assert find_runs(storage, DIGEST) == Runs(run_id(3), open=True, published=(run_id(2), run_id(1)))


def test_runs_with_another_digest_and_foreign_folders_do_not_count(storage):
    finish(storage, published(run_id(7, "f" * 64)))
    storage.write(f"runs/run-{DIGEST[:12]}-backup/{PUBLISHED}", b"{}")
    storage.write(f"runs/{PUBLISHED}", b"{}")
    assert find_runs(storage, DIGEST).next == run_id(1)


def test_the_files_of_each_run(storage):
    RunRecord(storage, "r1").begin(run_spec("r1"))
    parts = (part_path("r1", 1, 0), part_path("r1", 2, 0))
    for path in (*reversed(parts), run_path("r1", "parts/notes.txt"), run_path("r2", "published.json.bak")):
        storage.write(path, b"")
    assert list_runs(storage) == {
        "r1": RunFiles(begun=True, planned=False, published=False, parts=parts),
        "r2": RunFiles(begun=False, planned=False, published=False, parts=()),
    }
