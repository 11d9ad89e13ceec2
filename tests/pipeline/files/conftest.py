"""A plan's database."""

import pytest

from pipeline.database.plandb import PlanDB


@pytest.fixture
def db():
    with PlanDB(memory_limit="256MB", threads=1) as database:
        yield database
