"""One real worker: objects are where outcomes say, rows do not affect each other, and no work is done twice."""

import dataclasses
import hashlib
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion_ops.checkpoint import write_checkpoint
from perfusion_ops.concept import read_concept, write_concept
from perfusion_ops.training import Trainer, start
from pipeline.clock import SystemClock
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import checkpoint_path, image_path, weights_path
from pipeline.contract.units import MESSAGE_BYTES, Activity, RenderShape
from pipeline.inputs.pictures import InputLimits
from pipeline.storage.objects import Storage
from pipeline.storage.patience import UNIT_S, WAITS_S
from pipeline.worker.perfusion_worker import PerfusionWorker
from pipeline.worker.training_data import load_example
from tests.support.runs import (
    SHAPE,
    TROUBLES,
    Killed,
    Trouble,
    check_same_picture,
    check_same_weights,
    concept,
    key,
    limit_rows,
    photo,
    picture,
    planned,
    ready_worker,
    renders,
    trainings,
    troubled,
    worker_settings,
)

BASES = ("mug", "bag", "shoe")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker whose root holds three trained concepts; tests add to it and never change them."""
    folder = tmp_path_factory.mktemp("shared")
    worker = ready_worker(folder / "root")
    worker.run(trainings(*(concept(folder, name, superclass=name) for name in BASES)))
    return worker


@pytest.fixture
def worker(tmp_path):
    return ready_worker(tmp_path / "root")


def root_of(worker):
    return Path(worker.settings.root)


def pixels(worker, task):
    return np.asarray(Image.open(root_of(worker) / image_path(task.key))).astype(int)


def stands(path):
    """What changes when a file is written again, even with the same bytes."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


def stored(worker, task):
    path = weights_path(task.key) if hasattr(task, "training") else image_path(task.key)
    return root_of(worker) / path


def check_objects(worker, unit, outcomes):
    assert [outcome.key for outcome in outcomes] == [task.key for task in unit.tasks]
    for task, outcome in zip(unit.tasks, outcomes, strict=True):
        assert outcome.status == Status.OK, outcome.message
        file = stored(worker, task)
        assert outcome.uri == f"file://{file}"
        assert outcome.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert outcome.bytes == file.stat().st_size
        assert outcome.batch == len(unit.tasks)
        assert outcome.finished_at > 1e9


def weights(worker, task):
    base, metric = worker.models.base, worker.models.metric
    return read_concept(
        stored(worker, task).read_bytes(),
        base_digest=base.folder.digest,
        metric_digest=metric.digest,
        embedding_width=base.embedding_width,
        text_width=base.text_width,
        value_width=base.stack.key_rows,
    )


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


def test_a_worker_says_how_far_its_training_is(tmp_path):
    class Watching(SystemClock):
        """Looks at the worker whenever the worker looks at the time."""

        def monotonic(self):
            seen.append(worker.activity() if worker else None)
            return super().monotonic()

    seen, worker = [], None
    worker = ready_worker(tmp_path / "root", clock=Watching())
    worker.run(trainings(*(concept(tmp_path, name, steps=3) for name in ("mug", "bag"))))
    assert [each for each in seen if each] == [Activity("training", step, 3, 2) for step in range(3)]
    assert seen[0] is seen[-1] is worker.activity() is None


def test_rows_of_a_mixed_batch_equal_the_same_rows_alone(shared):
    rows = {
        "plain": ("mug",),
        "global": ("bag",),
        "pair": ("mug", "shoe"),
        "pair-global": ("shoe", "bag"),
        "negative": ("mug", "bag"),
    }
    settings = {
        "global": {"lock": "global", "bias": 0.3},
        "pair": {"prompt": "a {0} next to a {1}"},
        "pair-global": {"prompt": "a {1} on a {0}", "lock": "global"},
        "negative": {"prompt": "a {0} on the beach", "negative": "a {1}, blurry"},
    }
    batch = [picture(f"batch {name}", *of, seed=7, **settings.get(name, {})) for name, of in rows.items()]
    alone = [picture(f"alone {name}", *of, seed=7, **settings.get(name, {})) for name, of in rows.items()]
    check_objects(shared, renders(*batch), shared.run(renders(*batch)))
    for task in alone:
        check_objects(shared, renders(task), shared.run(renders(task)))
    together = [pixels(shared, task) for task in batch]
    for one, other in zip(batch, alone, strict=True):
        assert np.abs(pixels(shared, one) - pixels(shared, other)).max() <= 1
    # The rows differ from each other, so that equality above means something.
    for index, one in enumerate(together):
        assert all(np.abs(one - other).max() > 8 for other in together[index + 1 :])


def test_concept_in_the_negative_prompt_acts(shared):
    with_it = picture("negative bag", "mug", "bag", seed=3, negative="a {1}")
    without = picture("negative word", "mug", "bag", seed=3, negative="a bag")
    check_objects(shared, renders(with_it, without), shared.run(renders(with_it, without)))
    assert np.abs(pixels(shared, with_it) - pixels(shared, without)).max() > 8


def test_concept_acts_in_the_text_that_names_it_and_in_no_other(shared):
    row = shared.rendering.row(picture("named", "mug", "bag", prompt="a {0} and a {0}", negative="a {1}"))
    assert [len(each.concepts) for each in (row.positive, row.negative)] == [1, 1]
    assert row.positive.concepts[0] is not row.negative.concepts[0]
    assert (row.positive.prompt, row.negative.prompt) == ("a {0} and a {0}", "a {0}")
    # At guidance 1 there is no negative prompt, so a concept that only it names cannot matter.
    shape = replace(SHAPE, guidance=1.0)
    one = picture("with", "mug", "bag", seed=3, negative="a {1}", shape=shape)
    other = picture("without", "mug", seed=3, shape=shape)
    check_objects(shared, renders(one, other), shared.run(renders(one, other)))
    assert np.abs(pixels(shared, one) - pixels(shared, other)).max() <= 1


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


def test_a_bad_photo_fails_only_its_row(worker, tmp_path):
    masked = concept(
        tmp_path, "masked", masks=[photo(tmp_path / "mask.png", mode="L")], images=[photo(tmp_path / "photo.png")]
    )
    tasks = [concept(tmp_path, name) for name in ("good", "changed", "gone", "cut", "other")]
    photo(tmp_path / "changed.png", seed=99)
    (tmp_path / "gone.png").unlink()
    cut = (tmp_path / "cut.png").read_bytes()[:-20]
    (tmp_path / "cut.png").write_bytes(cut)
    tasks[3] = dataclasses.replace(tasks[3], images=(planned(tmp_path / "cut.png"),))
    photo(tmp_path / "mask.png", seed=5, mode="L")
    outcomes = worker.run(trainings(*tasks, masked))
    found = [(outcome.status, outcome.code) for outcome in outcomes]
    assert found == [
        (Status.OK, None),
        (Status.FAILED, Code.IMAGE_CHANGED),
        (Status.INVALID, Code.IMAGE_MISSING),
        (Status.INVALID, Code.IMAGE_TRUNCATED),
        (Status.OK, None),
        (Status.FAILED, Code.IMAGE_CHANGED),
    ]
    assert "changed.png" in outcomes[1].message
    assert "run again" in outcomes[1].message
    assert "mask.png" in outcomes[5].message


def test_trained_keys_are_asked_of_concepts_that_have_them(shared):
    bad, good = picture("no keys", "mug", lock="trained"), picture("locked", "mug")
    first, second = shared.run(renders(bad, good))
    assert (first.status, first.code) == (Status.INVALID, Code.OUT_OF_RANGE)
    assert "learned no keys" in first.message
    assert second.status == Status.OK


def test_prompts_that_do_not_fit_name_their_column(shared):
    many = "very " * 200
    tasks = [
        picture("long", "mug", prompt=f"a {many} {{0}}"),
        picture("long negative", "mug", negative=many),
        picture("short", "mug"),
    ]
    long, negative, short = shared.run(renders(*tasks))
    assert short.status == Status.OK
    assert (long.status, long.code, long.message[:8]) == (Status.INVALID, Code.PROMPT_TOO_LONG, "prompt: ")
    assert (negative.code, negative.message[:17]) == (Code.PROMPT_TOO_LONG, "negative_prompt: ")
    assert len(long.message.encode()) <= MESSAGE_BYTES


def test_messages_name_concepts_and_prompts_as_the_manifest_does(shared):
    task = replace(
        picture("named", "mug", "bag", prompt=f"a {{0}} on a {{1}} {'very ' * 40}"), concept_ids=("1", "b-1")
    )
    assert task.written(task.prompt).startswith("a {1} on a {b-1} very")
    absent = replace(picture("no weights", "nobody"), concept_ids=("n-1",))
    locked = replace(picture("keys", "bag", lock="trained"), concept_ids=("b-1",))
    long, lost, keyless = shared.run(renders(task, absent, locked))
    assert "('a {1} on a {b-1} very" in long.message
    assert "the weights of concept 'n-1' cannot be used" in lost.message
    assert "but concept 'b-1' learned no keys" in keyless.message
    assert not [each for each in (long, lost, keyless) if "{0}" in each.message]


def test_a_superclass_without_a_word_or_too_long_fails_alone(worker, tmp_path):
    tasks = [
        concept(tmp_path, name, superclass=words) for name, words in (("a", "mug"), ("b", "杯"), ("c", "very " * 30))
    ]
    good, wordless, long = worker.run(trainings(*tasks))
    assert good.status == Status.OK
    assert (wordless.status, wordless.code, wordless.column_name) == (
        Status.INVALID,
        Code.EMPTY_SUPERCLASS,
        "superclass",
    )
    assert (long.status, long.code, long.column_name) == (Status.INVALID, Code.TEXT_TOO_LONG, "superclass")


def test_missing_or_damaged_weights_fail_their_rows_and_are_trained_again(worker, tmp_path):
    tasks = [concept(tmp_path, name, superclass=name) for name in BASES]
    before = worker.run(trainings(*tasks))
    kept = [stored(worker, task).read_bytes() for task in tasks]
    cut, foreign, _ = (stored(worker, task) for task in tasks)
    cut.write_bytes(cut.read_bytes()[:100])
    foreign.write_bytes(
        write_concept(dataclasses.replace(weights(worker, tasks[1]), base_digest="e" * 64), key=tasks[1].key)
    )
    fresh = ready_worker(tmp_path / "root")  # the first one has them in memory
    rows = renders(*(picture(name, name) for name in (*BASES, "never trained")))
    outcomes = fresh.run(rows)
    assert [(row.status, row.code) for row in outcomes] == [
        (Status.FAILED, Code.WEIGHTS_INVALID),
        (Status.FAILED, Code.WEIGHTS_INVALID),
        (Status.OK, None),
        (Status.FAILED, Code.WEIGHTS_INVALID),
    ]
    assert "another base model (eeeeeeeeeeee...," in outcomes[1].message
    assert "there is no " in outcomes[3].message
    assert not cut.exists()
    after = fresh.run(trainings(*tasks))
    assert [row.accelerator_s > 0 for row in after] == [True, True, False]
    assert after[2].sha256 == before[2].sha256
    for data, task in zip(kept, tasks, strict=True):
        check_same_weights(data, stored(worker, task).read_bytes())
    assert {row.status for row in fresh.run(renders(*rows.tasks[:3]))} == {Status.OK}


def test_concepts_that_learned_the_same_fail_their_row_alone(shared):
    twin = Storage(str(root_of(shared)))
    one = read_concept_of(shared, "mug")
    twin.create(weights_path(key("twin")), write_concept(one, key=key("twin")))
    same, good = shared.run(renders(picture("twins", "mug", "twin", prompt="a {0} and a {1}"), picture("ok", "mug")))
    assert (same.status, same.code) == (Status.FAILED, Code.CONCEPTS_ALIKE)
    assert good.status == Status.OK


def read_concept_of(worker, name):
    return worker.files.load(key(name))[0]


def test_settings_that_diffusers_refuses_are_named(shared):
    for outcome in shared.run(
        renders(*(picture(f"odd {n}", "mug", shape=RenderShape(12, 64, 2, 4.5, "ddim")) for n in (1, 2)))
    ):
        assert (outcome.status, outcome.code) == (Status.INVALID, Code.OUT_OF_RANGE)
        assert "12 x 64 pixels in 2 steps of ddim" in outcome.message


def test_a_render_that_is_not_finite_is_not_stored(tmp_path):
    worker = ready_worker(tmp_path / "root", dtype="float16")
    worker.run(trainings(concept(tmp_path, "mug")))
    one = read_concept_of(worker, "mug")
    huge = dataclasses.replace(one, value_target=torch.full_like(one.value_target, 60_000.0))
    Storage(str(tmp_path / "root")).create(weights_path(key("huge")), write_concept(huge, key=key("huge")))
    bad, good = worker.run(renders(picture("bad", "huge"), picture("good", "mug")))
    assert (bad.status, bad.code, bad.uri) == (Status.FAILED, Code.RENDER_NOT_FINITE, None)
    assert good.status == Status.OK
    assert not stored(worker, picture("bad")).exists()


@pytest.mark.parametrize(
    ("value", "training", "words"),
    [(1e38, {}, "diverged at step 2"), (65_500.0, {"lr_value": 10, "steps": 30}, "cannot hold")],
)
def test_a_training_that_diverges_fails_alone(worker, tmp_path, value, training, words):
    """It starts from a checkpoint that is about to diverge."""
    bad, good = concept(tmp_path, "bad", **training), concept(tmp_path, "good")
    state, example = about_to_diverge(worker, bad, value)
    Storage(str(tmp_path / "root")).write(
        checkpoint_path(bad.key),
        write_checkpoint(state, Trainer(worker.models.base, worker.models.metric, [example]).optimizer),
    )
    lost, fine = worker.run(trainings(bad, good))
    assert (lost.status, lost.code, lost.uri) == (Status.FAILED, Code.TRAINING_DIVERGED, None)
    assert words in lost.message
    assert "lr_value" in lost.message
    assert fine.status == Status.OK
    assert not stored(worker, bad).exists()
    alone = ready_worker(tmp_path / "alone")
    [undisturbed] = alone.run(trainings(good))
    assert undisturbed.status == Status.OK
    for name, tensor in weights(alone, good).tensors().items():
        torch.testing.assert_close(weights(worker, good).tensors()[name], tensor, rtol=0, atol=2e-3)
    # The next attempt starts from the beginning and does not diverge again.
    assert worker.run(trainings(bad))[0].status == Status.OK


def about_to_diverge(worker, task, value):
    example = load_example(worker.models.base, task, worker.inputs)
    state = start(worker.models.base, example)
    with torch.no_grad():
        state.value_target.fill_(value)
    state.step = 1
    return state, example


@pytest.mark.parametrize("killed_after", [1, 4, 7])
def test_training_killed_in_the_middle_ends_in_the_same_weights(tmp_path, killed_after):
    tasks = [concept(tmp_path, "mug", steps=5), concept(tmp_path, "bag", superclass="bag", steps=4)]
    calm = ready_worker(tmp_path / "calm")
    calm.run(trainings(*tasks))
    # A checkpoint of both concepts after every step; the process dies between any two writes.
    root = troubled("resume", writes_left=killed_after)
    worker = ready_worker(root, checkpoint_s=1e-9)
    with pytest.raises(Killed):
        worker.run(trainings(*tasks))
    storage = Storage(root)
    assert storage.exists(checkpoint_path(tasks[0].key))
    TROUBLES["resume"] = Trouble()
    again = ready_worker(root, checkpoint_s=1e9)
    outcomes = again.run(trainings(*tasks))
    for task, outcome in zip(tasks, outcomes, strict=True):
        assert (outcome.status, outcome.origin) == (Status.OK, Origin.TRAINED)
        resumed = again.files.check(task.key, storage.read(weights_path(task.key)))
        for name, tensor in weights(calm, task).tensors().items():
            torch.testing.assert_close(resumed.tensors()[name], tensor, rtol=1e-3, atol=1e-3)
        assert not storage.exists(checkpoint_path(task.key))


def test_a_resumed_training_continues_at_its_checkpoint(tmp_path):
    """From a checkpoint at the last step but one, one step is left."""
    task = concept(tmp_path, "mug", steps=3)
    root = troubled("one step", writes_left=2)
    with pytest.raises(Killed):
        ready_worker(root, checkpoint_s=1e-9).run(trainings(task))
    TROUBLES["one step"] = Trouble()
    worker = ready_worker(root)
    steps = count_forwards(worker)
    assert worker.run(trainings(task))[0].status == Status.OK
    assert len(steps) == 1


def count_forwards(worker):
    calls = []
    worker.models.base.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_damaged_checkpoint_costs_time_only(worker, tmp_path):
    task = concept(tmp_path, "mug")
    calm = ready_worker(tmp_path / "calm")
    [undisturbed] = calm.run(trainings(task))
    state, example = about_to_diverge(worker, task, 1.0)
    whole = write_checkpoint(state, Trainer(worker.models.base, worker.models.metric, [example]).optimizer)
    for damaged in (b"", bytes(40), whole[:-1], whole.replace(b'"random"', b'"redman"')):
        Storage(str(tmp_path / "root")).write(checkpoint_path(task.key), damaged)
        [outcome] = worker.run(trainings(task))
        assert (outcome.origin, outcome.sha256) == (Origin.TRAINED, undisturbed.sha256)
        stored(worker, task).unlink()
    # The undamaged checkpoint is used: only the damage made the difference above.
    Storage(str(tmp_path / "root")).write(checkpoint_path(task.key), whole)
    [outcome] = worker.run(trainings(task))
    assert outcome.sha256 != undisturbed.sha256


def test_base_that_is_not_the_planned_one_is_refused(tmp_path):
    worker = PerfusionWorker(worker_settings(tmp_path, base_digest="f" * 64))
    with pytest.raises(RuntimeError, match=r"digests to [0-9a-f]{12}\.\.\., the run was planned with ffffffffffff"):
        worker.setup()


def test_out_of_memory_halves_the_micro_batch_and_changes_no_result(tmp_path):
    tasks = [concept(tmp_path, name, superclass=name, batch=4, steps=3) for name in ("mug", "bag")]
    roomy, tight = ready_worker(tmp_path / "roomy"), ready_worker(tmp_path / "tight")
    limit_rows(tight, 3)
    check_objects(roomy, trainings(*tasks), roomy.run(trainings(*tasks)))
    check_objects(tight, trainings(*tasks), tight.run(trainings(*tasks)))
    assert tight.training.micro_batch == 2
    for task in tasks:
        for name, tensor in weights(roomy, task).tensors().items():
            torch.testing.assert_close(weights(tight, task).tensors()[name], tensor, rtol=1e-3, atol=1e-3)
    # Rendering is the scheduler's to halve; a single row that does not fit is its own.
    rows = [picture(str(n), "mug") for n in range(2)]
    with pytest.raises(torch.OutOfMemoryError):
        tight.run(renders(*rows))
    check_objects(tight, renders(rows[0]), tight.run(renders(rows[0])))
    limit_rows(tight, 0)
    with pytest.raises(torch.OutOfMemoryError):
        tight.run(trainings(concept(tmp_path, "shoe")))


def test_storage_that_is_busy_for_a_moment_fails_no_row(tmp_path):
    root, waits = troubled("busy"), []
    worker = ready_worker(root, sleep=waits.append, checkpoint_s=1e-9)
    train, draw = trainings(concept(tmp_path, "mug")), renders(picture("a", "mug"))
    for unit, where in ((train, "/weights/"), (train, "/checkpoints/"), (draw, "/images/")):
        for operation in ("read", "write"):
            for path in [weights_path(key("mug")), image_path(draw.tasks[0].key)][unit is draw :]:
                Storage(root).delete(path)
            TROUBLES["busy"] = Trouble(errors=3, where=where, operations=(operation,))
            waits.clear()
            [outcome] = worker.run(unit)
            assert outcome.status == Status.OK, outcome.message
            if TROUBLES["busy"].errors == 0:
                assert waits[:3] == list(WAITS_S[:3])
            if unit is train:
                assert Storage(root).exists(weights_path(key("mug")))
        if unit is train:
            worker.files.clear()
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
    assert outcome.status == Status.OK, outcome.message
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
    assert {(row.status, row.code) for row in outcomes} == {(Status.FAILED, Code.STORAGE)}
    assert "503 Slow Down" in outcomes[0].message
    assert sum(WAITS_S) <= sum(waits) <= UNIT_S
    TROUBLES["down"] = Trouble()
    assert {row.status for row in worker.run(train)} == {Status.OK}


def test_checkpoints_that_cannot_be_written_fail_no_row(tmp_path):
    root = troubled("no checkpoints")
    worker = ready_worker(root, sleep=lambda _: None, checkpoint_s=1e-9)
    TROUBLES["no checkpoints"] = Trouble(errors=10**6, where="/checkpoints/")
    [outcome] = worker.run(trainings(concept(tmp_path, "mug")))
    assert outcome.status == Status.OK


def test_permanent_errors_are_not_retried(tmp_path):
    waits = []
    worker = ready_worker(tmp_path / "root", sleep=waits.append)
    task = concept(tmp_path, "gone")
    (tmp_path / "gone.png").unlink()
    assert worker.run(trainings(task))[0].code == Code.IMAGE_MISSING
    assert worker.run(renders(picture("a", "never trained")))[0].code == Code.WEIGHTS_INVALID
    assert waits == []
