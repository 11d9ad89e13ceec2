"""Renders that are written while a real worker does its next unit: what overlaps, what fails, and what it costs."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.contract.errors import Code, Status
from pipeline.contract.layout import checkpoint_path, image_path
from pipeline.storage.objects import Storage
from pipeline.worker.settings import Encoding
from pipeline.worker.storing import Picture, PictureStore
from tests.support.fake_clock import FakeClock
from tests.support.runs import (
    TROUBLES,
    Trouble,
    concept,
    key,
    picture,
    ready_worker,
    renders,
    trainings,
    troubled,
)
from tests.support.worker_objects import check_objects, stored

pytestmark = pytest.mark.timeout(300)


class Gate:
    """What a worker waits on before it tries its storage again: tells that it waits, and waits until it is opened."""

    def __init__(self, *, of_threads="write"):
        self.of_threads = of_threads
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, seconds):
        if threading.current_thread().name.startswith(self.of_threads):
            self.reached.set()
            assert self.opened.wait(120)


@pytest.fixture
def slow():
    """A worker whose pictures are not written until a gate opens, and the gate."""
    root, gate = troubled("slow"), Gate()
    worker = ready_worker(root, sleep=gate, checkpoint_s=1e-9)
    yield worker, gate
    gate.opened.set()
    worker.close()


def names(*numbers):
    return [picture(f"p{number}", "mug") for number in numbers]


def exists(worker, task):
    return Storage(worker.settings.root).exists(image_path(task.key))


def test_nothing_is_written_before_a_unit_is_finished_and_all_of_it_afterwards(worker, tmp_path):
    worker.run(trainings(concept(tmp_path, "mug")))
    unit = renders(*names(1, 2, 3))
    finish = worker.compute(unit)
    assert not any(stored(worker, task).exists() for task in unit.tasks)
    check_objects(worker, unit, finish())


def test_the_next_unit_is_drawn_while_the_one_before_is_written(slow, tmp_path):
    worker, gate = slow
    worker.run(trainings(concept(tmp_path, "mug")))
    first, second = renders(*names(1, 2)), renders(*names(3, 4))
    finish = worker.compute(first)
    TROUBLES["slow"] = Trouble(errors=2, where="/images/", operations=("write",))
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(finish)
        assert gate.reached.wait(60)
        finish_second = worker.compute(second)  # also looks for its files, which no waiting write delays
        assert not ending.done()
        gate.opened.set()
        outcomes = ending.result(60) + finish_second()
    assert {outcome.status for outcome in outcomes} == {Status.OK}
    for task, outcome in zip([*first.tasks, *second.tasks], outcomes, strict=True):
        data = Storage(worker.settings.root).read(image_path(task.key))
        assert (outcome.key, outcome.sha256) == (task.key, hashlib.sha256(data).hexdigest())


def test_a_training_and_its_checkpoints_are_not_disturbed_by_pictures_that_are_still_written(slow, tmp_path):
    worker, gate = slow
    worker.run(trainings(concept(tmp_path, "mug")))
    unit = renders(*names(1, 2))
    finish = worker.compute(unit)
    TROUBLES["slow"] = Trouble(errors=2, where="/images/", operations=("write",))
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(finish)
        assert gate.reached.wait(60)
        [trained] = worker.run(trainings(concept(tmp_path, "bag", superclass="bag", steps=3)))
        assert not ending.done()
        gate.opened.set()
        outcomes = ending.result(60)
    assert trained.status == Status.OK
    assert not Storage(worker.settings.root).exists(checkpoint_path(key("bag")))
    assert {outcome.status for outcome in outcomes} == {Status.OK}


def test_a_picture_that_cannot_be_written_fails_alone(worker, tmp_path):
    worker.run(trainings(concept(tmp_path, "mug")))
    unit = renders(*names(1, 2, 3))
    stored(worker, unit.tasks[1]).mkdir(parents=True)  # a folder where the file should be
    finish = worker.compute(renders(*names(4)))
    bad = worker.run(unit)
    assert [outcome.status for outcome in bad] == [Status.OK, Status.FAILED, Status.OK]
    assert bad[1].error_code == Code.STORAGE
    check_objects(worker, renders(*names(4)), finish())


def test_each_thread_may_wait_as_long_as_a_unit_for_a_storage_that_is_down(tmp_path):
    root, waits = troubled("quiet"), []
    worker = ready_worker(root, sleep=waits.append, store_threads=2)
    worker.run(trainings(concept(tmp_path, "mug")))
    waits.clear()
    finish = worker.compute(renders(*names(*range(4))))
    TROUBLES["quiet"] = Trouble(errors=10**6, where="/images/", operations=("write",))
    assert {outcome.error_code for outcome in finish()} == {Code.STORAGE}
    assert sum(waits) == 4 * 31.5  # with one budget for all threads, the last picture would get less
    assert worker.counters()["storage_retries"] == len(waits)


def test_the_accelerator_s_time_ends_when_the_pixels_are_there(tmp_path):
    class Clock(FakeClock):
        def monotonic(self):
            self.now += 1.0
            return self.now

    worker = ready_worker(tmp_path / "root", clock=Clock())
    worker.run(trainings(concept(tmp_path, "mug")))
    adopted, *fresh = names(1, 2, 3)
    worker.run(renders(adopted))
    finish = worker.compute(renders(adopted, *fresh))
    worker._clock.now += 1000.0
    outcomes = finish()
    assert [outcome.accelerator_s for outcome in outcomes] == [0.0, 0.5, 0.5]  # one second, for two of the rows


# The threads


def store_of(tmp_path, threads=2):
    return PictureStore(Storage(str(tmp_path)), Encoding(), base_digest="b", threads=threads)


def of(number, shape=(8, 8, 3)):
    return Picture(key(f"p{number}"), np.full(shape, number, np.uint8), ())


def test_an_error_in_a_thread_is_raised_when_the_others_have_ended(tmp_path):
    bug = of(0, shape=(8, 8))  # not RGB
    object.__setattr__(bug, "pixels", np.zeros((8, 8, 3, 3), np.uint8))
    store = store_of(tmp_path)
    with pytest.raises(TypeError):
        store.store([bug, *(of(number) for number in range(1, 9))])
    there = {number for number in range(1, 9) if Storage(str(tmp_path)).exists(image_path(key(f"p{number}")))}
    assert there == set(range(1, 9))
    # The unit is tried again, row by row: what was written is found.
    assert store.find([key("p1"), key("p0")]).keys() == {key("p1")}
    store.close()


def test_pictures_are_written_by_several_threads_at_once(tmp_path):
    together = threading.Barrier(3)

    class Meeting(Storage):
        def write(self, path, data):
            together.wait(30)
            super().write(path, data)

    store = PictureStore(Meeting(str(tmp_path)), Encoding(), base_digest="b", threads=3)
    outcomes = store.store([of(number) for number in range(6)])
    assert [outcomes[key(f"p{number}")].status for number in range(6)] == [Status.OK] * 6
    store.close()


def test_files_of_each_format_are_found_by_their_own_format_only(tmp_path):
    png, webp = (
        PictureStore(Storage(str(tmp_path)), Encoding(name), base_digest="b", threads=1) for name in ("png", "webp")
    )
    [made] = webp.store([of(1)]).values()
    assert made.uri == f"file://{tmp_path}/{image_path(key('p1'), 'webp')}"
    assert webp.find([key("p1")])[key("p1")] == made
    assert png.find([key("p1")]) == {}
    path = tmp_path / image_path(key("p1"), "webp")
    path.write_bytes(path.read_bytes()[:-2])
    assert webp.find([key("p1")]) == {}
