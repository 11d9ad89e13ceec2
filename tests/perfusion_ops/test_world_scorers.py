"""The embedded scorers: they load offline from the package, are small, and see what is there."""

import json

import numpy as np
from safetensors import safe_open

from perfusion_ops.mini.build.recipe import FULL, Recipe
from perfusion_ops.mini.quality.measure import measure_scorers
from perfusion_ops.scoring.choice import choose_scorers, mini_folder
from perfusion_ops.scoring.models import load_scorers


def test_weights_are_half_precision_safetensors_and_small():
    files = [file for file in mini_folder().rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert {file.parent.name for file in weights} == {"dual", "identity", "reader"}
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jsonl", ".txt"}
    assert sum(file.stat().st_size for file in files) < 12e6
    for file in weights:
        with safe_open(file, framework="np") as tensors:
            counters = ("num_batches_tracked", "position_ids")
            names = [name for name in list(tensors.keys()) if not name.endswith(counters)]
            assert {tensors.get_slice(name).get_dtype() for name in names} == {"F16"}
            assert all(np.isfinite(tensors.get_tensor(name)).all() for name in names)


def test_the_log_of_their_making_lies_beside_them():
    lines = [json.loads(line) for line in (mini_folder() / "log.jsonl").read_text().splitlines()]
    begun = [line for line in lines if line["stage"] == "begin"]
    assert begun
    assert all(Recipe.model_validate(line["recipe"]).seed == FULL.seed for line in begun)
    assert {"reader", "identity", "dual"} <= {line["stage"] for line in lines}


def test_configurations_name_no_machine():
    for file in mini_folder().rglob("*.json"):
        assert not {"_name_or_path", "is_local", "local_files_only"} & set(json.loads(file.read_text()))


def test_they_see_what_is_there():
    found = measure_scorers(load_scorers(choose_scorers("mini")), 240)
    assert found.read.class_share >= 0.98
    assert found.read.context_share >= 0.98
    assert found.read.color_share >= 0.93
    assert found.identity_equal_error_rate <= 0.05
    assert found.dual_recall_at_1_of_200 >= 0.5
