"""The metric that comes with the embedded base model is the one that this code estimates at all defaults."""

import json

import pytest
import torch

from perfusion_ops.base.captions import HELD_OUT, SEED, held_out_first
from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import FORMAT, held_out_share, read_metric, second_moment, token_encodings
from perfusion_ops.mini import base_folder, metric_file
from perfusion_ops.mini.build.export import export_metric
from perfusion_ops.mini.world import grammar
from perfusion_ops.tensors import tensor_file

CAPTIONS = 4000  # of 100,000: enough to tell another choice of tokens or captions from this one


@pytest.fixture(scope="module")
def base():
    return load_base(describe(base_folder()))


@pytest.fixture(scope="module")
def shipped(base):
    return read_metric(metric_file().read_bytes(), base_digest=base.folder.digest)


def encodings(base, captions, tokens="masked"):
    return token_encodings(base.texts, captions, tokens=tokens)


def apart(one, other):
    return float((one - other).norm() / other.norm())


def test_file_says_what_it_is_and_how_it_was_made(base):
    metadata, tensors = tensor_file.read(metric_file().read_bytes(), FORMAT)
    assert MetricConfig.model_validate_json(metadata["settings"]) == MetricConfig()
    assert json.loads(metadata["settings"]) == MetricConfig().model_dump(mode="json")
    assert metadata["made_by"] == "python -m perfusion_ops.mini.build --only metric"
    assert metadata["base_digest"] == base.folder.digest
    assert tensors["second_moment"].shape == (base.text_width, base.text_width)


def test_held_out_share_is_the_recorded_one(base, shipped):
    held_out, _ = held_out_first(grammar.captions(HELD_OUT, SEED))
    assert len(held_out) == HELD_OUT
    assert held_out_share(shipped, encodings(base, held_out)) == pytest.approx(shipped.held_out, rel=1e-3)
    assert abs(shipped.held_out - 1) < 0.02


def test_estimate_from_fewer_captions_is_close_and_from_others_is_not(base, shipped):
    _, captions = held_out_first(grammar.captions(HELD_OUT + CAPTIONS, SEED))
    captions = list(captions)
    moment, _ = second_moment(encodings(base, captions))
    assert apart(moment, shipped.second_moment) < 0.01
    content, _ = second_moment(encodings(base, captions[:1000], "content"))
    assert apart(content, shipped.second_moment) > 0.05
    mugs, _ = second_moment(encodings(base, ["a photo of a mug"] * 10))
    assert apart(mugs, shipped.second_moment) > 0.1


def test_build_writes_the_metric_of_a_base_with_its_settings(base, tmp_path):
    config = MetricConfig(captions=CAPTIONS)
    export_metric(base_folder(), config, tmp_path / "metric.safetensors")
    data = (tmp_path / "metric.safetensors").read_bytes()
    metric = read_metric(data, base_digest=base.folder.digest)
    _, captions = held_out_first(grammar.captions(HELD_OUT + CAPTIONS, SEED))
    moment, _ = second_moment(encodings(base, captions))
    torch.testing.assert_close(metric.second_moment, moment, rtol=1e-9, atol=1e-12)
    metadata, _ = tensor_file.read(data, FORMAT)
    assert MetricConfig.model_validate_json(metadata["settings"]) == config
