"""Published tables as other people's tools read them, by plain glob, at every moment of a run and after a crash."""

import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.run import execute
from pipeline.storage import local_files
from pipeline.storage.objects import Storage
from tests.support.readers import READERS
from tests.support.runs import Engines, Killed, Silent, keep_metric, manifest, photo, run_settings

COLUMNS = {
    "concepts": ["run_id", "manifest_row", "status"],
    "renders": ["run_id", "manifest_row", "image_index", "status"],
}
ROWS = {"concepts": 2, "renders": 5}  # of a whole run, with a row that is bad in each
FINAL = {"ok", "invalid", "failed"}


class Watch:
    """Looks at the tables before and after every object appears; `dies_at` one of these moments, as a killed driver."""

    def __init__(self, root, dies_at=None):
        self.root, self.dies_at, self.moments = Path(root), dies_at, 0
        self.seen = Counter()

    def link(self, source, target):
        self.look()
        os.link(source, target)
        self.look()

    def look(self):
        if self.moments == self.dies_at:
            raise Killed
        self.moments += 1
        for table, columns in COLUMNS.items():
            folder = self.root / "tables" / table
            if not any("run_id=schema" not in str(path) for path in folder.rglob("*.parquet")):
                continue
            tables = [read(folder).select(columns) for read in READERS.values()]
            views = [sorted((tuple(row.values()) for row in each.to_pylist()), key=str) for each in tables]
            assert all(view == views[0] for view in views)
            assert len({row[:-1] for row in views[0]}) == len(views[0])
            assert {row[-1] for row in views[0]} <= FINAL
            counts = Counter(row[0] for row in views[0])
            assert set(counts.values()) == {ROWS[table]}
            self.seen[table, len(counts)] += 1


@pytest.fixture
def shop(tmp_path):
    photo(tmp_path / "mug.png", seed=1)
    rows = [{"concept_id": "mug", "superclass": "mug", "images": ["mug.png"]}]
    manifest(
        tmp_path / "concepts.parquet", [*rows, {"concept_id": "none", "superclass": "mug", "images": ["none.png"]}]
    )
    prompts = [{"prompt": "a {product} on the beach", "num_images": 4}, {"prompt": "a {nobody}", "num_images": 1}]
    manifest(tmp_path / "prompts.parquet", prompts)
    keep_metric(Storage(str(tmp_path / "root")))
    return tmp_path


def go(shop, watch, monkeypatch, seed):
    with monkeypatch.context() as patch:
        patch.setattr(local_files, "os", _Os(watch))
        return execute(run_settings(shop / "root", shop, seed=seed), make_engine=Engines(), observer=Silent())


class _Os:
    """The module `os`, whose `link` is watched: by it every exclusively created object appears on a disk."""

    def __init__(self, watch):
        self.link = watch.link

    def __getattr__(self, name):
        return getattr(os, name)


def test_no_reader_ever_sees_a_row_twice_half_a_run_or_a_row_that_is_not_final(shop, monkeypatch):
    watch = Watch(shop / "root")
    for seed in (1, 2, 3):
        assert go(shop, watch, monkeypatch, seed).published
    for table in ROWS:
        assert {runs for name, runs in watch.seen if name == table} == {1, 2, 3}
    assert watch.moments > 30


@pytest.mark.long
def test_nor_after_a_crash_at_any_moment(shop, monkeypatch):
    before = Watch(shop / "root")
    go(shop, before, monkeypatch, 1)
    for dies_at in range(200):
        watch = Watch(shop / "root", dies_at)
        seed = 2 + dies_at
        try:
            go(shop, watch, monkeypatch, seed)
        except Killed:
            Watch(shop / "root").look()
        else:
            break
    assert 10 < dies_at < 199  # the sweep met every object, and ended because the run did
