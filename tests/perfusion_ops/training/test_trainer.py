"""Training: which parameters change, and that concepts in one batch are independent."""

import copy

import pytest
import torch

from perfusion_ops.concept_file import read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, condition
from perfusion_ops.config import TrainingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.text import encode, tokenize
from perfusion_ops.training.checkpoint import CheckpointError, read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.training.examples import loss_masks
from perfusion_ops.training.state import Example, start
from perfusion_ops.training.trainer import Trainer
from tests.support.tiny_base import random_metric, small_base


@pytest.fixture(scope="module")
def base():
    return small_base(dtype=torch.float64)


@pytest.fixture(scope="module")
def metric() -> Metric:
    return random_metric(24)


def example(seed=0, *, superclass="mug", masked=False, **config) -> Example:
    g = torch.Generator().manual_seed(seed)
    latents = torch.randn(3, 4, 8, 8, generator=g).double()
    masks = torch.ones(3, 1, 8, 8).double()
    if masked:
        masks[..., :4] = 0.25
    return Example(superclass, latents, masks, TrainingConfig(**{"steps": 3, "batch": 4, "seed": seed, **config}))


def trained(base, metric, examples, **options):
    trainer = Trainer(base, metric, examples, **options)
    trainer.run()
    return trainer


def same(a, b, tolerance=1e-8):
    for name, parameter in a.parameters().items():
        torch.testing.assert_close(parameter, b.parameters()[name], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.target_input, b.target_input, rtol=tolerance, atol=tolerance)
    assert a.losses == pytest.approx(b.losses, rel=1e-7)


def test_training_concepts_together_equals_training_each_alone(base, metric):
    examples = [
        example(1),
        example(2, superclass="teddy bear", steps=5, batch=2),
        example(3, superclass="hat", lr_value=0.01, masked=True, bias=0.5),
        example(4, superclass="chair", lock="trained"),
    ]
    together = trained(base, metric, examples)
    for index, single in enumerate(examples):
        alone = trained(base, metric, [single]).states[0]
        same(together.states[index], alone)
        assert alone.step == single.config.steps


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
def test_accumulation_equals_one_large_batch(base, metric, micro_batch):
    examples = [example(1), example(2, batch=5)]
    whole = trained(base, metric, examples, micro_batch=64)
    parts = trained(base, metric, examples, micro_batch=micro_batch)
    for a, b in zip(whole.states, parts.states, strict=True):
        same(a, b)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_exactly_the_embedding_and_the_value_target_learn(metric, prediction):
    base = small_base(dtype=torch.float64, prediction=prediction)
    before = {
        name: copy.deepcopy(part.state_dict())
        for name, part in (("unet", base.denoiser), ("text", base.texts.models[0].encoder), ("vae", base.vae))
    }
    weight = base.stack.weight.clone()
    fresh = start(base, example())
    trainer = trained(base, metric, [example()])
    state = trainer.states[0]
    assert set(state.parameters()) == {"embedding", "value_target"}
    for name, parameter in state.parameters().items():
        assert parameter.grad is not None
        assert (parameter != fresh.parameters()[name]).float().mean() > 0.5
    assert torch.equal(state.superclass_input, fresh.superclass_input)
    assert torch.equal(base.stack.weight, weight)
    for name, part in (("unet", base.denoiser), ("text", base.texts.models[0].encoder), ("vae", base.vae)):
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())


@pytest.mark.parametrize("name", ["embedding", "value_target"])
def test_gradients_equal_finite_differences_of_the_loss(base, metric, name):
    def loss(shift=None):
        trainer = Trainer(base, metric, [example(5, steps=1, masked=True)])
        parameter = trainer.states[0].parameters()[name]
        if shift is not None:
            with torch.no_grad():
                parameter += shift
        trainer.step()
        return trainer.states[0].losses[0], parameter.grad

    _, gradient = loss()
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-4 * direction
    slope = (loss(step)[0] - loss(-step)[0]) / 2e-4
    assert slope == pytest.approx(float(gradient @ direction), rel=1e-4)


def test_the_target_input_is_a_running_mean_of_the_concepts_encoding(base, metric):
    one = example(6, steps=1, ema=0.9, batch=64)
    fresh = start(base, one)
    state = trained(base, metric, [one]).states[0]
    tokens = [tokenize(base.tokenizer, template.format("{0}")) for template in base.folder.settings.templates]
    encodings = encode(base.texts.models[0].encoder, tokens, fresh.embedding[None, None].expand(len(tokens), 1, -1))
    own = torch.stack([encodings[row, item.slots.index(0)] for row, item in enumerate(tokens)]).detach()
    moved = (state.target_input - 0.9 * fresh.target_input) / 0.1
    weights = torch.linalg.lstsq(own.T, moved[:, None]).solution[:, 0]
    torch.testing.assert_close(own.T @ weights, moved, rtol=1e-8, atol=1e-8)
    assert weights.sum() == pytest.approx(1.0, abs=1e-8)
    assert (weights > 0).all()


def test_training_starts_at_the_superclass(base):
    state = start(base, example(superclass="teddy bear"))
    torch.testing.assert_close(state.value_target, base.stack.values @ state.superclass_input)
    assert torch.equal(state.target_input, state.superclass_input)


def test_one_diverging_concept_fails_alone(base, metric):
    bad = example(2)
    bad.latents[:, 0, 0, 0] = float("nan")
    good = [example(1), example(3)]
    trainer = trained(base, metric, [good[0], bad, good[1]])
    assert "diverged at step" in (trainer.states[1].problem or "")
    assert all(torch.isfinite(parameter).all() for parameter in trainer.states[1].parameters().values())
    for index, single in ((0, good[0]), (2, good[1])):
        assert trainer.states[index].problem is None
        same(trainer.states[index], trained(base, metric, [single]).states[0])


def test_what_the_mask_hides_does_not_count(metric):
    base = small_base(dtype=torch.float64, prediction="sample")
    hidden = example(1)
    hidden.masks[..., :4] = 0.0
    hidden.latents[..., :4] += 100.0
    shown = Example(hidden.superclass, hidden.latents, torch.ones_like(hidden.masks), hidden.config)
    losses = [trained(base, metric, [one]).states[0].losses[0] for one in (hidden, shown)]
    assert losses[0] < losses[1] / 100


def test_resuming_from_a_checkpoint_is_exact(base, metric):
    examples = [example(1, steps=6), example(2, steps=6, lock="trained")]
    whole = trained(base, metric, examples)
    first = Trainer(base, metric, examples)
    for _ in range(3):
        first.step()
    files = [write_checkpoint(state, first.optimizer) for state in first.states]
    restored = [read_checkpoint(data, start(base, one)) for data, one in zip(files, examples, strict=True)]
    second = Trainer(base, metric, examples, states=[state for state, _ in restored])
    for state, moments in restored:
        restore_moments(second.optimizer, state, moments)
    second.run()
    for a, b in zip(whole.states, second.states, strict=True):
        same(a, b, tolerance=1e-12)


def test_a_damaged_checkpoint_is_refused(base, metric):
    trainer = trained(base, metric, [example(1)])
    data = write_checkpoint(trainer.states[0], trainer.optimizer)
    fresh = start(base, example(1))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(data[:200], fresh)
    wide = start(small_base(seed=1), example(1))
    wide.target_input = torch.zeros(7)
    with pytest.raises(CheckpointError, match="another shape"):
        read_checkpoint(data, wide)


def test_masks_are_reduced_by_area_and_an_empty_one_is_an_error():
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., :2, :2] = 0.5
    small = loss_masks(masks, 8, 8)
    assert small[0, 0, 0, 0] == 1
    assert small.sum() == 1
    with pytest.raises(ValueError, match="mask is empty"):
        loss_masks(torch.zeros(1, 1, 16, 16), 8, 8)


def kept_bytes(train):
    """Most bytes of activations that are kept for a backward pass at one time."""
    held, most = {}, 0

    def pack(tensor):
        nonlocal most
        box = _Box(tensor, held)
        held[id(box)] = tensor.untyped_storage().nbytes()
        most = max(most, sum(held.values()))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        train()
    return most


class _Box:
    def __init__(self, tensor, held):
        self.tensor, self._held = tensor, held

    def __del__(self):
        self._held.pop(id(self), None)


def test_computing_activations_twice_takes_less_memory_and_changes_no_result(base, metric):
    states, most = [], []
    for checkpointed in (False, True):
        trainer = Trainer(base, metric, [example(1, batch=8, steps=2)], checkpointed=checkpointed)
        most.append(kept_bytes(trainer.run))
        states.append(trainer.states[0])
    same(*states, tolerance=1e-12)
    assert most[1] < 0.8 * most[0]
    assert not base.denoiser.is_gradient_checkpointing


def test_a_linear_gate_trains_and_ignores_bias_and_temperature(base, metric):
    linear, other, sigmoid = (
        trained(base, metric, [example(1, **config)]).states[0]
        for config in ({"gate": "linear"}, {"gate": "linear", "bias": 0.2, "temperature": 1.0}, {})
    )
    same(linear, other, tolerance=1e-12)
    assert not torch.allclose(linear.value_target, sigmoid.value_target)
    concept = read_concept(
        write_concept(linear.concept(example(1, gate="linear"), base, metric)),
        base_digest=base.folder.digest,
        metric_digest=metric.digest,
        embedding_width=24,
        text_width=24,
        value_width=base.stack.key_rows,
    )
    assert concept.gate == "linear"
    rows = [PromptRow("a {0}", (concept,), (bias,), (0.1,)) for bias in (0.2, 0.9)]
    low, high = condition(base, metric, rows).kv
    torch.testing.assert_close(low, high, rtol=1e-9, atol=1e-9)
