"""A shop for small real runs, and an environment without settings of OpenLineage."""

import os

import pytest

from pipeline.storage.objects import Storage
from tests.support.runs import keep_metric
from tests.support.shop import open_shop


@pytest.fixture(autouse=True)
def _no_client_settings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("OPENLINEAGE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # the client also reads ~/.openlineage/openlineage.yml
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stall(tmp_path):
    return open_shop(tmp_path)


@pytest.fixture
def root(tmp_path):
    keep_metric(Storage(str(tmp_path / "root")))
    return str(tmp_path / "root")
