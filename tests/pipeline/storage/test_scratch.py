"""Local scratch: gone in the end, or with the next process when its own was killed."""

import signal
import subprocess
import sys

import pytest

from pipeline.database.plandb import PlanDB
from pipeline.storage.scratch import scratch_folder

_KILLED = """
import os, signal, sys
from pipeline.database.plandb import PlanDB
db = PlanDB(scratch=sys.argv[1])
db.connection.execute("CREATE TABLE big AS SELECT md5(range::VARCHAR) AS text FROM range(300000)")
db.connection.execute("CHECKPOINT")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_goes_away_in_the_end_also_when_something_was_raised(tmp_path):
    with scratch_folder("some", str(tmp_path)) as folder:
        assert folder.parent == tmp_path
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), scratch_folder("some", str(tmp_path)):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], timeout=500, check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert sum(file.stat().st_size for file in left.iterdir()) > 1_000_000
    foreign = tmp_path / "perfusion-of-somebody"  # without our lock, so perhaps just being made
    foreign.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").touch()
    (tmp_path / "perfusion-link").symlink_to(elsewhere)
    with PlanDB(scratch=str(tmp_path)) as alive:
        assert not left.exists()
        with PlanDB(scratch=str(tmp_path)) as other:
            other.connection.execute("SELECT 1")
            assert len([path for path in tmp_path.iterdir() if path.name.startswith("perfusion-plan-")]) == 2
        alive.connection.execute("CREATE TABLE t AS SELECT 1; CHECKPOINT")
    assert {path.name for path in tmp_path.iterdir()} == {"perfusion-of-somebody", "elsewhere", "perfusion-link"}
    assert (elsewhere / "owner.lock").exists()
