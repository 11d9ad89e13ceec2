"""The grid of a sweep: its points, its defaults, and what is refused."""

import pytest

from perfusion_ops.config import SamplingConfig
from pipeline.sweep.grid import SweepError, default_grid, make_grid


def test_points_are_all_combinations():
    grid = make_grid({"guidance": [3, 4.5], "lock": ["local", "global"]})
    assert grid.points == (
        {"guidance": 3.0, "lock": "local"},
        {"guidance": 3.0, "lock": "global"},
        {"guidance": 4.5, "lock": "local"},
        {"guidance": 4.5, "lock": "global"},
    )


@pytest.mark.parametrize(("recipe", "dial"), [("paper", "bias"), ("offset", "strength")])
def test_the_default_grid_has_the_present_settings(recipe, dial):
    sampling = SamplingConfig(guidance=5.5, bias=0.55, strength=1.1)
    points = default_grid(recipe, sampling).points
    assert {dial: getattr(sampling, dial), "guidance": 5.5} in points
    assert len(points) == 16
    assert len(default_grid(recipe, SamplingConfig(guidance=4.5)).points) == 9


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"steps": [20]}, "'steps' cannot be swept: the dials are guidance, strength, bias, temperature, lock"),
        ({"guidance": [60]}, "--dial guidance: guidance is 60: it must lie between 0 and 50"),
        ({"guidance": ["high"]}, "--dial guidance: guidance is 'high': it must be a number"),
        ({"lock": ["shut"]}, "--dial lock: lock is 'shut': it must be one of local, global, trained"),
        ({"bias": [0.5, 0.5]}, "--dial bias has no value, or one twice: give each value once"),
        ({"bias": []}, "--dial bias has no value, or one twice: give each value once"),
        ({}, "the grid has 0 points: give 1 to 100"),
        (
            {"bias": [each / 20 for each in range(20)], "guidance": range(6)},
            "the grid has 120 points: give 1 to 100",
        ),
    ],
)
def test_what_is_wrong_is_said(dials, message):
    with pytest.raises(SweepError) as error:
        make_grid(dials)
    assert str(error.value) == message
