"""Runs on real workers in this process: what is made, what is reused, and what the tables say."""

import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import SystemClock
from pipeline.contract.layout import lease_path
from pipeline.plan.selection import Selection
from pipeline.run import execute
from pipeline.runs.lease import LeaseHeld, Owner
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage, StorageError
from tests.support.runs import (
    METRIC,
    TROUBLES,
    Engines,
    Silent,
    Trouble,
    check_same_picture,
    check_same_weights,
    keep_metric,
    photo,
    run_settings,
    troubled,
)
from tests.support.shop import CONCEPTS, PROMPTS, PhotosVanish, check_accounts, go, outcome_of, stock, tables

# Between two runs that come to the same these may differ; pixels, by one part in 255 with the batch they were in.
PASSING = {"accelerator_s", "worker", "attempts", "finished_at", "batch", "sha256", "bytes"}


def test_only_what_changed_is_made_again(shop, root):
    first, _ = go(root, shop)
    before = tables(root, first.run_id)
    stock(shop, prompts=[PROMPTS[0], {"prompt": "a {mug-1} on a {bag-1}", "seed": 3}])
    second, engines = go(root, shop)
    assert [len(unit.tasks) for unit in engines.units] == [1]
    assert [row["origin"] for row in tables(root, second.run_id)["renders"]] == ["reused"] * 3 + ["rendered"]
    photo(shop / "bag-1.png", seed=77)
    third, engines = go(root, shop)
    found = check_accounts(root, third, concepts=3, prompts=2, pictures=4)
    assert outcome_of(found, "concepts") == {"mug-1": "reused", "bag-1": "trained", "shoe-1": "reused"}
    made = [row["concept_ids"] for row in found["renders"] if row["origin"] == "rendered"]
    assert made == [["bag-1"], ["mug-1", "bag-1"]]
    # The old picture again: everything that it led to is still there.
    photo(shop / "bag-1.png", seed=1)
    stock(shop)
    fourth, engines = go(root, shop)
    assert engines.made == []
    assert [row["sha256"] for row in tables(root, fourth.run_id)["renders"]] == [
        row["sha256"] for row in before["renders"]
    ]


def test_order_and_batch_size_mean_nothing(shop, root):
    go(root, shop)
    stock(shop, CONCEPTS[::-1], PROMPTS[::-1])
    engine = {"group_size": 1, "render_batch": 7, "plan_memory": "200MB", "flush_s": 1.0, "micro_batch": 3}
    result, engines = go(root, shop, engine=engine)
    assert engines.made == []
    check_accounts(root, result, concepts=3, prompts=2, pictures=4)


def test_row_that_is_added_is_all_that_is_made(shop, root):
    go(root, shop)
    photo(shop / "hat-1.png", seed=9)
    extra = {"concept_id": "hat-1", "superclass": "hat", "images": ["hat-1.png"], "season": None}
    stock(shop, [*CONCEPTS, extra], PROMPTS)
    result, engines = go(root, shop, Engines(slots=2))
    assert len(engines.keys) == 2
    found = check_accounts(root, result, concepts=4, prompts=2, pictures=5)
    assert outcome_of(found, "concepts")["hat-1"] == "trained"


def test_row_that_failed_is_tried_again(shop, root):
    first, _ = go(root, shop, PhotosVanish([shop / "mug-1.png"]))
    found = check_accounts(root, first, concepts=3, prompts=2, pictures=4)
    assert outcome_of(found, "concepts") == {"mug-1": "image_missing", "bag-1": "trained", "shoe-1": "trained"}
    assert [row["error_code"] for row in found["renders"] if "mug-1" in row["concept_ids"]] == ["concept_failed"] * 2
    second, engines = go(root, shop)
    found = check_accounts(root, second, concepts=3, prompts=2, pictures=4)
    assert {row["status"] for table in found.values() for row in table} == {"ok"}
    assert len(engines.keys) == 3


def test_part_of_a_plan_is_a_run_of_its_own_that_the_whole_reuses(shop, root):
    part, engines = go(root, shop, selection=Selection("limit 1", first=1))
    assert [len(engines.keys), part.published.rows("concepts"), part.published.rows("renders")] == [2, 1, 1]
    whole, engines = go(root, shop)
    assert whole.run_id != part.run_id
    assert len(engines.keys) == 5
    check_accounts(root, whole, concepts=3, prompts=2, pictures=4)


@pytest.mark.parametrize("units", [0, 1, 2])
def test_drained_run_resumes_to_the_tables_of_an_undisturbed_one(shop, root, tmp_path_factory, units):
    calm = str(tmp_path_factory.mktemp("calm"))
    keep_metric(Storage(calm))
    undisturbed, _ = go(calm, shop)
    first, before = go(root, shop, Engines(stop_after=units))
    assert first.published is None
    assert first.summary.stopped == "it was asked to end"
    assert list(Storage(root).list("tables")) == []
    [status] = read_status(Storage(root), SystemClock())
    assert status.state == "interrupted"
    assert sum(status.statuses["concepts"].values()) + sum(status.statuses["renders"].values()) == len(before.keys)
    second, after = go(root, shop)
    assert second.resumed
    assert second.run_id == first.run_id == undisturbed.run_id
    assert not before.keys & after.keys  # nothing is made twice
    found = check_accounts(root, second, concepts=3, prompts=2, pictures=4)
    expected = tables(calm, undisturbed.run_id)
    for table, rows in found.items():
        for row, other in zip(rows, expected[table], strict=True):
            different = {name for name in row if row[name] != other[name]} - PASSING
            assert different == {"uri"}
            assert row["uri"].removeprefix(f"file://{root}") == other["uri"].removeprefix(f"file://{calm}")


@pytest.mark.parametrize(
    ("caps", "why"),
    [
        ({"stop_after_s": 1e-6}, "its engine.stop_after_s of 1e-06 s is over"),
        ({"budget_h": 1e-9}, "its engine.budget_h of 1e-09 accelerator-hours is spent"),
    ],
)
def test_run_that_has_reached_its_limit_resumes_when_run_again(shop, root, caps, why):
    first, _ = go(root, shop, engine=caps)
    assert first.published is None
    assert first.summary.stopped == why
    second, _ = go(root, shop)
    assert second.run_id == first.run_id  # caps change no result, so they are no other run
    assert second.summary.stopped == ""
    check_accounts(root, second, concepts=3, prompts=2, pictures=4)


def test_policy_of_the_spec_reaches_the_scheduler_and_starts_no_other_run(shop, root):
    engine = {"group_size": 2, "render_batch": 1, "plan_memory": "200MB", "threads": 2}
    careful, usual = Engines(), Engines()
    first, _ = go(root, shop, careful, engine=engine, policy={"render_depth": 1}, seed=1)
    go(root, shop, usual, engine=engine, seed=2)
    assert (careful.made[0].most_calls, usual.made[0].most_calls) == (1, 2)
    again, _ = go(root, shop, engine=engine, policy={"render_depth": 3}, seed=1)
    assert (again.run_id, again.repeated) == (first.run_id, True)


def test_second_driver_is_told_who_works_on_the_run(shop, root):
    told = []

    class Meanwhile(Engines):
        @contextmanager
        def __call__(self, worker):
            with super().__call__(worker) as engine:
                with pytest.raises(LeaseHeld, match="is held by process") as held:
                    go(root, shop)
                told.append(str(held.value))
                yield engine

    result, _ = go(root, shop, Meanwhile())
    assert "wait for it to end" in told[0]
    check_accounts(root, result, concepts=3, prompts=2, pictures=4)


def test_driver_whose_run_was_taken_over_publishes_nothing_and_loses_nothing(shop, root):
    class Usurped(Engines):
        @contextmanager
        def __call__(self, worker):
            with super().__call__(worker) as engine:
                yield engine
            storage = Storage(root)
            [run] = read_status(storage, SystemClock())
            path = lease_path(run.run_id, 1)
            record = json.loads(storage.read(path)) | {"released": True}
            record["owner"] = Owner("elsewhere", "another machine", 1, 1).__dict__
            storage.create(lease_path(run.run_id, 2), json.dumps(record).encode())

    with pytest.raises(LeaseHeld, match=r"took run .* over: this one stops, and no result is lost"):
        go(root, shop, Usurped())
    assert list(Storage(root).list("tables")) == []
    result, _ = go(root, shop)
    found = check_accounts(root, result, concepts=3, prompts=2, pictures=4)
    assert {row["status"] for table in found.values() for row in table} == {"ok"}
    # The outcomes were not recorded, so the objects were adopted: made for this run, at a cost that nobody knows.
    assert {row["origin"] for row in found["concepts"]} == {"trained"}
    assert {row["origin"] for row in found["renders"]} == {"rendered"}
    assert {row["accelerator_s"] for table in found.values() for row in table} == {0.0}
    assert None not in {row["loss"] for row in found["concepts"]}


def test_objects_that_vanished_or_were_cut_off_are_made_again(shop, root):
    first, _ = go(root, shop)
    found, storage = tables(root, first.run_id), Storage(root)
    paths = [row["uri"].removeprefix(storage.root + "/") for row in (*found["concepts"][:2], *found["renders"][:2])]
    before = [storage.read(path) for path in paths]
    storage.delete(paths[0])
    storage.write(paths[1], storage.read(paths[1])[:-5])
    storage.delete(paths[2])
    storage.write(paths[3], storage.read(paths[3])[:-5])
    second, engines = go(root, shop)
    assert len(engines.keys) == 4
    again = check_accounts(root, second, concepts=3, prompts=2, pictures=4)
    for table in ("concepts", "renders"):
        assert [row["uri"] for row in again[table]] == [row["uri"] for row in found[table]]
        assert [row["sha256"] for row in again[table][2:]] == [row["sha256"] for row in found[table][2:]]
    # Made again, in another group and another batch.
    for check, numbers in ((check_same_weights, (0, 1)), (check_same_picture, (2, 3))):
        for number in numbers:
            check(storage.read(paths[number]), before[number])


def test_weights_of_another_key_are_refused_and_trained_again_by_the_next_run(shop, root):
    first, _ = go(root, shop)
    storage = Storage(root)
    one, other, _ = (row["uri"].removeprefix(storage.root + "/") for row in tables(root, first.run_id)["concepts"])
    # Of the recorded size: a file of another one would not count as these weights, and be replaced at once.
    swapped = storage.read(one).replace(Path(one).stem.encode(), Path(other).stem.encode())
    assert len(swapped) == len(storage.read(one))
    assert swapped != storage.read(one)
    storage.write(one, swapped)
    stock(shop, CONCEPTS, [{"prompt": "a {mug-1} in the snow"}])
    second, _ = go(root, shop)
    [row] = check_render_only(root, second)
    assert row["error_code"] == "weights_invalid"
    assert "run again to train a new one" in row["error_message"]
    third, _ = go(root, shop)
    assert [row["status"] for row in check_accounts(root, third, concepts=3, prompts=1)["renders"]] == ["ok"]


def check_render_only(root, result):
    return tables(root, result.run_id)["renders"]


BAD_CONCEPTS = {
    "no picture": {"concept_id": "no-picture", "superclass": "mug", "images": ["absent.png"]},
    "no id": {"concept_id": None, "superclass": "mug", "images": ["mug-1.png"]},
    "climbs": {"concept_id": "../etc", "superclass": "mug", "images": ["mug-1.png"]},
    "again": {"concept_id": "mug-1", "superclass": "mug", "images": ["mug-1.png"]},
    "no superclass": {"concept_id": "thing", "superclass": " ", "images": ["mug-1.png"]},
    "no images": {"concept_id": "empty", "superclass": "mug", "images": []},
    "good": {"concept_id": "bag-1", "superclass": "bag", "images": ["bag-1.png"]},
}
BAD_PROMPTS = {
    "unknown": {"prompt": "a {nobody}"},
    "of a bad one": {"prompt": "a {no-picture}"},
    "empty": {"prompt": " "},
    "null": {"prompt": None},
    "brace": {"prompt": "a {product"},
    "too long": {"prompt": "very " * 100 + "{product}"},
    "where": {"prompt": "a {product}", "where": "no such thing"},
    "no match": {"prompt": "a {product}", "where": "superclass = 'none'"},
    "seed": {"prompt": "a {product}", "seed": -1},
    "all": {"prompt": "a {product}"},
    "the same": {"prompt": "a {product}"},
}


@settings(max_examples=8)
@given(
    concepts=st.lists(st.sampled_from(sorted(BAD_CONCEPTS)), min_size=1, max_size=6),
    prompts=st.lists(st.sampled_from(sorted(BAD_PROMPTS)), min_size=1, max_size=6),
)
def test_every_manifest_row_ends_in_the_tables_whatever_is_wrong_with_it(tmp_path_factory, concepts, prompts):
    folder = tmp_path_factory.mktemp("bad")
    for number, name in enumerate(("mug-1", "bag-1")):
        photo(folder / f"{name}.png", seed=number)
    stock(folder, [BAD_CONCEPTS[name] for name in concepts], [BAD_PROMPTS[name] for name in prompts])
    root = troubled("bad rows")
    result, engines = go(root, folder)
    found = check_accounts(root, result, concepts=len(concepts), prompts=len(prompts))
    good = {row["concept_id"] for row in found["concepts"] if row["status"] == "ok"}
    assert good == {BAD_CONCEPTS[name]["concept_id"] for name in concepts} & {"bag-1", "mug-1"}
    assert bool(engines.made) == bool(good)
    assert {row["status"] for row in found["renders"] if row["prompt"] == "a {nobody}"} <= {"invalid"}


def test_manifests_without_a_good_row_are_published_without_an_engine(shop, root):
    stock(shop, [BAD_CONCEPTS["no picture"]], [BAD_PROMPTS["all"], BAD_PROMPTS["empty"]])
    result, engines = go(root, shop)
    assert engines.made == []
    found = check_accounts(root, result, concepts=1, prompts=2)
    assert {row["error_code"] for row in found["concepts"]} == {"image_missing"}


@pytest.mark.long
def test_storage_that_is_busy_for_a_moment_does_not_end_a_run(shop):
    stock(shop, CONCEPTS[:1], PROMPTS[:1])
    for where in ("/spec.json", "/parts/", "/publish/", "/tables/", "/published.json", "/report/"):
        root = troubled("busy run")
        TROUBLES["busy run"] = Trouble(errors=1, where=where, operations=("write",))
        result, _ = go(root, shop)
        assert TROUBLES["busy run"].errors == 0
        check_accounts(root, result, concepts=1, prompts=1, pictures=1)


def test_two_runs_share_a_root(shop, root):
    first, _ = go(root, shop)
    second, engines = go(root, shop, render={"steps": 1})
    assert {type(unit).__name__ for unit in engines.units} == {"RenderUnit"}
    for result in (first, second):
        check_accounts(root, result, concepts=3, prompts=2, pictures=4)


def test_captions_file_that_is_absent_is_a_message(shop, root):
    captions = METRIC.model_copy(update={"captions_uri": str(shop / "none.txt")}).model_dump()
    with pytest.raises(StorageError, match=r"none.txt \(metric.captions_uri\) cannot be read"):
        go(root, shop, metric=captions)


class Signed(BaseHTTPRequestHandler):
    """A web server that gives a photo to whoever has the signature."""

    photo = b""

    def do_GET(self):
        self.send_response(200 if "X-Amz-Signature=hunter2" in self.path else 403)
        self.end_headers()
        self.wfile.write(self.photo)

    def log_message(self, *args):
        pass


def test_the_signature_of_a_presigned_address_is_nowhere_in_a_root(tmp_path, root, caplog):
    """Trained on, kept out of tables, records and messages, and found again by content under another signature."""
    caplog.set_level("DEBUG")
    photo(tmp_path / "it.png")
    Signed.photo = (tmp_path / "it.png").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Signed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path / "shop"
    folder.mkdir()
    host = f"http://127.0.0.1:{server.server_port}"
    inputs = {"allow": [f"{host}/img"], "presigned": True}
    try:
        for night, query in enumerate(("X-Amz-Signature=hunter2", "X-Amz-Date=2&X-Amz-Signature=hunter2")):
            rows = [
                {"concept_id": "good", "superclass": "mug", "images": [f"{host}/img/é.png?{query}"]},
                {"concept_id": "late", "superclass": "mug", "images": [f"{host}/img/x.png?X-Amz-Signature=hunter3"]},
            ]
            (folder / "concepts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "a {product}"}) + "\n")
            settings = run_settings(
                root,
                folder,
                concepts=str(folder / "concepts.jsonl"),
                prompts=str(folder / "prompts.jsonl"),
                inputs=inputs,
            )
            result = execute(settings, make_engine=Engines(), observer=Silent())
            found = tables(root, result.run_id)["concepts"]
            assert [(row["concept_id"], row["origin"]) for row in found] == [
                ("good", "reused" if night else "trained"),
                ("late", None),
            ]
            assert f"{host}/img/x.png" in found[1]["error_message"]
    finally:
        server.shutdown()
    for path, _ in Storage(root).list():
        data = Storage(root).read(path)
        if path.endswith(".parquet"):
            data = str(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
        assert b"hunter" not in data, path
    assert "hunter" not in caplog.text
