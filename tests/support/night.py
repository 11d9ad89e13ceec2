"""A finished run of two products on any storage, whose workers are in this process, and what it made."""

import os
import shutil
from pathlib import Path

from pipeline.run import execute
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from tests.support.runs import Engines, Silent, manifest, photo, run_settings

PROMPTS = [{"prompt": "a {product}", "num_images": 2}]
MORE = [*PROMPTS, {"prompt": "a {product} on the beach"}]
IDS = {"mug": "spring", "bag": "summer"}


def write_inputs(folder):
    rows = []
    for seed, (name, season) in enumerate(IDS.items()):
        photo(folder / f"{name}.png", seed=seed)
        os.utime(folder / f"{name}.png", (1e9, 1e9))  # the cache leaves out photos that are seconds old
        rows.append({"concept_id": name, "superclass": name, "images": [f"{name}.png"], "season": season})
    manifest(folder / "concepts.parquet", rows)
    manifest(folder / "prompts.parquet", PROMPTS)


class Night:
    """A folder with two products, and a root; runs have their workers in this process."""

    def __init__(self, folder, root=None):
        self.folder, self.root = folder, root or str(folder / "root")

    @property
    def local(self):
        return Path(self.root)

    def go(self, engines=None, **changes):
        settings = run_settings(self.root, self.folder, metric={}, **changes)
        return execute(settings, make_engine=engines or Engines(), observer=Silent())

    def rows(self, sql):
        return [tuple(row.values()) for row in query(Storage(self.root), sql).to_pylist()]

    def made(self, result):
        """How many concepts and renders of a run cost time, and how many objects it found without their record."""
        sql = "SELECT count(*) FILTER (accelerator_s > 0), count(*) FILTER (accelerator_s = 0) FROM {} WHERE "
        where = f"run_id = '{result.run_id}' AND origin <> 'reused' AND status = 'ok'"
        [(trained, found)], [(rendered, also)] = (self.rows(sql.format(t) + where) for t in ("concepts", "renders"))
        return trained, rendered, found + also

    def delete(self, *patterns):
        for pattern in patterns:
            found = list(self.local.glob(pattern))
            assert found, f"nothing at {pattern}"
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
