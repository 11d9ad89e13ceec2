"""Samplers by name: each is what its name says, and a refusal comes where diffusers would break."""

import inspect
from typing import get_args

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perfusion_ops.base.schedules import SCHEDULERS, schedule_problem
from perfusion_ops.config import SamplingConfig, Scheduler, scheduler_name
from perfusion_ops.pipelines import make_scheduler

NAMES = get_args(Scheduler)
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
# Refusals that do not wait for an error: pictures would be wrong, or the rule leaves a margin.
CAUTIOUS = (
    "trained down to zero signal",
    "puts the first two on one step",
    "use at most as many",
    "has no signal",
    "to rounding",
)


def config_of(prediction="epsilon", whole=1000, offset=1, spacing="leading", zero_snr=False, **betas):
    return {
        "prediction_type": prediction,
        "num_train_timesteps": whole,
        "steps_offset": offset,
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": zero_snr,
        **(betas or STABLE_DIFFUSION),
    }


def what_breaks(config, scheduler, steps):
    """What is wrong with a real sampling of these steps; None if its result is finite."""
    made = make_scheduler(scheduler, DDIMScheduler.from_config(config).config)
    noise = torch.Generator().manual_seed(0)
    random = {"generator": noise} if "generator" in inspect.signature(made.step).parameters else {}
    try:
        made.set_timesteps(steps)
        sample = torch.randn(1, 1, 2, 2, generator=noise) * made.init_noise_sigma
        for step in made.timesteps:
            made.scale_model_input(sample, step)
            sample = made.step(torch.randn(1, 1, 2, 2, generator=noise), step, sample, **random).prev_sample
    except (ValueError, IndexError, NotImplementedError, AssertionError) as error:
        return repr(error)
    return None if sample.isfinite().all() else "not finite"


CONFIGS = st.builds(
    config_of,
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    whole=st.sampled_from([20, 40]),
    offset=st.integers(0, 1),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    zero_snr=st.booleans(),
) | st.builds(config_of, zero_snr=st.booleans(), spacing=st.sampled_from(["leading", "trailing"]), whole=st.just(40),
              beta_schedule=st.just("squaredcos_cap_v2"), clip_sample=st.just(False))  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scheduler", NAMES)
def test_a_schedule_is_refused_where_diffusers_breaks(scheduler):
    @settings(deadline=None, max_examples=25)
    @given(CONFIGS, st.integers(1, 41))
    @example(config_of(whole=40, offset=1), 39)
    @example(config_of(whole=40, offset=1), 40)
    @example(config_of(whole=40, offset=0), 41)
    @example(config_of(whole=40, spacing="linspace"), 40)
    @example(config_of(whole=40, spacing="trailing", zero_snr=True), 1)
    @example(config_of(prediction="sample", whole=40), 4)
    @example(config_of(whole=40, **COSINE), 12)
    def check(config, steps):
        problem, broken = schedule_problem(config, scheduler, steps), what_breaks(config, scheduler, steps)
        if problem is None:
            assert broken is None, (config, steps)
        elif not any(words in problem for words in CAUTIOUS):
            assert broken, (problem, config, steps)

    check()


@pytest.mark.parametrize("scheduler", NAMES)
@pytest.mark.parametrize(
    "config", [config_of(), config_of(zero_snr=True, prediction="v_prediction", spacing="trailing")]
)
def test_stable_diffusion_takes_all_of_them_but_those_that_do_not_know_its_schedule(scheduler, config):
    few = 20
    problem = schedule_problem(config, scheduler, few)
    zero_snr = config["rescale_betas_zero_snr"]
    knows = "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, SCHEDULERS[scheduler][0])).parameters
    assert bool(problem) == (zero_snr and not knows)
    if problem is None:
        assert what_breaks(config, scheduler, few) is None


def test_only_so_many_steps_fit_between_karras_sigmas():
    config = config_of(zero_snr=True, prediction="v_prediction")
    found = {
        steps: (schedule_problem(config, "dpm++ 2m karras", steps), what_breaks(config, "dpm++ 2m karras", steps))
        for steps in (20, 60)
    }
    assert found[20] == (None, None)
    assert "puts the first two on one step" in found[60][0]
    assert "out of bounds" in found[60][1]
    assert schedule_problem(config, "euler karras", 60) is None


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_an_ancestral_sampler_is_refused_where_its_first_step_is_lost_to_rounding(spacing):
    """The cosine schedule begins at a noise 20,000 times the signal: roots of rounding errors are luck."""
    config = config_of(prediction="v_prediction", spacing=spacing, **COSINE)
    for steps in (2, 3, 4, 5, 8, 12):
        problem, broken = schedule_problem(config, "euler_a", steps), what_breaks(config, "euler_a", steps)
        assert bool(problem) == bool(broken), steps
    if spacing == "trailing":
        assert "loses the first one to rounding" in schedule_problem(config, "euler_a", 3)


@pytest.mark.parametrize("scheduler", ["lcm", "tcd"])
def test_a_distilled_schedule_has_as_many_steps_as_it_was_distilled_on(scheduler):
    assert schedule_problem(config_of(), scheduler, 50) is None
    assert schedule_problem(config_of(), scheduler, 51).endswith("use at most 50, or scheduler 'dpm++'")
    assert schedule_problem({**config_of(), "original_inference_steps": 100}, scheduler, 51) is None
    assert schedule_problem({**config_of(whole=40)}, scheduler, 4).endswith("use scheduler 'dpm++'")


def test_every_name_has_its_class_and_takes_all_of_its_options():
    assert set(SCHEDULERS) == set(NAMES)
    for kind, options in SCHEDULERS.values():
        known = inspect.signature(getattr(diffusers, kind)).parameters
        assert {name for name in options if name not in known} == set(), kind


def test_a_name_means_the_same_whatever_the_base_model_was_saved_with():
    saved = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", use_exponential_sigmas=True, solver_order=3, timestep_spacing="leading"
    ).config
    made = make_scheduler("dpm++ 2m karras", saved).config
    assert (made.algorithm_type, made.solver_order, made.use_karras_sigmas) == ("dpmsolver++", 2, True)
    assert not made.use_exponential_sigmas
    assert make_scheduler("dpm++", saved).config.algorithm_type == "sde-dpmsolver++"
    for name in NAMES:
        make_scheduler(name, saved).set_timesteps(4)
    assert make_scheduler("euler trailing", saved).config.timestep_spacing == "trailing"
    assert make_scheduler("dpm++ 2m sde karras", saved).config.algorithm_type == "sde-dpmsolver++"


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("Euler a", "euler_a"),
        (" EULER   A ", "euler_a"),
        ("euler_a", "euler_a"),
        ("Euler ancestral", "euler_a"),
        ("DPM++ 2M", "dpm++"),
        ("dpmpp_2m", "dpm++"),
        ("dpmpp_2m_sde_karras", "dpm++ 2m sde karras"),
        ("Euler A Trailing", "euler a trailing"),
        ("PLMS", "pndm"),
        ("kdpm2", "dpm2"),
        *((name, name) for name in NAMES),
    ],
)
def test_names_are_read_in_every_spelling(spelt, name):
    assert scheduler_name(spelt) == name
    assert SamplingConfig(scheduler=spelt) == SamplingConfig(scheduler=name)


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("dpm++ sde karras", "dpm++ 2m sde karras"), ("eulr", "euler"), ("DPM++ 2M Karas", "karras")]
)
def test_an_unknown_name_gets_the_nearest_one(wrong, nearest):
    with pytest.raises(ValidationError, match=f"there is no scheduler .*{nearest.replace('+', '.')}' if that is meant"):
        SamplingConfig(scheduler=wrong)
    for other in ("", 3, None, "x" * 10_000):
        with pytest.raises(ValidationError, match=r"there is no scheduler .*use one of ddim, "):
            SamplingConfig(scheduler=other)
