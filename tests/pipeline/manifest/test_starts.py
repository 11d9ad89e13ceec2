"""The column `start`: files that trainings start from are checked, referred to, and part of the concept's key."""

import hashlib
import json
import re

import pytest
import safetensors.torch
import torch

from perfusion_ops.config import SamplingConfig
from pipeline.bases.find import find_base
from pipeline.bases.starts import start_check
from pipeline.contract.errors import RowError
from pipeline.contract.schemas import RESERVED_COLUMNS
from pipeline.database.plandb import PlanDB, Stage
from pipeline.files.batches import find_manifest
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.manifest.concepts import load_concepts
from pipeline.manifest.local_files import ensure_shared, first_local_picture
from pipeline.manifest.starts import MOST_BYTES
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.plan.workqueue import WorkQueue
from pipeline.storage.objects import Storage
from tests.support import reference_keys
from tests.support.plans import TRAINING, concept, fill, picture
from tests.support.runs import photo

WIDTH = 128  # of the embedded base model's words


def embedding(width=WIDTH, seed=0):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    photo(tmp_path / "mug.png", seed=1)
    files = {
        "mug.safetensors": {"<mug>": embedding()},
        "two.safetensors": {"emb_params": torch.zeros(2, WIDTH)},
        "wide.safetensors": {"emb_params": torch.zeros(1, 768)},
        "infinite.safetensors": {"<mug>": embedding() / 0},
    }
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, tmp_path / name)
    torch.save({"string_to_param": {"*": embedding()[None]}}, tmp_path / "mug.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "large.pt").write_bytes(b"\0" * (MOST_BYTES + 1))
    (tmp_path / "folder").mkdir()
    return tmp_path


def load(folder, starts, limits=None, check=None):
    """The rows of `concepts` after a check: start, code, column and message."""
    path = folder / "c.jsonl"
    rows = [
        {"concept_id": f"mug-{number}", "superclass": "mug", "images": ["mug.png"], "start": start}
        for number, start in enumerate(starts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage = Storage(str(folder / "root"))
    with PlanDB() as db:
        load_concepts(
            db,
            str(path),
            storage=storage,
            limits=limits or InputLimits(),
            cache=InputCache(storage),
            threads=2,
            start_check=check or start_check(find_base("mini")),
        )
        return db.connection.execute(
            "SELECT start, error_code, error_column, error_message FROM concepts ORDER BY row"
        ).fetchall()


def test_the_name_of_the_column_is_reserved():
    assert "start" in RESERVED_COLUMNS


def test_a_file_is_referred_to_by_its_address_and_its_digest(folder):
    found = load(folder, ["mug.safetensors", None, str(folder / "mug.pt"), f"file://{folder}/mug.pt"])
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("mug.safetensors", "mug.pt")}
    assert found == [
        ({"uri": f"file://{folder}/{name}", "sha256": digests[name]} if name else None, None, None, None)
        for name in ("mug.safetensors", None, "mug.pt", "mug.pt")
    ]


@pytest.mark.parametrize(
    ("start", "code", "message"),
    [
        ("two.safetensors", "bad_start", "two.safetensors holds 2 vectors in 'emb_params', and a concept has one word"),
        (
            "wide.safetensors",
            "bad_start",
            "holds 1 x 768 numbers in 'emb_params', and words of the base .* have 128",
        ),
        ("infinite.safetensors", "bad_start", "not finite"),
        ("mug.png", "bad_start", "neither a safetensors file nor one of torch.save"),
        ("empty.pt", "bad_start", "empty.pt is no file of 1 to 1,048,576 bytes that can be read"),
        ("large.pt", "bad_start", "large.pt is no file of 1 to 1,048,576 bytes that can be read"),
        ("folder", "bad_start", "folder is no file of 1 to 1,048,576 bytes"),
        ("gone.pt", "image_missing", "there is no .*gone.pt: .* rename it, for example to 'my_start'"),
        ("2026-01-01", "image_missing", "rename it, for example to 'my_start'"),
        ("../mug.pt", "uri_not_allowed", "climbs"),
        ("https://shop.example/mug.pt", "uri_not_allowed", "https is not enabled"),
        (7, "wrong_type", "it is 7: it must be the path or URI of a file"),
        (["mug.pt"], "wrong_type", "it must be the path or URI of a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_of_its_row(folder, start, code, message):
    bad, good = load(folder, [start, "mug.safetensors"])
    assert (bad[0], bad[1], bad[2]) == (None, code, "start")
    assert re.search(message, bad[3])
    assert bad[3].startswith("start: ")
    assert good[1] is None


def test_files_lie_where_photos_may(folder):
    limits = InputLimits(allow=(f"file://{folder}/folder",))
    [row] = load(folder, ["mug.safetensors"], limits)
    assert "outside the allowed prefixes" in row[3]


def test_a_file_that_many_products_start_from_is_read_once(folder):
    seen = []
    load(folder, ["mug.safetensors"] * 20, check=seen.append)
    assert 1 <= len(seen) <= 2  # two threads may ask at the same time


def test_a_local_start_is_found_for_workers_on_other_machines(folder):
    rows = [{"concept_id": "a", "superclass": "mug", "images": ["s3://b/1.png"], "start": "/data/mug.pt"}]
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert first_local_picture(find_manifest(str(path), None)) == (1, "/data/mug.pt")


def test_a_bad_file_has_a_message_that_names_no_temporary_thing():
    check = start_check(find_base("mini"))
    with pytest.raises(RowError, match=r"^holds <b>, <m>, and not one word"):
        check(safetensors.torch.save({"<m>": embedding(), "<b>": embedding()}))


# The plan


def test_the_bytes_of_the_file_are_in_the_key_and_its_address_is_not():
    rows = [
        concept("plain", images=[picture("a")]),
        concept("begun", images=[picture("a")], start=picture("mug")),
        concept("moved", images=[picture("a")], start={**picture("mug"), "uri": "memory://elsewhere"}),
        concept("other", images=[picture("a")], start=picture("hat")),
    ]
    with PlanDB(memory_limit="256MB", threads=1) as db:
        fill(db, "concepts", rows)
        fill(db, "prompts", [{"prompt": "a {product}"}])
        plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
        plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)
        db.mark_filled(Stage.DONE)
        got = dict(db.connection.execute("SELECT concept_id, concept_key FROM concept_keys").fetchall())
        unit = WorkQueue(db, group_size=8, render_batch=2).next()
    assert got["begun"] == got["moved"]
    assert len(set(got.values())) == 3
    for name, start in (("plain", None), ("begun", picture("mug")["sha256"])):
        assert got[name] == reference_keys.concept_key(
            base_digest="base",
            metric_key="metric",
            training=TRAINING,
            superclass="mug",
            images=[(picture("a")["sha256"], None)],
            start=start,
        )
    tasks = {task.key: task.start for task in unit.tasks}
    assert tasks[got["plain"]] is None
    assert tasks[got["begun"]].sha256 == picture("mug")["sha256"]
    assert tasks[got["begun"]].uri in {picture("mug")["uri"], "memory://elsewhere"}


def test_paths_of_files_are_ones_that_nodes_look_for():
    with PlanDB(memory_limit="256MB", threads=1) as db:
        fill(db, "concepts", [concept("begun", start={"uri": "file:///data/words/mug.pt", "sha256": "0" * 64})])
        fill(db, "prompts", [{"prompt": "a {product}"}])
        assert ensure_shared(db, {}, shared_filesystem=True) == ("/data/words/mug.pt",)
