"""A worker whose root has nothing but the metric."""

import pytest

from tests.support.runs import ready_worker


@pytest.fixture
def worker(tmp_path):
    return ready_worker(tmp_path / "root")
