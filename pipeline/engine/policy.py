"""How often the scheduler retries, how long it waits and when it gives up: section `policy` of a spec."""

import math

from pydantic import ConfigDict, Field, model_validator

from perfusion_ops.config import Frozen

_STAGING_S = 40  # for finished rows to be staged after draining


class Policy(Frozen):
    """Limits and deadlines of the scheduler. Each description gives the reason for its default.

    Names that end in `_s` are seconds. No field is part of a key: a policy decides whether a row gets a result, never
    what the result is.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    render_depth: int = Field(
        default=2,
        ge=1,
        le=8,
        description="render batches given to a worker at once: while one is drawn, the one before is encoded and "
        "stored, or the next one waits; trainings never wait behind another unit",
    )
    render_deadline_s: float = Field(
        default=1800.0,
        gt=0,
        description="a render batch that runs longer is killed; a batch takes seconds to a few minutes",
    )
    train_deadline_s: float = Field(
        default=4 * 3600.0,
        gt=0,
        description="a training that runs longer is killed; a large group takes less than an hour, and checkpoints "
        "limit what a late kill costs",
    )
    hang_factor: float = Field(
        default=3.0,
        gt=1,
        description="a unit is killed after this many times the longest earlier unit of its shape; keep it small: a "
        "hanging row costs this wait three times, once in its batch and twice alone",
    )
    hang_floor_s: float = Field(
        default=180.0,
        gt=0,
        description="hang_factor never kills earlier than this; a worker retries a failing storage for two minutes",
    )
    cold_s: float = Field(
        default=600.0,
        ge=0,
        description="added to the limit of hang_factor for a worker's first unit, in which a GPU compiles kernels",
    )
    hang_calls: int = Field(
        default=20,
        ge=1,
        description="units of a shape that must succeed before hang_factor applies to the shape",
    )
    setup_deadline_s: float = Field(
        default=1800.0,
        gt=0,
        description="a worker that is not ready by then is replaced; an autoscaler may need twenty minutes to find a "
        "GPU machine and pull its image",
    )
    strikes: int = Field(
        default=2,
        ge=1,
        description="workers that a unit must kill before it is split, and a single row before it fails; one death may "
        "be the machine's fault, a second one makes the work suspect",
    )
    slot_deaths: int = Field(
        default=4,
        ge=2,
        description="deaths of a slot in a row, without a success, after which it is quarantined",
    )
    probation_deaths: int = Field(
        default=2,
        ge=1,
        description="deaths of a slot in a row after which it must first complete a row that is not suspect; this "
        "tells a bad slot from a bad row",
    )
    infrastructure_failures: int = Field(
        default=20,
        ge=1,
        description="outages per slot in a row, without a success anywhere, after which the run stops; with the "
        "backoff that is about a quarter of an hour",
    )
    backoff_first_s: float = Field(
        default=1.0, gt=0, description="wait before a lost worker is replaced; doubles with each loss in a row"
    )
    backoff_max_s: float = Field(
        default=60.0, gt=0, description="upper limit of that wait; a minute is short beside loading a model"
    )
    drain_s: float = Field(
        default=20.0,
        ge=0,
        description="time for running units to end when a run is stopped; Kubernetes kills after 30 s by default, and "
        "finished rows must still be staged",
    )
    poll_s: float = Field(default=1.0, gt=0, description="the longest time until a stop signal is noticed")
    seed: int = Field(default=0, description="of the random jitter of the backoff")

    @property
    def stop_s(self) -> int:
        """Whole seconds from a stop signal until a run must have ended: draining, and staging on a slow storage."""
        return math.ceil(self.drain_s) + _STAGING_S

    @model_validator(mode="after")
    def _probation_comes_first(self) -> "Policy":
        if self.probation_deaths >= self.slot_deaths:
            raise ValueError(
                f"probation_deaths is {self.probation_deaths} and slot_deaths {self.slot_deaths}: "
                "a slot must be on probation before it is quarantined, so make probation_deaths the smaller one"
            )
        return self

    def backoff_s(self, losses: int, draw: float) -> float:
        """Seconds to wait after `losses` >= 1 losses in a row; `draw` in [0, 1) spreads slots lost together."""
        return min(self.backoff_max_s, self.backoff_first_s * 2.0 ** min(losses - 1, 32)) * (0.5 + 0.5 * draw)
