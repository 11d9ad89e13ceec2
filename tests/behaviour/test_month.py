"""A month of nightly re-renders: work done equals work needed, by content, whatever happens to the drivers."""

import hashlib
import json
import time
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.contract.kinds import PerKind
from pipeline.run import execute
from pipeline.runs.lease import EXPIRY_S, LeaseHeld, Owner
from pipeline.storage import objects
from tests.support.fake_clock import START, FakeClock
from tests.support.month import Concept, Needs, RecordingWorker, Render, Shop, encoded
from tests.support.runs import Killed, Silent, run_settings
from tests.support.shop import tables

PRODUCTS, SHARE, NIGHTS = 1000, 0.03, 30
DAY_S = 86_400.0
MISSED = (9, 18)
STARTED_TWICE = 12
STARTED_WHILE_PLANNED = 21
KILLED = 15
OBJECTS_GONE = 25
PROMPT_CHANGES = {
    6: ("a {product} on a wooden table", 2),
    KILLED: ("a {product} in front of a wall", 2),
    23: ("a {product} in front of a wall", 3),
}


class Month:
    """A root, the shop that it is for, what it needs, and all that was done."""

    def __init__(self, folder):
        (folder / "shop").mkdir()
        self.root = folder / "root"
        self.clock = FakeClock()
        self.shop = Shop(folder / "shop", PRODUCTS, seed=1)
        self.needs = Needs()
        self.worker = RecordingWorker(self.root, self.clock)
        engine = {"group_size": 32, "render_batch": 32, "plan_memory": "400MB", "threads": 2, "flush_s": 2.0}
        self.settings = run_settings(self.root, folder / "shop", engine=engine)
        self.began = 0.0  # when the night began
        self.drivers = 0
        self.needed = Counter()  # times that each content's object had to be made
        self.runs = []  # date and id of the run of each night

    def start(self, observer=None):
        """`perfusion rerender`, on a machine of its own."""
        self.drivers += 1
        return execute(
            self.settings,
            make_engine=self.worker.engine,
            observer=observer or Silent(),
            explain=True,
            clock=self.clock,
        )

    def owner(self):
        """Drivers run on other machines, where nobody can see whether they live: leases expire by the clock."""
        return Owner(f"machine-{self.drivers}", f"boot-{self.drivers}", 1, 1)

    def plan(self):
        """The content of each row, concepts and renders."""
        return PerKind(*([row[-1] for row in rows] for rows in (self.shop.concepts(), self.shop.renders())))

    def lose(self, content, keep=0):
        """The storage loses an object, or all but its first bytes."""
        file = self.worker.objects[content]
        data = file.read_bytes()
        file.unlink()
        if keep:
            file.write_bytes(data[:keep])
        self.needs.objects.discard(content)

    def recorded(self):
        """Contents with an outcome in the parts of the only run that is not published."""
        [run] = [spec.parent for spec in self.root.glob("runs/*/spec.json") if not published(spec.parent).exists()]
        keys = {key for path in run.glob("parts/*.parquet") for key in pq.read_table(path)["key"].to_pylist()}
        return {content for content, key in self.worker.keys.items() if key in keys}


def published(run):
    return run / "published.json"


@pytest.fixture
def month(tmp_path, monkeypatch):
    month = Month(tmp_path)
    monkeypatch.setattr(Owner, "this_process", staticmethod(month.owner))
    write_file = objects.write_file

    def write_while_alive(*arguments, **named):
        if month.worker.is_dead():
            raise Killed
        return write_file(*arguments, **named)

    monkeypatch.setattr(objects, "write_file", write_while_alive)
    return month


def needed_now(month):
    return {content for _, contents in month.plan().items() for content in contents} - month.needs.objects


def check_plan(month, result):
    """Rows to do, rows reused and the reasons are those of the naive model."""
    plan = month.plan()
    assert result.planned.work == PerKind(month.needs.counts(plan.concepts), month.needs.counts(plan.renders))
    changes = result.planned.changes
    assert changes.concepts == month.needs.concept_reasons(month.shop)
    assert changes.renders == month.needs.render_reasons(month.shop)
    for table, counts in result.planned.work.items():
        assert sum(changes.of(table).values()) == counts.keys_to_do


def check_tables(month, result, needed):
    """One row per manifest row, each ok and with the object of its content; as many made as were needed."""
    found = tables(str(month.root), result.run_id)
    concepts = {(row["manifest_row"], row["concept_id"]): row for row in found["concepts"]}
    renders = {(row["manifest_row"], row["concept_id"]): row for row in found["renders"]}
    expected = {(row, name): content for row, (name, content) in enumerate(month.shop.concepts(), 1)}
    pairs = [(concepts, expected), (renders, {(row, name): content for name, row, content in month.shop.renders()})]
    for (rows, contents), table in zip(pairs, found.values(), strict=True):
        assert len(table) == len(rows)
        assert rows.keys() == contents.keys()
        for place, row in rows.items():
            data = encoded(contents[place])
            assert row["status"] == "ok"
            assert month.began <= row["finished_at"].timestamp() <= month.clock.wall()
            assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            assert Path(row["uri"].removeprefix("file://")).read_bytes() == data
    origins = Counter(row["origin"] for row in (*found["concepts"], *found["renders"]))
    assert origins["trained"] == sum(isinstance(content, Concept) for content in needed)
    assert origins["trained"] + origins["rendered"] == len(needed)


def check_night(month, night):
    """An undisturbed start: all that is needed is made, once, and nothing else is touched."""
    needed = needed_now(month)
    before = len(month.worker.made), len(month.worker.adopted)
    result = month.start()
    check_plan(month, result)
    made, adopted = month.worker.made[before[0] :], month.worker.adopted[before[1] :]
    assert Counter(made) == Counter(needed)
    assert adopted == []
    finish_night(month, night, result, needed)


def finish_night(month, night, result, needed):
    check_tables(month, result, needed)
    date = time.strftime("%Y-%m-%d", time.gmtime(START + night * DAY_S))
    assert result.published.run_date == date
    month.needed.update(needed)
    month.needs.publish(month.shop)
    month.runs.append((date, result.run_id))


@contextmanager
def at_second_unit(month, action):
    month.worker.on_unit = action
    yield
    month.worker.on_unit = None


def night_started_twice(month, night):
    """A second driver that comes while the first works is refused; one that comes later finds the run."""
    refused = []

    def second():
        with pytest.raises(LeaseHeld, match="is held by process 1 on machine-") as held:
            month.start()
        refused.append(str(held.value))

    engines = month.worker.engines
    with at_second_unit(month, second):
        check_night(month, night)
    assert len(refused) == 1
    again = month.start()
    assert (again.repeated, again.run_id) == (True, month.runs[-1][1])
    assert month.worker.engines == engines + 1


class Meanwhile(Silent):
    """Acts between a driver's plan and its lease."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def planned(self, work):
        super().planned(work)
        self.action()


def night_started_while_planned(month, night):
    """A driver whose plan is older than the run of another one is refused, and does nothing again."""
    engines = month.worker.engines
    with pytest.raises(LeaseHeld, match=r"another driver finished run .* while this one planned it"):
        month.start(Meanwhile(lambda: check_night(month, night)))
    assert month.worker.engines == engines + 1


def night_killed(month, night):
    """The next driver waits for the lease, then does what is neither recorded nor there."""
    needed, worker = needed_now(month), month.worker
    already = len(worker.made)
    worker.dies_after = already + len(needed) // 2
    with pytest.raises(Killed):
        month.start()
    worker.dies_after = None
    made = set(worker.made[already:])
    assert made < needed
    assert len(made) == len(needed) // 2
    recorded = month.recorded()
    assert set() < recorded < made
    gone = min(content for content in recorded if isinstance(content, Render))
    month.needs.objects |= recorded
    month.lose(gone)
    month.needed[gone] += 1
    month.clock.now += 5.0
    with pytest.raises(LeaseHeld, match=r"if it has ended already, try again in \d+ s"):
        month.start()
    month.clock.now += EXPIRY_S
    result = month.start()
    assert result.resumed
    check_plan(month, result)
    assert Counter(worker.made[already + len(made) :]) == Counter(needed - made | {gone})
    assert Counter(worker.adopted) == Counter(made - recorded)
    worker.adopted.clear()
    finish_night(month, night, result, needed)


def night_after_a_loss(month, night):
    there = sorted(set(month.plan().renders) & month.needs.objects)
    month.lose(there[3])
    month.lose(there[40], keep=9)
    month.lose(there[-1].concept)
    check_night(month, night)


SPECIAL = {
    STARTED_TWICE: night_started_twice,
    STARTED_WHILE_PLANNED: night_started_while_planned,
    KILLED: night_killed,
    OBJECTS_GONE: night_after_a_loss,
}


def test_month_of_nightly_rerenders_does_exactly_the_work_that_is_needed(month):
    for night in range(NIGHTS):
        month.clock.now = night * DAY_S + 7200.0
        month.began = month.clock.wall()
        if night:
            copied = set() if night in PROMPT_CHANGES else month.needs.published
            assert 25 <= month.shop.change(SHARE, copied) <= 35
        if night in PROMPT_CHANGES:
            month.shop.prompts[1] = PROMPT_CHANGES[night]
        month.shop.save()
        if night not in MISSED:
            SPECIAL.get(night, check_night)(month, night)
    check_month(month)


def check_month(month):
    worker = month.worker
    # By content, and so in total: nothing was made twice but what the storage had lost.
    assert Counter(worker.made) == month.needed
    assert month.needed.total() == len(month.needed) + 4
    assert len(set(worker.keys.values())) == len(worker.keys)
    assert len(month.runs) == NIGHTS - len(MISSED)
    found = [json.loads(path.read_text()) for path in month.root.glob("runs/*/published.json")]
    assert sorted((each["run_date"], each["run_id"]) for each in found) == month.runs
    check_leases(month)


def check_leases(month):
    """No driver got a lease before that of the driver before it had ended."""
    leases = [json.loads(path.read_text()) for path in month.root.glob("runs/*/lease/*.json")]
    held = sorted(
        (each["since"], each["heartbeat"] + (0.0 if each["released"] else EXPIRY_S), each["released"])
        for each in leases
    )
    assert [released for *_, released in held].count(False) == 1
    for (_, end, _), (since, _, _) in pairwise(held):
        assert since >= end
