"""Intervals and fronts against naive references."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.compare.intervals import bootstrap, harmonic_mean, hypervolume, paired, ranks
from perfusion_ops.mini.methods.summary import dominated

shares = st.integers(0, 6).map(lambda sixth: sixth / 6)
points = st.lists(st.tuples(shares, shares), max_size=8)


@settings(max_examples=100)
@given(points=points)
def test_hypervolume_counts_the_cells_that_a_point_covers(points):
    cells = itertools.product(range(6), range(6))
    covered = sum(any(x * 6 > i + 0.5 and y * 6 > j + 0.5 for x, y in points) for i, j in cells)
    assert hypervolume(points) == pytest.approx(covered / 36)


@given(points=points, others=points)
def test_a_front_that_dominates_has_at_least_the_volume(points, others):
    if others and dominated(others, [*points, (0, 0)]) == 1:
        assert hypervolume(others) <= hypervolume(points) + 1e-12


def test_dominated_is_a_share():
    assert dominated([(0.5, 0.5), (0.9, 0.1), (0.1, 0.9)], [(0.5, 0.6), (0.9, 0.1)]) == pytest.approx(2 / 3)
    assert dominated([(0.5, 0.5)], [(0.6, 0.4)]) == 0


def test_bootstrap_equals_resampling_by_hand():
    values = np.random.default_rng(3).normal(0.6, 0.1, 24)
    found = bootstrap(values, resamples=500, seed=7)
    rng = np.random.default_rng(7)
    chosen = rng.integers(0, 24, (500, 24))
    means = sorted(sum(values[i] for i in row) / 24 for row in chosen)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))


def test_bootstrap_of_known_distributions():
    values = np.random.default_rng(5).normal(1.0, 0.5, 400)
    found = bootstrap(values, resamples=4000)
    # The mean of 400 has a deviation of 0.5 / 20.
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    alike = bootstrap([0.3, 0.3, float("nan")], resamples=100)
    assert (alike.low, alike.mean, alike.high) == pytest.approx((0.3, 0.3, 0.3))
    with pytest.raises(ValueError, match="no product has a value"):
        bootstrap([float("nan")], resamples=10)


def test_paired_differences_do_not_see_what_products_share():
    rng = np.random.default_rng(1)
    hard = rng.normal(0.5, 0.3, 30)
    ours, theirs = hard + 0.02, hard + rng.normal(0, 0.005, 30)
    found = paired(ours, theirs, resamples=1000)
    assert found.low > 0
    alone = bootstrap(ours, resamples=1000)
    assert alone.high - alone.low > 10 * (found.high - found.low)
    assert str(found) == f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def test_harmonic_mean_and_ranks():
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.9, 0.0, 0.9]) == 0
    assert ranks([0.2, 0.9, 0.9, 0.5]) == [4, 1, 1, 3]
