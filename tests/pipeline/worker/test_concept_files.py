"""Concept files that are missing, damaged or of another base model fail their rows, and are trained again."""

import dataclasses

from perfusion_ops.concept_file import write_concept
from pipeline.contract.errors import Code, Status
from tests.support.runs import check_same_weights, concept, picture, ready_worker, renders, trainings
from tests.support.worker_objects import BASES, stored, weights


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
    assert [(row.status, row.error_code) for row in outcomes] == [
        (Status.FAILED, Code.WEIGHTS_INVALID),
        (Status.FAILED, Code.WEIGHTS_INVALID),
        (Status.OK, None),
        (Status.FAILED, Code.WEIGHTS_INVALID),
    ]
    assert "another base model (eeeeeeeeeeee...," in outcomes[1].error_message
    assert "there is no " in outcomes[3].error_message
    assert not cut.exists()
    after = fresh.run(trainings(*tasks))
    assert [row.accelerator_s > 0 for row in after] == [True, True, False]
    assert after[2].sha256 == before[2].sha256
    for data, task in zip(kept, tasks, strict=True):
        check_same_weights(data, stored(worker, task).read_bytes())
    assert {row.status for row in fresh.run(renders(*rows.tasks[:3]))} == {Status.OK}
