"""The metric equals a naive second moment, detects an encoder that it does not fit, and survives storage."""

from functools import cache

import pytest
import torch

from perfusion_ops.base.captions import general_captions, vocabulary_words
from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import (
    MetricError,
    estimate,
    held_out_share,
    metric_from_moment,
    read_metric,
    second_moment,
    token_encodings,
)
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.world import grammar
from perfusion_ops.tensors import tensor_file
from tests.support.tiny_base import small_base


@pytest.fixture(scope="module")
def mini():
    return load_base(describe(base_folder()))


CAPTIONS = ["a mug", "a red mug on the beach", "teddy bear in the snow", "a photo of a hat", "chair", "a car in space"]


@pytest.mark.parametrize("tokens", ["masked", "content", "all"])
def test_the_streamed_second_moment_equals_a_naive_loop(mini, tokens):
    total, count = torch.zeros(128, 128, dtype=torch.float64), 0
    for caption in CAPTIONS:
        ids = mini.tokenizer(caption, padding="max_length", return_tensors="pt")["input_ids"]
        encoding = mini.texts.models[0].encoder(ids).last_hidden_state[0].double().detach()
        length = len(mini.tokenizer(caption)["input_ids"])
        chosen = {"masked": encoding[:length], "content": encoding[1 : length - 1], "all": encoding}[tokens]
        for e in chosen:
            total += torch.outer(e, e)
            count += 1
    moment, counted = second_moment(token_encodings(mini.texts, CAPTIONS, tokens=tokens, batch=4))
    assert counted == count
    torch.testing.assert_close(moment, total / count, rtol=1e-5, atol=1e-5)


def make(mini, seed=0, count=4000):
    captions = list(grammar.captions(count + 400, seed=seed))
    return estimate(
        mini.texts,
        captions[:count],
        held_out=captions[count:],
        config=MetricConfig(),
        base_digest=mini.folder.digest,
    )


def test_held_out_captions_confirm_the_estimate(mini):
    metric = make(mini)
    assert abs(metric.held_out - 1) < 0.05
    eye = metric.inverse @ (
        metric.second_moment + 1e-7 * torch.linalg.eigvalsh(metric.second_moment)[-1] * torch.eye(128).double()
    )
    torch.testing.assert_close(eye, torch.eye(128).double(), rtol=1e-6, atol=1e-6)


def test_a_metric_of_another_encoder_is_noticed(mini):
    small = small_base()
    encodings = list(token_encodings(mini.texts, CAPTIONS, tokens="masked"))
    other = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).double())[0]
    metric = make(mini)
    wrong = metric_from_moment(other @ metric.second_moment @ other.T, ridge=1e-7, base_digest="")
    assert held_out_share(wrong, encodings) > 10
    assert small.text_width != mini.text_width


def test_too_few_captions_are_refused(mini):
    with pytest.raises(MetricError, match="use more captions"):
        estimate(
            mini.texts,
            CAPTIONS,
            held_out=CAPTIONS,
            config=MetricConfig(),
            base_digest="",
        )


def test_uniform_captions_do_not_pass_the_test(mini):
    with pytest.raises(MetricError, match="held-out captions"):
        estimate(
            mini.texts,
            ["a red mug on the beach"] * 40,
            held_out=grammar.captions(200, seed=1),
            config=MetricConfig(),
            base_digest="",
        )


def test_storage_keeps_every_bit_and_the_binding(mini):
    metric = make(mini)
    again = read_metric(metric.to_bytes(), base_digest=mini.folder.digest)
    assert torch.equal(again.second_moment, metric.second_moment)
    assert torch.equal(again.inverse, metric.inverse)
    assert (again.digest, again.held_out, again.ridge) == (metric.digest, metric.held_out, metric.ridge)
    with pytest.raises(MetricError, match="another base model"):
        read_metric(metric.to_bytes(), base_digest="x")
    with pytest.raises(MetricError, match="damaged"):
        read_metric(metric.to_bytes()[:100], base_digest=mini.folder.digest)


def test_the_built_in_captions_are_distinct_and_a_prefix_of_a_longer_stream(mini):
    captions = list(general_captions(20_000, seed=0))
    assert len(set(captions)) == 20_000
    assert list(general_captions(100, seed=0)) == captions[:100]
    vocabulary = vocabulary_words(mini.tokenizer)
    assert "beach" in vocabulary
    with_words = list(general_captions(2_000, seed=0, vocabulary=["zebrafinch"]))
    assert sum("zebrafinch" in caption for caption in with_words) > 500


@cache
def wide_metric(width=1040):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * width, width, dtype=torch.float64, generator=g) * torch.logspace(0, -3, width).double()
    return metric_from_moment(rows.T @ rows / len(rows), ridge=1e-7, base_digest="b" * 64)


def test_the_file_of_a_wide_metric_holds_its_inverse(monkeypatch):
    metric = wide_metric()
    data = metric.to_bytes()
    assert len(data) < 2 * 8 * 1040 * 1041 / 2 + 10_000

    def inverted(*_, **__):
        raise AssertionError("the inverse was computed again")

    monkeypatch.setattr(torch.linalg, "cholesky_ex", inverted)
    monkeypatch.setattr(torch.linalg, "eigvalsh", inverted)
    again = read_metric(data, base_digest="b" * 64)
    assert again.digest == metric.digest
    assert torch.equal(again.second_moment, metric.second_moment)
    torch.testing.assert_close(again.inverse, metric.inverse, rtol=1e-12, atol=1e-12)
    assert again.to_bytes() == data


@pytest.mark.parametrize("name", ["second_moment", "inverse", "largest"])
def test_a_damaged_inverse_is_refused(name):
    metadata, tensors = tensor_file.read(wide_metric().to_bytes(), "perfusion-metric-2")
    if name == "largest":
        metadata["largest"] = "1e6"
    else:
        tensors[name] = tensors[name].clone()
        tensors[name][5000] += 0.1 * tensors[name].abs().max()
    with pytest.raises(MetricError, match="misses C"):
        read_metric(tensor_file.write(tensors, metadata), base_digest="b" * 64)


@pytest.mark.parametrize("name", ["second_moment", "inverse"])
def test_a_triangle_of_another_size_is_refused(name):
    metadata, tensors = tensor_file.read(wide_metric().to_bytes(), "perfusion-metric-2")
    for part in (tensors[name][:-1], tensors[name][: 20 * 21 // 2], tensors[name][None]):
        with pytest.raises(MetricError, match="damaged"):
            read_metric(tensor_file.write({**tensors, name: part}, metadata), base_digest="b" * 64)
