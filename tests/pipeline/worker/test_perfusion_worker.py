"""One real worker: objects are where outcomes say, rows do not affect each other, and no work is done twice."""

import dataclasses
import hashlib
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import image_path, weights_path
from pipeline.contract.units import RenderShape
from pipeline.inputs.pictures import InputLimits
from pipeline.storage.objects import Storage
from pipeline.storage.patience import UNIT_S, WAITS_S
from pipeline.worker.perfusion_worker import PerfusionWorker
from tests.support.runs import (
    TROUBLES,
    Trouble,
    check_same_picture,
    check_same_weights,
    concept,
    key,
    photo,
    picture,
    planned,
    ready_worker,
    renders,
    trainings,
    troubled,
    worker_settings,
)
from tests.support.worker_objects import BASES, check_objects, pixels, stored


def stands(path):
    """What changes when a file is written again, even with the same bytes."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_worker_trains_and_renders_its_units(worker, tmp_path):
    units = trainings(concept(tmp_path, "mug"), concept(tmp_path, "bag", superclass="bag"))
    made = worker.run(units)
    check_objects(worker, units, made)
    assert {outcome.origin for outcome in made} == {Origin.TRAINED}
    assert all(outcome.loss > 0 and outcome.accelerator_s > 0 and outcome.worker for outcome in made)
    shapes = renders(picture("one", "mug"), picture("two", "bag", seed=5))
    made = worker.run(shapes)
    check_objects(worker, shapes, made)
    assert {outcome.origin for outcome in made} == {Origin.RENDERED}
    assert pixels(worker, shapes.tasks[0]).shape == (64, 64, 3)
    wide = renders(picture("wide", "mug", shape=RenderShape(96, 40, 1, 1.0, "euler")))
    check_objects(worker, wide, worker.run(wide))
    assert pixels(worker, wide.tasks[0]).shape == (40, 96, 3)
    info = Image.open(stored(worker, wide.tasks[0])).info
    assert info["perfusion:weights_sha256"] == hashlib.sha256(stored(worker, units.tasks[0]).read_bytes()).hexdigest()
    assert info["perfusion:base_sha256"] == worker.models.base.folder.digest


def test_objects_whose_outcome_was_lost_are_adopted(worker, tmp_path):
    train, draw = trainings(concept(tmp_path, "mug")), renders(picture("a", "mug"), picture("b", "mug"))
    first = worker.run(train) + worker.run(draw)
    before = [stands(stored(worker, task)) for task in (*train.tasks, *draw.tasks)]
    (tmp_path / "mug.png").unlink()  # adopting reads no photo
    again = ready_worker(tmp_path / "root")
    second = again.run(train) + again.run(renders(*draw.tasks, picture("c", "mug")))
    assert [stands(stored(worker, task)) for task in (*train.tasks, *draw.tasks)] == before
    for old, new in zip(first, second, strict=False):
        assert (new.key, new.uri, new.sha256, new.bytes) == (old.key, old.uri, old.sha256, old.bytes)
        assert (new.status, new.origin, new.loss, new.accelerator_s) == (Status.OK, old.origin, old.loss, 0.0)
    assert second[-1].origin == Origin.RENDERED
    assert second[-1].accelerator_s > 0


def test_objects_that_are_cut_off_or_another_ones_are_made_again(worker, tmp_path):
    train = trainings(*(concept(tmp_path, name, superclass=name) for name in BASES))
    draw = renders(*(picture(name, name) for name in BASES))
    first = worker.run(train) + worker.run(draw)
    before = [stored(worker, task).read_bytes() for task in (*train.tasks, *draw.tasks)]
    for tasks in (train.tasks, draw.tasks):
        cut, swapped, _ = (stored(worker, task) for task in tasks)
        cut.write_bytes(cut.read_bytes()[:-1])
        swapped.write_bytes(stored(worker, tasks[2]).read_bytes())
    again = ready_worker(tmp_path / "root")
    second = again.run(train) + again.run(draw)
    assert [outcome.accelerator_s > 0 for outcome in second] == [True, True, False] * 2
    # Two were made again without the third: another group and another batch.
    assert [second[index].sha256 == first[index].sha256 for index in (2, 5)] == [True, True]
    after = [stored(again, task).read_bytes() for task in (*train.tasks, *draw.tasks)]
    for one, other in zip(before[:3], after[:3], strict=True):
        check_same_weights(one, other)
    for one, other in zip(before[3:], after[3:], strict=True):
        check_same_picture(one, other)
    # The products differ from each other, so that equality above means something.
    with pytest.raises(AssertionError):
        check_same_weights(before[0], before[1])
    with pytest.raises(AssertionError):
        check_same_picture(before[3], before[4])
    check_objects(again, train, second[:3])
    check_objects(again, draw, second[3:])


def test_base_that_is_not_the_planned_one_is_refused(tmp_path):
    worker = PerfusionWorker(worker_settings(tmp_path, base_digest="f" * 64))
    with pytest.raises(RuntimeError, match=r"digests to [0-9a-f]{12}\.\.\., the run was planned with ffffffffffff"):
        worker.setup()


def test_storage_that_is_busy_for_a_moment_fails_no_row(tmp_path):
    root, waits = troubled("busy"), []
    worker = ready_worker(root, sleep=waits.append, checkpoint_s=1e-9)
    train, draw = trainings(concept(tmp_path, "mug")), renders(picture("a", "mug"))
    retried = 0
    for unit, where in ((train, "/weights/"), (train, "/checkpoints/"), (draw, "/images/")):
        for operation in ("read", "write"):
            for path in [weights_path(key("mug")), image_path(draw.tasks[0].key)][unit is draw :]:
                Storage(root).delete(path)
            TROUBLES["busy"] = Trouble(errors=3, where=where, operations=(operation,))
            waits.clear()
            [outcome] = worker.run(unit)
            retried += len(waits)
            assert outcome.status == Status.OK, outcome.error_message
            if TROUBLES["busy"].errors == 0:
                assert waits[:3] == list(WAITS_S[:3])
            if unit is train:
                assert Storage(root).exists(weights_path(key("mug")))
        if unit is train:
            worker.files.clear()
    assert worker.counters() == {"storage_retries": retried}
    assert Storage(root).exists(image_path(draw.tasks[0].key))


def test_photos_that_cannot_be_read_for_a_moment_fail_no_row(tmp_path):
    """A web server that answers 503 twice; what it is asked for afterwards, it gives."""
    waits = []
    photo(tmp_path / "web" / "mug.png")
    image = planned(tmp_path / "web" / "mug.png")
    with busy_server(tmp_path / "web", errors=2) as address:
        worker = ready_worker(tmp_path / "root", sleep=waits.append, limits=InputLimits(allow=("http://",)))
        task = concept(tmp_path, "mug", images=[dataclasses.replace(image, uri=f"{address}/mug.png")])
        [outcome] = worker.run(trainings(task))
    assert outcome.status == Status.OK, outcome.error_message
    assert waits == list(WAITS_S[:2])


@contextmanager
def busy_server(folder, errors):
    class Handler(SimpleHTTPRequestHandler):
        left = errors

        def do_GET(self):
            if Handler.left:
                Handler.left -= 1
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_storage_that_stays_down_fails_the_rows_and_is_not_awaited_for_each_row(tmp_path):
    root, waits = troubled("down"), []
    worker = ready_worker(root, sleep=waits.append)
    train = trainings(*(concept(tmp_path, f"mug-{n}") for n in range(8)))
    TROUBLES["down"] = Trouble(errors=10**6, where="/weights/")
    outcomes = worker.run(train)
    assert {(row.status, row.error_code) for row in outcomes} == {(Status.FAILED, Code.STORAGE)}
    assert "503 Slow Down" in outcomes[0].error_message
    assert sum(WAITS_S) <= sum(waits) <= UNIT_S
    TROUBLES["down"] = Trouble()
    assert {row.status for row in worker.run(train)} == {Status.OK}


def test_permanent_errors_are_not_retried(tmp_path):
    waits = []
    worker = ready_worker(tmp_path / "root", sleep=waits.append)
    task = concept(tmp_path, "gone")
    (tmp_path / "gone.png").unlink()
    assert worker.run(trainings(task))[0].error_code == Code.IMAGE_MISSING
    assert worker.run(renders(picture("a", "never trained")))[0].error_code == Code.WEIGHTS_INVALID
    assert waits == []
