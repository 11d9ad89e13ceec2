"""Samplers by name, and which of them a base model's noise schedule allows, from its configuration alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.config import Scheduler

PREDICTIONS = ("epsilon", "v_prediction", "sample")

_KARRAS = {"use_karras_sigmas": True, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_EVEN = {**_KARRAS, "use_karras_sigmas": False}
_SECOND_ORDER = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
_SDE = {**_SECOND_ORDER, "algorithm_type": "sde-dpmsolver++"}
_TRAILING = {"timestep_spacing": "trailing"}

# The class of diffusers, and what differs from the base model's own configuration. A name says all that it promises:
# 'dpm++ 2m karras' is that on every base model, while the six plain names keep what the base model says.
SCHEDULERS: Mapping[Scheduler, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    # PNDM's Runge-Kutta warm-up needs at least four steps; Stable Diffusion skips it.
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {**_SECOND_ORDER, **_KARRAS}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {**_SDE, **_EVEN}),
    "dpm++ 2m sde karras": ("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
    "dpm++ singlestep": ("DPMSolverSinglestepScheduler", {**_SECOND_ORDER, **_EVEN}),
    "dpm++ singlestep karras": ("DPMSolverSinglestepScheduler", {**_SECOND_ORDER, **_KARRAS}),
    "dpm2": ("KDPM2DiscreteScheduler", _EVEN),
    "dpm2 karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "dpm2 a": ("KDPM2AncestralDiscreteScheduler", _EVEN),
    "dpm2 a karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "euler karras": ("EulerDiscreteScheduler", _KARRAS),
    "euler trailing": ("EulerDiscreteScheduler", {**_EVEN, **_TRAILING}),
    "euler a trailing": ("EulerAncestralDiscreteScheduler", _TRAILING),
    "heun": ("HeunDiscreteScheduler", _EVEN),
    "heun karras": ("HeunDiscreteScheduler", _KARRAS),
    "unipc karras": ("UniPCMultistepScheduler", _KARRAS),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho", **_EVEN}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),  # latents have no bounds
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}

_ANCESTRAL_KDPM = "KDPM2AncestralDiscreteScheduler"
# Classes that do not support the prediction type 'sample'.
_NO_SAMPLE = {"EulerAncestralDiscreteScheduler", "PNDMScheduler", "KDPM2DiscreteScheduler", _ANCESTRAL_KDPM}
# Classes without `rescale_betas_zero_snr`: they would take another schedule than the one that the model was trained on.
_NO_ZERO_SNR = {
    *("PNDMScheduler", "DPMSolverSinglestepScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler"),
    *("KDPM2DiscreteScheduler", _ANCESTRAL_KDPM),
}
_OF_ALPHAS = {"DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"}  # these divide by the last alpha
_DISTILLED = {"LCMScheduler", "TCDScheduler"}  # these walk over a coarse schedule that the model was distilled on
_MULTISTEP = {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"}
_WHOLE_TIMES = {*_MULTISTEP, "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", _ANCESTRAL_KDPM}
_ANCESTRAL = {"EulerAncestralDiscreteScheduler", _ANCESTRAL_KDPM}
_ORIGINAL_STEPS = 50  # default of `original_inference_steps`
_LAST_ALPHA = 2.0**-24  # what diffusers takes for zero where it divides
_ROUNDING = 2.0**-23  # of float32
_HALF = 0.501  # of a step, which is rounded away, with a margin for its arithmetic


def schedule_problem(config: Mapping[str, Any], scheduler: Scheduler, steps: int) -> str | None:
    """Why a scheduler cannot use this number of steps on a base model's schedule; None if it can.

    Args:
        config: the base model's scheduler_config.json.
        scheduler: a name of `perfusion_ops.config.Scheduler`.
        steps: denoising steps.
    """
    kind, options = SCHEDULERS[scheduler]
    config = {**config, **options}
    prediction, zero_snr = config.get("prediction_type", "epsilon"), bool(config.get("rescale_betas_zero_snr"))
    if prediction == "sample" and kind in _NO_SAMPLE:
        return f"scheduler {scheduler!r} does not work with a base model that predicts 'sample': use 'ddim' or 'dpm++'"
    if zero_snr and kind in _NO_ZERO_SNR:
        return (
            f"scheduler {scheduler!r} cannot follow the schedule of a base model that was trained down to zero signal "
            "(rescale_betas_zero_snr): use 'ddim', 'euler' or 'dpm++'"
        )
    whole = int(config.get("num_train_timesteps", 1000))
    if steps > whole:
        return f"steps is {steps}, and the base model's schedule has {whole}: use at most as many"
    first = _first_timestep(config, kind, steps, whole)
    if first is None:
        return (
            f"steps is {steps}: scheduler {scheduler!r} finds no such step in the base model's schedule of {whole}; "
            f"use {_remedy(config, kind, whole)}"
        )
    bounded = config.get("clip_sample", True) or config.get("thresholding")
    if zero_snr and prediction == "epsilon" and kind in _OF_ALPHAS and first == whole - 1 and not bounded:
        return (
            f"scheduler {scheduler!r} starts where the base model's schedule has no signal, and a model that predicts "
            "'epsilon' gives it none: use 'euler' or 'dpm++'"
        )
    if kind in _ANCESTRAL and _first_step_is_lost(config, steps, whole, first):
        return (
            f"steps is {steps}: scheduler {scheduler!r} loses the first one to rounding on the base model's schedule; "
            "use more steps, or scheduler 'euler' or 'dpm++'"
        )
    if config.get("use_karras_sigmas") and kind in _WHOLE_TIMES and _karras_merge(config, steps, whole):
        return (
            f"steps is {steps}: scheduler {scheduler!r} puts the first two on one step of the base model's schedule; "
            "use fewer steps, or scheduler 'dpm++' or 'euler karras'"
        )
    return None


def _first_timestep(config: Mapping[str, Any], kind: str, steps: int, whole: int) -> int | None:
    """The first step of a schedule of `whole` steps that is taken; None if diffusers finds fewer than `steps`."""
    if kind in _DISTILLED:
        original = int(config.get("original_inference_steps", _ORIGINAL_STEPS))
        return original * (whole // original) - 1 if steps <= original <= whole else None
    spacing, karras = config.get("timestep_spacing", "leading"), config.get("use_karras_sigmas")
    # These lay out one step more, and leave it out.
    further = kind in _MULTISTEP and spacing != "trailing" and not karras
    if spacing != "leading" or karras or kind == "DPMSolverSinglestepScheduler":
        return whole - 1 if steps + further <= whole else None
    ratio = whole // (steps + further)
    first = (steps - 1 + further) * ratio + int(config.get("steps_offset", 0))
    exact = kind in {
        *_MULTISTEP,
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
    }  # others interpolate beyond the last
    return first if ratio and (first < whole or not exact) else None


def _remedy(config: Mapping[str, Any], kind: str, whole: int) -> str:
    if kind in _DISTILLED:
        limit = int(config.get("original_inference_steps", _ORIGINAL_STEPS))
        return f"at most {limit}, or scheduler 'dpm++'" if limit <= whole else "scheduler 'dpm++'"
    return "fewer steps, or scheduler 'euler'" if kind in _MULTISTEP else "fewer steps, or scheduler 'dpm++'"


def _karras_merge(config: Mapping[str, Any], steps: int, whole: int) -> bool:
    """Whether the first two of Karras' sigmas are rounded to one step of the base model's schedule.

    diffusers then begins with the second one, and has none left for the last step.
    """
    sigmas = _sigmas(config, whole)
    if steps < 2 or sigmas is None:
        return False
    apart = whole - 1 - np.interp(np.log(_second_of_karras(sigmas, steps)), np.log(sigmas), np.arange(whole))
    # On the cosine schedule, some classes cut the fraction off instead, of the first step too.
    return bool(apart < (1.0 if config.get("beta_schedule") == "squaredcos_cap_v2" else _HALF))


def _first_step_is_lost(config: Mapping[str, Any], steps: int, whole: int, first: int) -> bool:
    """Whether an ancestral sampler takes the root of a rounding error in its first step, which may be negative."""
    sigmas = _sigmas(config, whole)
    if steps < 2 or sigmas is None:
        return False
    if config.get("use_karras_sigmas"):
        return bool((_second_of_karras(sigmas, steps) / sigmas[-1]) ** 2 < _ROUNDING)
    match config.get("timestep_spacing", "leading"):
        case "leading":
            second = first - whole // steps
        case "trailing":
            second = round(whole - whole / steps) - 1
        case _:
            second = (whole - 1) * (steps - 2) / (steps - 1)
    # In the arithmetic of diffusers, whose result is luck here.
    start, end = np.interp([first, second], np.arange(whole), sigmas.astype(np.float32)).astype(np.float32)
    up = np.sqrt(end * end * (start * start - end * end) / (start * start))
    return bool(end * end - up * up < 0)


def _second_of_karras(sigmas: NDArray[np.float64], steps: int) -> float:
    low, high = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
    return float((high + (low - high) / (steps - 1)) ** 7)


def _sigmas(config: Mapping[str, Any], whole: int) -> NDArray[np.float64] | None:
    """The noise at each step by its signal, (T,); None for a schedule that is not known here."""
    betas = _betas(config, whole)
    if betas is None:
        return None
    alphas = (
        np.cumprod(np.float32(1) - betas.astype(np.float32), dtype=np.float64).astype(np.float32).astype(np.float64)
    )
    if config.get("rescale_betas_zero_snr"):
        roots = np.sqrt(alphas)
        alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        alphas[-1] = _LAST_ALPHA
    small = alphas.astype(np.float32)
    return np.sqrt((1 - small) / small).astype(np.float64)


def _betas(config: Mapping[str, Any], whole: int) -> NDArray[np.float64] | None:
    """The noise that each step adds, (T,); None for a schedule that is not known here."""
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    match config.get("beta_schedule", "linear"):
        case "linear":
            return np.linspace(start, end, whole)
        case "scaled_linear":
            return np.linspace(start**0.5, end**0.5, whole) ** 2
        case "squaredcos_cap_v2":
            bar = np.cos((np.arange(whole + 1) / whole + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        case _:
            return None
