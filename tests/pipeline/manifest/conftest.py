"""A plan's database, and photos beside the manifests."""

import pytest

from pipeline.database.plandb import PlanDB
from tests.support.manifests import photo_folder


@pytest.fixture
def db():
    with PlanDB(memory_limit="256MB", threads=1) as database:
        yield database


@pytest.fixture
def photos(tmp_path):
    """A folder of photos, good and bad, beside the manifests."""
    return photo_folder(tmp_path / "photos")
