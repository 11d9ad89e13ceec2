"""A published run written by hand: tables, pictures, training photos and records, without a model."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.contract.layout import SPEC, image_path, run_path, table_path
from pipeline.contract.schemas import CONCEPTS, RENDERS
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from tests.support.records import finish, published, run_spec
from tests.support.runs import manifest

RUN, DATE = "run-1", "2026-11-20"


def key(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def png(seed, size=(40, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Root:
    """A root with one published run whose tables, pictures and records are written by hand."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.storage = Storage(str(folder))
        self.renders, self.concepts, self.photos = [], [], {}

    def concept(self, name, superclass, *seeds):
        found = []
        for number, seed in enumerate(seeds):
            path = self.folder / "photos" / f"{name}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(seed, (48, 64)))
            found.append(f"file://{path}")
        self.photos[name] = found
        row = {"manifest_row": len(self.concepts) + 1, "concept_id": name, "concept_key": key(name)}
        self.concepts.append(row | {"superclass": superclass, "status": "ok", "images": len(seeds)})

    def render(self, prompt, *names, seed=0, **changes):
        data, render_key = png(1000 + seed), key((prompt, names, seed))
        path = image_path(render_key)
        self.storage.write(path, data)
        row = {
            "manifest_row": len(self.renders) + 1,
            "image_index": 0,
            "concept_id": names[0] if names else None,
            "concept_ids": list(names),
            "concept_keys": [key(name) for name in names],
            "render_key": render_key,
            "prompt": prompt,
            "status": "ok",
            "uri": self.storage.uri(path),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        self.renders.append(row | changes)
        return render_key

    def publish(self, *, recorded=None, run=RUN, **spec):
        for table, rows, schema in (("concepts", self.concepts, CONCEPTS), ("renders", self.renders, RENDERS)):
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
            self.storage.write(table_path(table, DATE, run), sink.getvalue())
        given = {"root": self.storage.root, "concepts": str(self.folder / "concepts.parquet"), "prompts": "p.parquet"}
        manifest(
            self.folder / "concepts.parquet",
            [
                {
                    "concept_id": row["concept_id"],
                    "superclass": row["superclass"],
                    "images": self.photos[row["concept_id"]],
                }
                for row in self.concepts
            ],
        )
        record = RunRecord(self.storage, run)
        self.storage.delete(run_path(run, SPEC))
        record.begin(run_spec(run, settings=given | spec))
        record.write_photos(self.photos if recorded is None else recorded)
        finish(self.storage, published(run, run_date=DATE))
        return self

    def scores(self):
        return query(self.storage, "SELECT * EXCLUDE (run_date) FROM scores ORDER BY render_key, scorer").to_pylist()
