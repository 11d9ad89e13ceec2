"""The scores' arithmetic: bounds, and what each of them does and does not see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.mini.oracle.score import color_score, edge_score, mean_score, pattern_score
from perfusion_ops.mini.oracle.search import Drawn


def disc(radius: float = 18.0) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64].astype(np.float32)
    return ((x - 32) ** 2 + (y - 32) ** 2 < radius**2).astype(np.float32)


def checks(side: int, low: float = 0.2, high: float = 0.8) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64]
    plane = np.where((x // side + y // side) % 2 == 0, low, high).astype(np.float32)
    return np.repeat(plane[:, :, None], 3, axis=2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_lie_between_0_and_1_and_a_picture_is_like_itself(seed):
    rng = np.random.default_rng(seed)
    picture, colors = rng.random((2, 64, 64, 3), dtype=np.float32)
    cover = disc()
    drawn = Drawn(colors, cover)
    for score in (color_score, pattern_score, edge_score):
        assert 0 <= score(picture, drawn) <= 1
        assert score(colors, drawn) == pytest.approx(1, abs=1e-5)


def test_color_does_not_see_the_pattern_and_pattern_does_not_see_the_color():
    drawn = Drawn(checks(3), disc())
    flat = np.full((64, 64, 3), 0.5, np.float32)
    assert color_score(flat, drawn) > 0.85
    assert pattern_score(flat, drawn) < 0.01
    brighter = checks(3) + np.array([0.2, 0.0, -0.2], np.float32)
    assert pattern_score(brighter, drawn) > 0.99
    assert color_score(brighter, drawn) < 0.5


def test_a_weaker_pattern_scores_by_its_contrast():
    drawn = Drawn(checks(3), disc())
    weak = checks(3, 0.35, 0.65)  # half the contrast: 2 * 0.5 / (1 + 0.25)
    assert pattern_score(weak, drawn) == pytest.approx(0.8, abs=0.01)
    inverted = checks(3, 0.8, 0.2)
    assert pattern_score(inverted, drawn) == 0


def test_edges_see_an_outline_that_is_not_there():
    flat = np.full((64, 64, 3), 0.5, np.float32)
    drawn = Drawn(np.full((64, 64, 3), 0.9, np.float32), disc())
    assert edge_score(flat, drawn) < 0.1
    pasted = flat * (1 - disc()[:, :, None]) + 0.9 * disc()[:, :, None]
    assert edge_score(pasted, drawn) == pytest.approx(1, abs=1e-5)


def test_one_score_of_zero_cannot_be_made_up_for():
    assert mean_score((1.0, 1.0, 0.0)) == 0
    assert mean_score((0.5, 0.5, 0.5)) == pytest.approx(0.5)
    assert mean_score((0.9, 0.4)) == pytest.approx(0.6)
