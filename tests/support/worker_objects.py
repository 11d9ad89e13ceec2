"""The objects that a worker of a test has stored: where they lie, what is in them, and whether outcomes agree."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perfusion_ops.concept_file import read_concept
from perfusion_ops.training.state import start
from pipeline.contract.errors import Status
from pipeline.contract.layout import image_path, weights_path
from pipeline.worker.training_data import load_example
from tests.support.runs import key

BASES = ("mug", "bag", "shoe")


def root_of(worker):
    return Path(worker.settings.root)


def pixels(worker, task):
    return np.asarray(Image.open(root_of(worker) / image_path(task.key))).astype(int)


def stored(worker, task):
    path = weights_path(task.key) if hasattr(task, "training") else image_path(task.key)
    return root_of(worker) / path


def check_objects(worker, unit, outcomes):
    assert [outcome.key for outcome in outcomes] == [task.key for task in unit.tasks]
    for task, outcome in zip(unit.tasks, outcomes, strict=True):
        assert outcome.status == Status.OK, outcome.error_message
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


def read_concept_of(worker, name):
    return worker.files.load(key(name))[0]


def about_to_diverge(worker, task, value):
    example = load_example(worker.models.base, task, worker.inputs)
    state = start(worker.models.base, example)
    with torch.no_grad():
        state.value_target.fill_(value)
    state.step = 1
    return state, example
