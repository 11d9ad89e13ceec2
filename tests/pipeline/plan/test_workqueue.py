"""The queue gives every key out once and records it once, whatever fails."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code, Status
from pipeline.contract.kinds import PerKind
from pipeline.contract.units import Outcome, RenderUnit, TrainUnit
from pipeline.plan import workqueue
from pipeline.plan.workqueue import WorkQueue
from tests.support.plans import concept, planned

STATUSES = [Status.OK, Status.OK, Status.OK, Status.FAILED, Status.INVALID]


def outcome(unit, task, status=Status.OK):
    kind = "concept" if isinstance(unit, TrainUnit) else "render"
    return Outcome(
        kind, task.key, status, None if status == Status.OK else Code.INTERNAL, message=f"{task.key[:4]} broke"
    )


def drain(queue, status=lambda unit, task: Status.OK):
    """Every unit in order, each recorded at once."""
    units = []
    while unit := queue.next():
        units.append(unit)
        queue.record([outcome(unit, task, status(unit, task)) for task in unit.tasks])
    return units


def a_plan(chance: random.Random):
    names = [f"c{number}" for number in range(chance.randint(1, 12))]
    concepts = [concept(name, train=chance.choice([None, '{"steps": 99}', '{"batch": 1}'])) for name in names] + [
        concept("twin", images=concept("c0")["images"])
    ]
    mentions = [f"{{{name}}}" for name in (*names, "twin", "product")]
    prompts = [
        {
            "prompt": " and ".join(chance.choices(mentions, k=chance.randint(1, 3))),
            "num_images": chance.choice([1, 1, 4]),
            "seed": chance.choice([None, 1]),
            "width": chance.choice([None, 64]),
        }
        for _ in range(chance.randint(0, 8))
    ]  # fmt: skip
    return planned(concepts, prompts)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), page=st.sampled_from([2, 5, 4096]), most=st.sampled_from([3, 20_000]))
def test_every_key_ends_once_under_random_failures(seed, page, most):
    chance = random.Random(seed)
    with a_plan(chance) as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr(workqueue, "_PAGE", page)
        patch.setattr(workqueue, "_MOST_WAITING", most)
        needs = dict(db.connection.execute("SELECT render_key, concept_keys FROM requests").fetchall())
        trained = {key for (key,) in db.connection.execute("SELECT concept_key FROM concept_keys").fetchall()}
        done = set(chance.sample(sorted(trained), chance.randint(0, len(trained) // 2)))
        for key in done:
            db.connection.execute("INSERT INTO done (kind, key) VALUES ('concept', ?)", [key])
        queue = WorkQueue(db, group_size=chance.randint(1, 4), render_batch=chance.randint(1, 5))
        assert queue.remaining() == PerKind(len(trained - done), len(needs))
        ended: dict[str, Status] = dict.fromkeys(done, Status.OK)
        recorded: list[str] = []
        out: list[Outcome] = []
        while queue.unfinished():
            unit = queue.next() if not out or chance.random() < 0.7 else None
            assert unit is not None or out, "nothing runs, nothing is ready, and the queue says it is not finished"
            if unit is not None:
                out += [outcome(unit, task, chance.choice(STATUSES)) for task in unit.tasks]
                if isinstance(unit, TrainUnit):
                    assert len({task.training for task in unit.tasks}) == 1
                else:
                    assert len({task.shape for task in unit.tasks}) == 1
                    for task in unit.tasks:
                        assert list(task.concepts) == list(dict.fromkeys(needs[task.key]))
                        assert all(ended[key] == Status.OK for key in task.concepts)
            chance.shuffle(out)
            cut = chance.randint(0, len(out))
            now, out = out[:cut], out[cut:]
            lost = queue.record(now)
            for item in [*now, *lost]:
                ended[item.key] = item.status
                recorded.append(item.key)
            for item in lost:
                assert item.code == Code.CONCEPT_FAILED
                assert "broke" in (item.message or "")
                assert any(ended.get(key, Status.OK) != Status.OK for key in needs[item.key])
        assert queue.next() is None
        assert sorted(recorded) == sorted((trained - done) | set(needs))
        assert queue.remaining() == PerKind(0, 0)


def test_longest_training_first_and_renders_by_concept():
    concepts = [concept(f"c{number}", train=f'{{"steps": {10 + number % 3}}}') for number in range(9)]
    with planned(concepts, [{"prompt": f"{{product}} {number}"} for number in range(4)]) as db:
        units = drain(WorkQueue(db, group_size=2, render_batch=4))
    steps = [[task.training.steps for task in unit.tasks] for unit in units if isinstance(unit, TrainUnit)]
    assert steps == [[12, 12], [12], [11, 11], [11], [10, 10], [10]]
    renders = [unit for unit in units if isinstance(unit, RenderUnit)]
    assert [len(unit.tasks) for unit in renders] == [4] * 9
    assert all(len({task.concepts for task in unit.tasks}) == 1 for unit in renders)
    assert len({unit.unit_id for unit in units}) == len(units)


def test_a_render_starts_when_its_last_concept_is_there():
    concepts = [concept(name) for name in ("a", "b", "c")]
    with planned(concepts, [{"prompt": "{a}"}, {"prompt": "{a} {b}"}]) as db:
        queue = WorkQueue(db, group_size=1, render_batch=8)
        out = {}
        while isinstance(unit := queue.next(), TrainUnit):
            out[unit.tasks[0].concept_id] = unit
        assert unit is None
        assert queue.unfinished()
        queue.record([outcome(out["a"], out["a"].tasks[0])])
        first = queue.next()
        assert first is not None
        assert [len(task.concepts) for task in first.tasks] == [1]
        assert queue.next() is None
        queue.record([outcome(out["b"], out["b"].tasks[0])])
        second = queue.next()
        assert second is not None
        assert [task.prompt for task in second.tasks] == ["{0} {1}"]
        queue.record([outcome(unit, task) for unit in (first, second, out["c"]) for task in unit.tasks])
        assert not queue.unfinished()


def test_order_of_the_manifest_is_not_in_the_tasks():
    pictures = concept("a")["images"]
    tasks = []
    for images, superclass in ((pictures, "teddy bear"), (pictures[::-1], " teddy  bear")):
        with planned([concept("a", images=images, masks=images[::-1], superclass=superclass)], []) as db:
            unit = WorkQueue(db, group_size=1, render_batch=1).next()
            assert unit is not None
            tasks.append(unit.tasks[0])
    assert tasks[0] == tasks[1]
    assert tasks[0].masks == tasks[0].images[::-1]


def test_equal_rows_are_one_piece_of_work_and_what_is_done_is_none():
    prompts = [{"prompt": "{a}", "seed": 1}, {"prompt": "{twin}", "seed": 1}, {"prompt": "{a}", "seed": 2}]
    with planned([concept("a"), concept("twin", images=concept("a")["images"])], prompts) as db:
        assert WorkQueue(db, group_size=8, render_batch=8).remaining() == PerKind(1, 2)
        db.connection.execute("INSERT INTO done (kind, key) SELECT 'render', render_key FROM requests WHERE seed = 2")
        queue = WorkQueue(db, group_size=8, render_batch=8)
        assert queue.remaining() == PerKind(1, 1)
        drain(queue)
        assert not queue.unfinished()


def test_what_is_not_out_cannot_be_recorded():
    with planned([concept("a")], [{"prompt": "{a}"}]) as db:
        queue = WorkQueue(db, group_size=1, render_batch=1)
        unit = queue.next()
        assert unit is not None
        queue.record([outcome(unit, unit.tasks[0])])
        with pytest.raises(ValueError, match="not out"):
            queue.record([outcome(unit, unit.tasks[0])])
        with pytest.raises(ValueError, match="not out"):
            queue.record([Outcome("render", "0" * 64, Status.OK)])


def test_only_a_page_of_tasks_is_in_memory():
    prompts = [{"prompt": f"{{product}} {number}"} for number in range(60)]
    with planned([concept(f"c{number}") for number in range(300)], prompts) as db:
        queue = WorkQueue(db, group_size=32, render_batch=32)
        most = 0
        while unit := queue.next():
            most = max(most, sum(map(len, queue._waiting.values())) + len(queue._out) + len(queue._trainings))
            queue.record([outcome(unit, task) for task in unit.tasks])
        assert not queue.unfinished()
        assert most <= workqueue._PAGE + 32
