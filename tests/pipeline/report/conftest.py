"""Storage of a root without any run."""

from pathlib import Path

import pytest

from pipeline.storage.objects import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))
