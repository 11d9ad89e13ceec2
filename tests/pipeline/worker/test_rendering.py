"""Renders on a real worker: rows of a batch do not affect each other, and a row that fails does so alone."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from perfusion_ops.concept_file import write_concept
from pipeline.contract.errors import Code, Status
from pipeline.contract.layout import weights_path
from pipeline.contract.units import MESSAGE_BYTES, RenderShape
from pipeline.storage.objects import Storage
from tests.support.runs import SHAPE, concept, key, picture, ready_worker, renders, trainings
from tests.support.worker_objects import BASES, check_objects, pixels, read_concept_of, root_of, stored


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker whose root holds three trained concepts; tests add to it and never change them."""
    folder = tmp_path_factory.mktemp("shared")
    worker = ready_worker(folder / "root")
    worker.run(trainings(*(concept(folder, name, superclass=name) for name in BASES)))
    return worker


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


def test_trained_keys_are_asked_of_concepts_that_have_them(shared):
    bad, good = picture("no keys", "mug", lock="trained"), picture("locked", "mug")
    first, second = shared.run(renders(bad, good))
    assert (first.status, first.error_code) == (Status.INVALID, Code.OUT_OF_RANGE)
    assert "learned no keys" in first.error_message
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
    assert (long.status, long.error_code, long.error_message[:8]) == (Status.INVALID, Code.PROMPT_TOO_LONG, "prompt: ")
    assert (negative.error_code, negative.error_message[:17]) == (Code.PROMPT_TOO_LONG, "negative_prompt: ")
    assert len(long.error_message.encode()) <= MESSAGE_BYTES


def test_messages_name_concepts_and_prompts_as_the_manifest_does(shared):
    task = replace(
        picture("named", "mug", "bag", prompt=f"a {{0}} on a {{1}} {'very ' * 40}"), concept_ids=("1", "b-1")
    )
    assert task.written(task.prompt).startswith("a {1} on a {b-1} very")
    absent = replace(picture("no weights", "nobody"), concept_ids=("n-1",))
    locked = replace(picture("keys", "bag", lock="trained"), concept_ids=("b-1",))
    long, lost, keyless = shared.run(renders(task, absent, locked))
    assert "('a {1} on a {b-1} very" in long.error_message
    assert "the weights of concept 'n-1' cannot be used" in lost.error_message
    assert "but concept 'b-1' learned no keys" in keyless.error_message
    assert not [each for each in (long, lost, keyless) if "{0}" in each.error_message]


def test_concepts_that_learned_the_same_fail_their_row_alone(shared):
    twin = Storage(str(root_of(shared)))
    one = read_concept_of(shared, "mug")
    twin.create(weights_path(key("twin")), write_concept(one, key=key("twin")))
    same, good = shared.run(renders(picture("twins", "mug", "twin", prompt="a {0} and a {1}"), picture("ok", "mug")))
    assert (same.status, same.error_code) == (Status.FAILED, Code.CONCEPTS_ALIKE)
    assert good.status == Status.OK


def test_settings_that_diffusers_refuses_are_named(shared):
    for outcome in shared.run(
        renders(*(picture(f"odd {n}", "mug", shape=RenderShape(12, 64, 2, 4.5, "ddim")) for n in (1, 2)))
    ):
        assert (outcome.status, outcome.error_code) == (Status.INVALID, Code.OUT_OF_RANGE)
        assert "12 x 64 pixels in 2 steps of ddim" in outcome.error_message


def test_a_render_that_is_not_finite_is_not_stored(tmp_path):
    worker = ready_worker(tmp_path / "root", dtype="float16")
    worker.run(trainings(concept(tmp_path, "mug")))
    one = read_concept_of(worker, "mug")
    huge = dataclasses.replace(one, value_target=torch.full_like(one.value_target, 60_000.0))
    Storage(str(tmp_path / "root")).create(weights_path(key("huge")), write_concept(huge, key=key("huge")))
    bad, good = worker.run(renders(picture("bad", "huge"), picture("good", "mug")))
    assert (bad.status, bad.error_code, bad.uri) == (Status.FAILED, Code.RENDER_NOT_FINITE, None)
    assert good.status == Status.OK
    assert not stored(worker, picture("bad")).exists()
