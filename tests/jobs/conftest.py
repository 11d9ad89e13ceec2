"""The command in this process, a shop for it, and a shop whose spec was run for real."""

import os
import shutil
import subprocess
import sys

import pytest

from jobs import cli
from tests.support.command import Shop


@pytest.fixture
def perfusion(monkeypatch, capsysbinary):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["perfusion", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsysbinary.readouterr()
        return ended.value.code or 0, found.out.decode(), found.err.decode()

    return call


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A shop whose spoilt spec was run for real, by the installed command on a Ray of its own."""
    shop = Shop(tmp_path_factory.mktemp("finished"))
    words = [sys.executable, "-c", "from jobs.cli import main; main()", "run", shop.spoilt(), "--json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    shop.run = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False, env=environment)
    shop.root = str(shop.folder / "results")
    return shop


@pytest.fixture(scope="module")
def done(finished, tmp_path_factory):
    """The finished shop for one module, whose tests may add runs and scores: they are removed after its last test.

    The results stay at their address, which their tables and the spec of the run contain.
    """
    kept = tmp_path_factory.mktemp("kept") / "results"
    shutil.copytree(finished.root, kept)
    yield finished
    shutil.rmtree(finished.root)
    kept.rename(finished.root)
