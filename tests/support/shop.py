"""A small shop whose products are trained and rendered for real, and what must be true of its tables afterwards."""

import hashlib
import io
from contextlib import ExitStack, contextmanager

import pyarrow.parquet as pq

from pipeline.contract.errors import Code
from pipeline.run import execute
from pipeline.storage.objects import Storage
from tests.support.runs import Engines, Silent, manifest, photo, run_settings

CONCEPTS = [
    {"concept_id": "mug-1", "superclass": "mug", "images": ["mug-1.png"], "season": "winter"},
    {"concept_id": "bag-1", "superclass": "bag", "images": ["bag-1.png"], "season": "summer"},
    {"concept_id": "shoe-1", "superclass": "shoe", "images": ["shoe-1.png"], "season": "summer"},
]
PROMPTS = [
    {"prompt": "a photo of a {product} on the beach"},
    {"prompt": "a {mug-1} next to a {bag-1}", "seed": 3},
]


def open_shop(folder):
    """Pictures and manifests of three products."""
    for number, row in enumerate(CONCEPTS):
        photo(folder / row["images"][0], seed=number)
    stock(folder)
    return folder


def stock(folder, concepts=CONCEPTS, prompts=PROMPTS):
    manifest(folder / "concepts.parquet", concepts)
    manifest(folder / "prompts.parquet", prompts)


def go(root, folder, engines=None, observer=None, selection=None, **changes):
    engines = engines or Engines()
    given = run_settings(root, folder, **changes)
    return execute(given, make_engine=engines, observer=observer or Silent(), selection=selection), engines


def tables(root, run_id):
    """The rows of one run's published tables, wherever they lie, in the order of the manifests."""
    storage = Storage(root)
    found = {}
    for table in ("concepts", "renders"):
        paths = [path for path, _ in storage.list(f"tables/{table}") if f"/run_id={run_id}/" in path]
        rows = [row for path in paths for row in pq.read_table(io.BytesIO(storage.read(path))).to_pylist()]
        found[table] = sorted(
            rows, key=lambda row: (row["manifest_row"], row.get("image_index"), str(row["concept_id"]))
        )
    return found


def check_accounts(root, result, *, concepts, prompts, pictures=None):
    """Every manifest row is in the tables once, and every ok row's object is there as recorded."""
    found, storage = tables(root, result.run_id), Storage(root)
    assert [row["manifest_row"] for row in found["concepts"]] == list(range(1, concepts + 1))
    assert {row["manifest_row"] for row in found["renders"]} == set(range(1, prompts + 1))
    names = [(row["manifest_row"], row["image_index"], str(row["concept_ids"])) for row in found["renders"]]
    assert len(names) == len(set(names))
    assert pictures is None or len(names) == pictures
    for row in (*found["concepts"], *found["renders"]):
        assert (row["status"] == "ok") == (row["error_code"] is None) == (row["uri"] is not None)
        assert row["error_code"] is None or (row["error_code"] in set(Code) and len(row["error_message"]) > 20)
        if row["status"] == "ok":
            data = storage.read(row["uri"].removeprefix(storage.root + "/"))
            assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    return found


def outcome_of(found, table):
    return {(row["concept_id"] or row.get("prompt")): row["error_code"] or row["origin"] for row in found[table]}


@contextmanager
def away(path):
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


class PhotosVanish(Engines):
    """Workers that do not find some files that were there when the manifest was read."""

    def __init__(self, paths):
        super().__init__()
        self.paths = paths

    @contextmanager
    def __call__(self, worker):
        with ExitStack() as stack, super().__call__(worker) as engine:
            for path in self.paths:
                stack.enter_context(away(path))
            yield engine
