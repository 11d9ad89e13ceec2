"""A driver that is killed before, in the middle of and after any write: nothing is lost, nothing is made twice."""

import json
import random
from pathlib import Path

import pytest

from pipeline.settings import EngineSettings
from pipeline.storage.objects import Storage
from tests.support.runs import TROUBLES, Killed, Trouble, keep_metric, troubled
from tests.support.servers.kill_server import HALF_WRITTEN, DyingRuns
from tests.support.shop import CONCEPTS, check_accounts, go, open_shop, stock, tables


@pytest.fixture
def shop(tmp_path):
    folder = open_shop(tmp_path)
    stock(folder, CONCEPTS[:2])
    return folder


def bury(root):
    """What a killed process leaves: its lease still names it, but it does not run any more."""
    storage = Storage(root)
    for path, _ in list(storage.list("runs")):
        if "/lease/" in path:
            record = json.loads(storage.read(path))
            record["owner"]["started"] = -1
            storage.write(path, json.dumps(record).encode())


def killed_after(root, shop, writes):
    """Whether a run that can write so often ended before that was too few."""
    TROUBLES["killed"] = Trouble(writes_left=writes)
    try:
        go(root, shop)
    except Killed:
        return False
    else:
        return True
    finally:
        TROUBLES["killed"] = Trouble()
        bury(root)


def check_all_kept(root, shop, kept):
    """The same command again: nothing that was whole is made twice, and one run's tables hold every row."""
    result, _ = go(root, shop)
    check_accounts(root, result, concepts=2, prompts=2, pictures=3)
    assert {path: Storage(root).read(path) for path in kept} == kept
    published = {path for path, _ in Storage(root).list("runs") if path.endswith("published.json")}
    runs = {path.split("run_id=")[1].split("/")[0] for path, _ in Storage(root).list("tables")}
    runs.remove("schema")
    assert {path.split("/")[1] for path in published} == runs
    for run_id in runs:
        found = tables(root, run_id)
        assert (len(found["concepts"]), len(found["renders"])) == (2, 3)
        assert {row["status"] for table in found.values() for row in table} == {"ok"}


def whole_objects(root):
    storage = Storage(root)
    return {path: storage.read(path) for folder in ("weights", "images") for path, _ in storage.list(folder)}


def test_kill_between_any_two_writes_loses_nothing_and_makes_nothing_twice(shop):
    for writes in range(100):
        root = troubled("killed")
        if killed_after(root, shop, writes):
            break
        check_all_kept(root, shop, whole_objects(root))
    assert 15 < writes < 60  # the sweep met every write of a run, and ended because the run did


def test_kill_in_the_middle_of_any_file_leaves_whole_files_alone(shop, tmp_path):
    with DyingRuns() as runs:
        for write in range(100):
            root = str(tmp_path / f"root-{write}")
            keep_metric(Storage(root))
            code = runs.code_of(root, shop, write)
            if code == 0:
                break
            assert code == HALF_WRITTEN
            halves = [path for path in Path(root).rglob(".*") if path.is_file()]
            assert 1 <= len(halves) <= EngineSettings().store_threads  # renders are written at once
            assert all(name not in path for name in map(str, halves) for path, _ in Storage(root).list())
            check_all_kept(root, shop, whole_objects(root))
    assert 15 < write < 60


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_after_kill_gets_there(shop, seed):
    root, chance = troubled("killed"), random.Random(seed)
    attempts = 0
    while not any(path.endswith("published.json") for path, _ in Storage(root).list("runs")):
        killed_after(root, shop, chance.randrange(2, 9))
        attempts += 1
        assert attempts < 40
    assert attempts > 2
    result, engines = go(root, shop)
    assert engines.made == []
    check_accounts(root, result, concepts=2, prompts=2, pictures=3)
