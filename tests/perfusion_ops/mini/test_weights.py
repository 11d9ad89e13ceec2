"""The embedded weights: half precision, small, finite, from no one's machine, with the log of their making."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from perfusion_ops.mini import base_folder, scorers_folder
from perfusion_ops.mini.build.recipe import FULL, Recipe

_COUNTERS = ("num_batches_tracked", "position_ids")
# Each with its parts, the stages that made them and the bytes that it may have.
FOLDERS = [
    (base_folder(), {"text_encoder", "unet", "vae"}, {"text", "autoencoder", "denoiser"}, 24e6),
    (scorers_folder(), {"dual", "identity", "reader"}, {"dual", "identity", "reader"}, 12e6),
]
each = pytest.mark.parametrize(("folder", "parts", "stages", "limit"), FOLDERS, ids=["base", "scorers"])


@each
def test_weights_are_half_precision_safetensors_and_small(folder, parts, stages, limit):
    files = [file for file in folder.rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert {file.parent.name for file in weights} == parts
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jsonl", ".txt"}
    assert sum(file.stat().st_size for file in files) < limit
    for file in weights:
        with safe_open(file, framework="np") as tensors:
            names = [name for name in list(tensors.keys()) if not name.endswith(_COUNTERS)]
            assert {tensors.get_slice(name).get_dtype() for name in names} == {"F16"}
            assert all(np.isfinite(tensors.get_tensor(name)).all() for name in names)


@each
def test_training_logs_are_kept_beside_the_weights(folder, parts, stages, limit):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    begun = [line for line in lines if line["stage"] == "begin"]
    assert begun
    assert all(Recipe.model_validate(line["recipe"]).seed == FULL.seed for line in begun)
    assert stages <= {line["stage"] for line in lines}


@each
def test_configurations_name_no_machine(folder, parts, stages, limit):
    for file in folder.rglob("*.json"):
        assert not {"_name_or_path", "is_local", "local_files_only"} & set(json.loads(file.read_text()))
