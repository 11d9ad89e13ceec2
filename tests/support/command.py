"""What tests of the `perfusion` command share: a shop with its specs, what was printed, and engines without workers."""

import json
import shutil
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.spec import dump_spec
from perfusion_ops.mini.catalog import write_catalog
from pipeline.run import Engine

# The least that the real thing can be asked for.
QUICK = {
    "train": {"steps": 1, "batch": 1},
    "render": {"steps": 1},
    "metric": {"captions": 400},
    "cluster": {"slots": 1},
    "engine": {"plan_memory": "200MB", "threads": 2},
}


def only_object(out):
    """The JSON object that is all of what was printed."""
    assert out.endswith("\n")
    assert len(out.splitlines()) == 1
    return json.loads(out)


class Shop:
    """A folder with a catalogue of two products, and specs over it."""

    def __init__(self, folder):
        self.folder = folder
        write_catalog(str(folder / "catalog"), 2, images_per_product=1)
        self.concepts = pq.read_table(folder / "catalog" / "concepts.parquet").to_pylist()
        self.prompts = [{"prompt": "a photo of a {product}", "tag": "plain"}]

    def spec(self, name, *, concepts=None, prompts=None, **changes):
        for manifest, rows in (("concepts", concepts or self.concepts), ("prompts", prompts or self.prompts)):
            pq.write_table(pa.Table.from_pylist(rows), self.folder / "catalog" / f"{name}-{manifest}.parquet")
        values = {
            "root": "results",
            "concepts": f"catalog/{name}-concepts.parquet",
            "prompts": f"catalog/{name}-prompts.parquet",
            **QUICK,
            **changes,
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(dump_spec(values))
        return str(file)

    def spoilt(self, **changes):
        """Of each manifest one row that is good and some that are not."""
        concepts = [
            *self.concepts,
            {**self.concepts[0], "concept_id": "bad id", "images": self.concepts[0]["images"]},
            {**self.concepts[0], "concept_id": "lost", "images": ["nowhere.png"], "masks": None},
        ]
        prompts = [*self.prompts, {"prompt": "a {mug-9} on a shelf"}, {"prompt": "a {lost} here"}, {"prompt": "none"}]
        return self.spec("spoilt", concepts=concepts, prompts=prompts, **changes)


def rows_of(done, perfusion, sql, *words):
    code, out, err = perfusion("query", done.root, sql, *words)
    assert (code, err) == (0, "")
    return out


def all_failed(done, moved):
    """A copy of a shop's results whose tables say that no concept was made."""
    shutil.copytree(done.root, moved)
    for published in (moved / "tables" / "concepts").rglob("*.parquet"):
        rows = pq.read_table(published, partitioning=None)
        good = pc.equal(rows["status"], "ok")
        for name, value in (("status", "failed"), ("error_code", "worker_died")):
            column = pc.if_else(good, value, rows[name])
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        pq.write_table(rows, published)
    return moved


class Interrupted(Exception):  # noqa: N818 (it stands for a machine that goes away)
    pass


@contextmanager
def interrupted(_):
    raise Interrupted
    yield


class Nobody:
    """No workers at all."""

    def machine(self, slot):
        return ""

    def slots(self):
        return ()

    def starting(self):
        return ()

    def wait(self, _):
        return ()


def stopped(during):
    """An engine that is asked to stop at once; `during` is called while the run holds its lease."""

    @contextmanager
    def make_engine(_):
        during()
        yield Engine(Nobody(), lambda: "it was asked to end")

    return make_engine
