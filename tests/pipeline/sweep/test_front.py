"""The front and the choice on it, against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sweep.front import Choice, Measured, Select, choose, front, parse_select
from pipeline.sweep.grid import SweepError

NUMBERS = st.integers(-20, 20).map(lambda number: number / 20)  # a few values, so that many are equal
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12).map(
    lambda pairs: [Measured(number, a, b, 4) for number, (a, b) in enumerate(pairs)]
)


def surpasses(one, other):
    return (
        one.obedience >= other.obedience
        and one.identity >= other.identity
        and (one.obedience, one.identity) != (other.obedience, other.identity)
    )


@given(POINTS)
def test_the_front_is_what_nothing_surpasses(points):
    found = front(points)
    expected = {(each.obedience, each.identity) for each in points if not any(surpasses(one, each) for one in points)}
    assert [(each.obedience, each.identity) for each in found] == sorted(expected)
    for each in found:
        equal = [one.point for one in points if (one.obedience, one.identity) == (each.obedience, each.identity)]
        assert each.point == min(equal)


@given(POINTS, NUMBERS)
def test_choices_are_the_best_of_all_points(points, least):
    def harmonic(each):
        a, b = max(each.obedience, 0), max(each.identity, 0)
        return 0 if a + b == 0 else 2 * a * b / (a + b)

    assert harmonic(choose(points, Select("harmonic")).chosen) == max(map(harmonic, points))
    enough = [each for each in points if each.identity >= least]
    found = choose(points, Select("min-identity", least))
    assert found.met == bool(enough)
    if enough:
        assert found.chosen.obedience == max(each.obedience for each in enough)
        assert found.chosen.identity >= least
    else:
        assert found.chosen.identity == max(each.identity for each in points)
    assert choose(points, Select("knee")).chosen in front(points)


def test_the_knee_is_farthest_from_the_line_between_the_ends():
    points = [
        Measured(*each, 1) for each in [(0, 0.0, 1.0), (1, 0.5, 0.9), (2, 0.7, 0.6), (3, 1.0, 0.0), (4, 0.4, 0.4)]
    ]
    assert [each.point for each in front(points)] == [0, 1, 2, 3]
    assert choose(points, Select("knee")) == Choice(points[1])  # .5 + .9 is more than .7 + .6
    narrow = [Measured(each.point, 0.2 + each.obedience / 1000, each.identity * 7, 1) for each in points]
    assert choose(narrow, Select("knee")).chosen.point == 1, "the scales of the axes do not matter"
    assert choose(points[::3], Select("knee")).chosen.point == 0, "of two ends, the one with the higher identity"
    assert choose(points[4:], Select("knee")).chosen.point == 4


@pytest.mark.parametrize("text", ["knee", "harmonic", "min-identity=0.8", "min-identity=-1"])
def test_a_rule_reads_as_it_is_written(text):
    assert str(parse_select(text)) == text


@pytest.mark.parametrize(
    "text", ["", "best", "knee=1", "min-identity", "min-identity=", "min-identity=2", "min-identity=nan"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(SweepError, match=r"--select is .*: give knee, harmonic or min-identity=X with X from -1 to 1"):
        parse_select(text)
