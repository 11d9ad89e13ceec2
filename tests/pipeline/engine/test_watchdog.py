"""The watchdog: full deadlines for unknown shapes, more time for a worker's first unit, else what history allows."""

import pytest

from perfusion_ops.config import TrainingConfig
from pipeline.contract.units import ConceptTask, RenderShape, RenderTask, RenderUnit, TrainUnit
from pipeline.engine.policy import Policy
from pipeline.engine.watchdog import Deadline, Watchdog

POLICY = Policy(
    hang_factor=5, hang_floor_s=100, hang_calls=3, cold_s=400, render_deadline_s=1000, train_deadline_s=9000
)


def rendering(tasks: int, width: int = 64) -> RenderUnit:
    shape = RenderShape(width=width, height=64, steps=20, guidance=6.0, scheduler="ddim")
    row = RenderTask("key", "a {0}", "", ("concept",), 0, 0.6, 0.15, "local", shape)
    return RenderUnit("unit", (row,) * tasks)


def training(steps: int) -> TrainUnit:
    row = ConceptTask("key", "id", "mug", (), (), TrainingConfig(steps=steps))
    return TrainUnit("unit", (row,))


def after(*seconds: float, unit: RenderUnit | TrainUnit) -> Watchdog:
    watchdog = Watchdog(POLICY)
    for each in seconds:
        watchdog.learn(unit, each)
    return watchdog


def test_a_shape_without_history_gets_the_full_deadline():
    assert Watchdog(POLICY).deadline(rendering(4), warm=True).seconds == 1000
    assert after(50, 60, unit=rendering(4)).deadline(rendering(4), warm=True).seconds == 1000


def test_a_known_shape_gets_a_multiple_of_its_longest_unit():
    watchdog = after(50, 60, 40, unit=rendering(4))
    assert watchdog.deadline(rendering(4), warm=True).seconds == 300
    assert watchdog.deadline(rendering(1), warm=True).seconds == 300
    assert watchdog.deadline(rendering(8), warm=True).seconds == 600


def test_the_first_unit_of_a_worker_gets_more_time():
    assert after(50, 60, 40, unit=rendering(4)).deadline(rendering(4), warm=False).seconds == 300 + 400
    assert after(150, 160, 140, unit=rendering(4)).deadline(rendering(4), warm=False).seconds == 1000
    assert after(50, 60, unit=rendering(4)).deadline(rendering(4), warm=False).seconds == 1000


def test_the_limit_is_between_the_floor_and_the_deadline():
    assert after(1, 1, 1, unit=rendering(4)).deadline(rendering(4), warm=True).seconds == 100
    assert after(900, 1, 1, unit=rendering(4)).deadline(rendering(4), warm=True).seconds == 1000


def test_a_deadline_names_the_setting_that_sets_it():
    def setting(*seconds, warm=True):
        return after(*seconds, unit=rendering(4)).deadline(rendering(4), warm=warm).setting

    assert setting(50) == "render_deadline_s"
    assert setting(50, 60, 40) == setting(50, 60, 40, warm=False) == "hang_factor"
    assert setting(1, 1, 1) == setting(1, 1, 1, warm=False) == "hang_floor_s"
    assert setting(900, 1, 1) == "render_deadline_s"
    assert Watchdog(POLICY).deadline(training(100), warm=True).setting == "train_deadline_s"


@pytest.mark.parametrize(("known", "new"), [(rendering(4), rendering(4, 512)), (training(100), training(400))])
def test_each_shape_and_each_training_is_timed_by_itself(known, new):
    watchdog = after(50, 60, 40, unit=known)
    setting = "train_deadline_s" if isinstance(new, TrainUnit) else "render_deadline_s"
    assert watchdog.deadline(new, warm=True) == Deadline(getattr(POLICY, setting), setting)
