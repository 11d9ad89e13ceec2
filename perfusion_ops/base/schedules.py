"""Which samplers and step counts a base model's noise schedule allows, from its configuration alone."""

from collections.abc import Mapping
from typing import Any

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_NO_SAMPLE = ("euler_a", "pndm")  # diffusers' classes for them do not support the prediction type 'sample'
_COUNTED = ("ddim", "pndm")  # these use only steps of the schedule; the others interpolate


def schedule_problem(config: Mapping[str, Any], scheduler: str, steps: int) -> str | None:
    """Why a scheduler cannot use this number of steps on a base model's schedule; None if it can.

    Args:
        config: the base model's scheduler_config.json.
        scheduler: a name of `perfusion_ops.config.Scheduler`.
        steps: denoising steps.
    """
    if config.get("prediction_type", "epsilon") == "sample" and scheduler in _NO_SAMPLE:
        return f"scheduler {scheduler!r} does not work with a base model that predicts 'sample': use 'ddim' or 'dpm++'"
    if scheduler not in _COUNTED:
        return None
    whole = int(config.get("num_train_timesteps", 1000))
    leading = config.get("timestep_spacing", "leading") == "leading"
    first = (steps - 1) * (whole // steps) + int(config.get("steps_offset", 0)) if leading else 0
    if (steps > whole and scheduler == "ddim") or first >= whole:
        return (
            f"steps is {steps}: scheduler {scheduler!r} finds no such step in the base model's schedule of {whole}; "
            "use fewer steps, or scheduler 'dpm++'"
        )
    return None
