"""What docs/operations.md says of deleting parts of a root, and of moving one: tried on a real small root."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from perfusion_ops.metric import metric_from_moment, read_metric
from pipeline.bases.find import find_base
from pipeline.clock import SystemClock
from pipeline.contract.errors import ManifestError
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage, StorageError
from pipeline.storage.scratch import scratch_folder
from tests.support.night import IDS, MORE, Night, write_inputs
from tests.support.runs import Engines, manifest

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    shop = Night(tmp_path_factory.mktemp("finished"))
    write_inputs(shop.folder)
    assert shop.made(shop.go()) == (2, 4, 0)
    return shop


@pytest.fixture
def shop(finished, tmp_path):
    """The same shop after a finished run; its root is a copy."""
    shutil.copytree(finished.folder, tmp_path / "shop")
    return Night(tmp_path / "shop")


@pytest.mark.parametrize(
    ("deleted", "made"),
    [
        (["weights"], (2, 0, 0)),
        (["images"], (0, 4, 0)),
        (["tables"], (0, 0, 6)),
        (["runs", "tables"], (0, 0, 6)),
    ],
    ids=["weights", "images", "tables", "runs-and-tables"],
)
def test_what_is_made_again(shop, deleted, made):
    shop.delete(*deleted)
    result = shop.go()
    assert (result.repeated, shop.made(result)) == (False, made)
    assert len(shop.rows("SELECT DISTINCT run_id FROM renders")) == (1 if "tables" in deleted else 2)
    assert shop.go().repeated
    assert all(Path(uri.removeprefix("file://")).is_file() for (uri,) in shop.rows("SELECT uri FROM current"))


@pytest.mark.parametrize(
    ("deleted", "again"),
    [
        ("cache", True),
        ("tables/*/run_date=1970-01-01", False),
        ("runs/*/parts", False),
        ("runs/*/publish", False),
        ("runs/*/lease", False),
        ("runs/*/spec.json", False),
        ("runs/*/plan.json", False),
        ("runs/*/inputs.json", False),
        ("runs/*/report", True),
    ],
)
def test_what_a_finished_run_does_without(shop, deleted, again):
    shop.delete(deleted)
    assert shop.go().repeated
    assert bool(list(shop.local.glob(deleted))) == again
    assert len(read_status(Storage(shop.root), SystemClock())) == (0 if "spec.json" in deleted else 1)


def test_columns_are_remembered_again(shop):
    shop.delete("tables/*/run_date=1970-01-01")
    manifest(shop.folder / "prompts.parquet", MORE)
    assert shop.made(shop.go()) == (0, 2, 0)
    assert list(shop.local.glob("tables/renders/run_date=1970-01-01/*/*.parquet"))
    assert {season for (season,) in shop.rows("SELECT season FROM renders")} == set(IDS.values())


def test_a_commit_marker_is_written_again(shop):
    before = {path: path.read_bytes() for path in shop.local.glob("tables/**/*.parquet")}
    shop.delete("runs/*/published.json")
    result = shop.go()
    assert (result.resumed, result.published is not None, shop.made(result)) == (True, True, (2, 4, 0))
    assert {path: path.read_bytes() for path in shop.local.glob("tables/**/*.parquet")} == before


def test_runs_must_not_be_deleted_alone(shop):
    shop.delete("runs")
    for _ in ("concepts", "renders"):
        with pytest.raises(StorageError, match="exists with other content") as caught:
            shop.go()
        Path(re.search(r"file://(\S+)", str(caught.value))[1]).unlink()
    assert shop.go().published is not None


def test_runs_deleted_alone_give_rows_twice_on_another_day(shop):
    shop.delete("runs")
    for folder in shop.local.glob("tables/*/run_date=2*"):
        folder.rename(folder.with_name("run_date=2020-01-01"))
    shop.go()
    assert len(shop.rows("SELECT DISTINCT run_id FROM renders")) == 1
    assert len(shop.rows("SELECT * FROM renders")) == 2 * 4


def test_the_metric_comes_back_and_another_one_costs_every_concept(shop):
    [file] = shop.local.glob("metrics/*/*")
    before, base = file.read_bytes(), find_base("mini").digest
    file.unlink()
    manifest(shop.folder / "prompts.parquet", MORE)
    assert shop.made(shop.go()) == (0, 2, 0)
    assert file.read_bytes() == before
    metric = read_metric(before, base_digest=base)
    moment = metric.second_moment.clone()
    moment[0, 0] *= 1 + 2**-50
    file.write_bytes(metric_from_moment(moment, ridge=metric.ridge, base_digest=base).to_bytes())
    manifest(shop.folder / "prompts.parquet", [*MORE, {"prompt": "a {product} in the snow"}])
    assert shop.go().published.codes == {"concepts": {}, "renders": {"weights_invalid": 2}}
    assert not list(shop.local.glob("weights/*/*"))
    assert shop.made(shop.go()) == (2, 2, 0)


def test_parts_of_an_unfinished_run_are_found_again_by_their_objects(shop):
    manifest(shop.folder / "prompts.parquet", MORE)
    stopped = shop.go(Engines(stop_after=1), seed=3)  # and with what was queued behind it
    assert stopped.published is None
    shop.delete(f"runs/{stopped.run_id}/parts")
    result = shop.go(seed=3)
    assert (result.resumed, result.run_id) == (True, stopped.run_id)
    trained, rendered, found = shop.made(result)
    assert (trained, rendered + found, found > 0) == (0, 6, True)


def test_photos_that_a_manifest_carries_are_written_again(shop):
    rows = pq.read_table(shop.folder / "concepts.parquet").to_pylist()
    rows = [{**row, "images": [(shop.folder / row["images"][0]).read_bytes()]} for row in rows]
    manifest(shop.folder / "concepts.parquet", rows)
    assert shop.made(shop.go()) == (0, 0, 0)  # the key of a concept holds the bytes, not the address
    shop.delete("inputs")
    assert shop.go().repeated
    assert len(list(shop.local.glob("inputs/*/*"))) == len(IDS)


def test_a_spec_whose_points_are_deleted_is_refused(shop):
    with pytest.raises(ManifestError, match=r"sweep-1/points\.parquet"):
        shop.go(points=f"{shop.root}/sweeps/sweep-1/points.parquet")


def test_scratch_of_a_dead_process_is_removed_by_the_next_command(tmp_path):
    dead = tmp_path / "perfusion-plan-dead"
    dead.mkdir()
    (dead / "owner.lock").touch()
    with scratch_folder("plan", str(tmp_path)):
        assert not dead.exists()


def test_a_moved_root_keeps_old_addresses_until_a_run_has_something_to_do(shop):
    shop.local.rename(moved := shop.folder / "moved")
    there = Night(shop.folder, str(moved))
    assert there.go().repeated

    def places(view):
        return {
            uri.removeprefix("file://").partition("/images/")[0] for (uri,) in there.rows(f"SELECT uri FROM {view}")
        }

    assert str(moved) not in places("current")
    manifest(shop.folder / "prompts.parquet", MORE)
    assert there.made(there.go()) == (0, 2, 0)
    assert places("current") == {str(moved)}
    assert len(places("renders")) == 2
