"""How hard the scheduler tries, how long it waits, and whom it blames. Every number carries its reason."""

from pydantic import Field, model_validator

from perfusion_ops.config import Frozen
from pipeline.contract.units import TrainUnit, Unit


class Policy(Frozen):
    """Settings of `pipeline.engine.scheduler`; seconds are marked `_s`."""

    render_depth: int = Field(
        default=2,
        ge=1,
        le=8,
        description="renders given to a slot at once: one runs, the next is there the moment it ends",
    )
    train_depth: int = Field(
        default=1,
        ge=1,
        le=1,
        description="a training takes minutes: one queued behind it would only keep other slots from it",
    )
    render_deadline_s: float = Field(
        default=1800.0,
        gt=0,
        description="a batch takes seconds to a few minutes",
    )
    train_deadline_s: float = Field(
        default=4 * 3600.0,
        gt=0,
        description="a large group takes under an hour; its checkpoints bound what a late kill costs",
    )
    hang_factor: float = Field(
        default=3.0,
        gt=1,
        description="times the longest call of its shape so far: a hang is waited for three times, once in its batch "
        "and twice alone, and in the end by an otherwise finished run",
    )
    hang_floor_s: float = Field(
        default=180.0,
        gt=0,
        description="storage that refuses keeps a unit waiting for two minutes before it fails",
    )
    cold_s: float = Field(
        default=600.0,
        ge=0,
        description="more than that for a worker's first call, which on a GPU also compiles kernels",
    )
    hang_calls: int = Field(
        default=20,
        ge=1,
        description="calls of a shape that must have ended well before they say how long others may take",
    )
    setup_deadline_s: float = Field(
        default=1800.0,
        gt=0,
        description="an autoscaler may need twenty minutes to find a GPU machine and pull its image",
    )
    strikes: int = Field(
        default=2,
        ge=1,
        description="one death may be the machine's; a second one under the same work makes the work suspect",
    )
    slot_deaths: int = Field(
        default=4,
        ge=2,
        description="deaths of one slot in a row, no success between, after which it gets no more work",
    )
    probation_deaths: int = Field(
        default=2,
        ge=1,
        description="deaths in a row after which a slot must first complete one fresh row, which tells a bad "
        "slot from a bad row before either is condemned",
    )
    infrastructure_failures: int = Field(
        default=20,
        ge=1,
        description="outages per slot with no success anywhere: about a quarter of an hour of backing off",
    )
    backoff_first_s: float = Field(default=1.0, gt=0, description="doubles with every loss of a slot in a row")
    backoff_max_s: float = Field(default=60.0, gt=0, description="a minute is short beside loading a model again")
    drain_s: float = Field(
        default=20.0,
        ge=0,
        description="Kubernetes kills after 30 s by default, and rows that are done must still be staged",
    )
    poll_s: float = Field(default=1.0, gt=0, description="the longest time for which a stop signal goes unnoticed")
    seed: int = Field(default=0, description="of the jitter on the backoff")

    @model_validator(mode="after")
    def _probation_comes_first(self) -> "Policy":
        if self.probation_deaths >= self.slot_deaths:
            raise ValueError(
                f"probation_deaths is {self.probation_deaths} and slot_deaths {self.slot_deaths}: "
                "a slot must be on probation before it is quarantined, so make probation_deaths the smaller one"
            )
        return self

    def depth(self, unit: Unit) -> int:
        """How many calls of this kind a slot may hold."""
        return self.train_depth if isinstance(unit, TrainUnit) else self.render_depth

    def deadline_s(self, unit: Unit) -> float:
        """Seconds within which a running unit must end, whatever is known of its likes."""
        return self.train_deadline_s if isinstance(unit, TrainUnit) else self.render_deadline_s

    def backoff_s(self, losses: int, draw: float) -> float:
        """Seconds to wait after `losses` losses in a row; `draw` in [0, 1) spreads slots that fell together."""
        return min(self.backoff_max_s, self.backoff_first_s * 2.0 ** min(losses - 1, 32)) * (0.5 + 0.5 * draw)
