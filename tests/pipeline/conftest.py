"""A shop and a root for small real runs; what they need is imported only by tests that ask for them."""

import pytest


@pytest.fixture
def shop(tmp_path):
    from tests.support.shop import open_shop

    return open_shop(tmp_path)


@pytest.fixture
def root(tmp_path):
    from pipeline.storage.objects import Storage
    from tests.support.runs import keep_metric

    keep_metric(Storage(str(tmp_path / "root")))
    return str(tmp_path / "root")
