"""Trainings on a real worker: a concept that fails does so alone, and a resumed one ends in the same weights."""

import dataclasses

import pytest
import torch

from perfusion_ops.training.checkpoint import write_checkpoint
from perfusion_ops.training.trainer import Trainer
from pipeline.clock import SystemClock
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import checkpoint_path, weights_path
from pipeline.contract.units import Activity
from pipeline.storage.objects import Storage
from tests.support.runs import (
    TROUBLES,
    Killed,
    Trouble,
    concept,
    limit_rows,
    photo,
    picture,
    planned,
    ready_worker,
    renders,
    trainings,
    troubled,
)
from tests.support.worker_objects import about_to_diverge, check_objects, stored, weights


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
    found = [(outcome.status, outcome.error_code) for outcome in outcomes]
    assert found == [
        (Status.OK, None),
        (Status.FAILED, Code.IMAGE_CHANGED),
        (Status.INVALID, Code.IMAGE_MISSING),
        (Status.INVALID, Code.IMAGE_TRUNCATED),
        (Status.OK, None),
        (Status.FAILED, Code.IMAGE_CHANGED),
    ]
    assert "changed.png" in outcomes[1].error_message
    assert "run again" in outcomes[1].error_message
    assert "mask.png" in outcomes[5].error_message


def test_a_superclass_without_a_word_or_too_long_fails_alone(worker, tmp_path):
    tasks = [
        concept(tmp_path, name, superclass=words) for name, words in (("a", "mug"), ("b", "杯"), ("c", "very " * 30))
    ]
    good, wordless, long = worker.run(trainings(*tasks))
    assert good.status == Status.OK
    assert (wordless.status, wordless.error_code, wordless.error_column) == (
        Status.INVALID,
        Code.EMPTY_SUPERCLASS,
        "superclass",
    )
    assert (long.status, long.error_code, long.error_column) == (Status.INVALID, Code.TEXT_TOO_LONG, "superclass")


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
    assert (lost.status, lost.error_code, lost.uri) == (Status.FAILED, Code.TRAINING_DIVERGED, None)
    assert words in lost.error_message
    assert "lr_value" in lost.error_message
    assert fine.status == Status.OK
    assert not stored(worker, bad).exists()
    alone = ready_worker(tmp_path / "alone")
    [undisturbed] = alone.run(trainings(good))
    assert undisturbed.status == Status.OK
    for name, tensor in weights(alone, good).tensors().items():
        torch.testing.assert_close(weights(worker, good).tensors()[name], tensor, rtol=0, atol=2e-3)
    # The next attempt starts from the beginning and does not diverge again.
    assert worker.run(trainings(bad))[0].status == Status.OK


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
    worker.models.base.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
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


def test_checkpoints_that_cannot_be_written_fail_no_row(tmp_path):
    root = troubled("no checkpoints")
    worker = ready_worker(root, sleep=lambda _: None, checkpoint_s=1e-9)
    TROUBLES["no checkpoints"] = Trouble(errors=10**6, where="/checkpoints/")
    [outcome] = worker.run(trainings(concept(tmp_path, "mug")))
    assert outcome.status == Status.OK


def test_out_of_memory_halves_the_micro_batch_and_changes_no_result(tmp_path):
    tasks = [concept(tmp_path, name, superclass=name, batch=4, steps=3) for name in ("mug", "bag")]
    roomy, tight = ready_worker(tmp_path / "roomy"), ready_worker(tmp_path / "tight")
    limit_rows(tight, 3)
    check_objects(roomy, trainings(*tasks), roomy.run(trainings(*tasks)))
    check_objects(tight, trainings(*tasks), tight.run(trainings(*tasks)))
    assert tight.training.micro_batch == 2
    # With fewer than four samples, activations are computed twice first.
    assert (tight.training.recomputes, roomy.training.recomputes) == (True, False)
    stubborn = ready_worker(tmp_path / "stubborn", recompute="off")
    limit_rows(stubborn, 3)
    check_objects(stubborn, trainings(*tasks), stubborn.run(trainings(*tasks)))
    assert (stubborn.training.recomputes, stubborn.training.micro_batch) == (False, 2)
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
