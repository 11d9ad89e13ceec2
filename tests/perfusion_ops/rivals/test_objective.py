"""The rivals' rows and loss are those of our own training, and no rival gets more evaluations than its budget."""

import itertools
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from perfusion_ops.config import TrainingConfig
from perfusion_ops.rivals.fitting import Fit, Group, Lesson, Prior, fit
from perfusion_ops.rivals.objective import Budget, draw, row_losses, wanted
from perfusion_ops.rivals.textual_inversion import told_with
from perfusion_ops.training.state import Example
from perfusion_ops.training.trainer import Trainer, TrainingDivergedError
from tests.support.rivals import example, small_rival_parts
from tests.support.tiny_base import TEMPLATES, random_metric, small_base


@pytest.mark.parametrize("flip", [False, True])
def test_rows_are_those_of_our_own_training(flip):
    own = example(n=4, config=TrainingConfig(batch=6, seed=9, flip=flip))
    trainer = Trainer(small_base(), random_metric(24), [own])
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        draws = trainer.draw(0)
        rows = draw(own, templates=3, timesteps=100, rows=6, generator=generator, even=False)
        assert rows.images == tuple(each.image for each in draws)
        assert rows.templates == tuple(each.template for each in draws)
        assert rows.timesteps.tolist() == [each.timestep for each in draws]
        torch.testing.assert_close(rows.noise, torch.stack([each.noise for each in draws]), rtol=0, atol=0)


def test_even_rows_take_every_photo_and_every_share_of_the_schedule():
    own, generator = example(n=3), torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = draw(own, templates=3, timesteps=1000, rows=6, generator=generator, even=True)
        assert sorted(rows.images) == [0, 0, 1, 1, 2, 2]
        assert sorted(time * 6 // 1000 for time in rows.timesteps.tolist()) == list(range(6))
    seen = {
        time
        for _ in range(300)
        for time in draw(own, templates=1, timesteps=8, rows=4, generator=generator, even=True).timesteps.tolist()
    }
    assert seen == set(range(8))


def test_the_loss_is_the_weighted_mean_of_squared_errors():
    g = torch.Generator().manual_seed(1)
    predicted, target = torch.randn(2, 3, 2, 2, generator=g), torch.randn(2, 3, 2, 2, generator=g)
    masks = torch.rand(2, 1, 2, 2, generator=g)
    for row, loss in enumerate(row_losses(predicted, target, masks).tolist()):
        total = weight = 0.0
        for y in range(2):
            for x in range(2):
                error = sum((predicted[row, c, y, x] - target[row, c, y, x]).item() ** 2 for c in range(3)) / 3
                total += masks[row, 0, y, x].item() * error
                weight += masks[row, 0, y, x].item()
        assert loss == pytest.approx(total / weight, rel=1e-5)


def test_what_the_base_predicts_is_what_is_wanted():
    latents, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([10, 70])
    schedules = {
        kind: DDPMScheduler(num_train_timesteps=100, prediction_type=kind)
        for kind in ("epsilon", "sample", "v_prediction")
    }
    found = {kind: wanted(schedule, latents, noise, times) for kind, schedule in schedules.items()}
    assert torch.equal(found["epsilon"], noise)
    assert torch.equal(found["sample"], latents)
    share = schedules["epsilon"].alphas_cumprod[times].sqrt()[:, None, None, None]
    torch.testing.assert_close(found["v_prediction"], share * noise - (1 - share**2).sqrt() * latents)
    schedules["sample"].register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="'flow', which training does not know"):
        wanted(schedules["sample"], latents, noise, times)


@pytest.fixture(scope="module")
def parts():
    return small_rival_parts()


def lesson(parts, own: Example | None = None, **changes) -> Lesson:
    with torch.no_grad():
        every = told_with(parts, "mug", None, range(len(TEMPLATES)))
    whole = Lesson(
        parts, parts.unet, own or example(), Budget(steps=5, batch=4), Fit(), lambda chosen: every[list(chosen)]
    )
    return replace(whole, **changes)


def prior(parts, weight: float) -> Prior:
    g = torch.Generator().manual_seed(8)
    told = torch.randn(parts.tokenizer.model_max_length, 24, generator=g)
    return Prior(torch.randn(3, 4, 8, 8, generator=g), told, rows=1, weight=weight)


def learned_with(whole: Lesson, parameter: torch.nn.Parameter) -> Lesson:
    """The same lesson with a learned number in all encodings."""
    return replace(whole, told=lambda chosen: whole.told(chosen) + parameter)


@pytest.mark.parametrize("with_prior", [False, True])
def test_the_denoiser_sees_as_many_rows_as_the_budget_says(parts, with_prior):
    rows, parameter = [], torch.nn.Parameter(torch.zeros(()))
    whole = learned_with(lesson(parts, prior=prior(parts, 1.0) if with_prior else None), parameter)
    hook = parts.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        fit(whole, [Group([parameter], 0.1)])
    finally:
        hook.remove()
    assert rows == [4] * 5
    assert sum(rows) == whole.budget.evaluations


def test_the_prior_counts_with_its_weight(parts):
    parameter = torch.nn.Parameter(torch.zeros(()))

    remembered = prior(parts, 0.0)

    def first_loss(weight):
        whole = lesson(parts, budget=Budget(steps=1, batch=3), prior=replace(remembered, weight=weight))
        return fit(learned_with(whole, parameter), [Group([parameter], 1e-9)])[0]

    alone, half, full = (first_loss(weight) for weight in (0.0, 0.5, 1.0))
    assert full > half > alone > 0
    assert full - half == pytest.approx(half - alone, rel=1e-4)


def test_rates_fall_and_rest():
    settings, parts = Fit(decay="cosine", weight_decay=0.0), small_rival_parts()
    early, late = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    path = []

    def told(chosen):
        path.append((early.item(), late.item()))
        with torch.no_grad():
            every = told_with(parts, "mug", None, range(len(TEMPLATES)))
        return every[list(chosen)] + 0.1 * (early + late)

    whole = replace(lesson(parts, budget=Budget(steps=6, batch=2), settings=settings), told=told)
    fit(whole, [Group([early], 0.01, until=0.5), Group([late], 0.01)])
    path.append((early.item(), late.item()))
    steps = [(abs(b[0] - a[0]), abs(b[1] - a[1])) for a, b in itertools.pairwise(path)]
    assert all(moved > 0 for moved, _ in steps[:3])
    assert [moved for moved, _ in steps[3:]] == [0, 0, 0]
    assert 0 < steps[-1][1] < 0.25 * steps[0][1]


def test_a_loss_that_is_not_finite_ends_the_training(parts):
    own = example()
    broken = replace(own, latents=own.latents * float("nan"))
    parameter = torch.nn.Parameter(torch.zeros(()))
    whole = lesson(parts, broken)
    with pytest.raises(TrainingDivergedError, match="diverged at step 1: lower the method's rate"):
        fit(learned_with(whole, parameter), [Group([parameter], 0.1)])
