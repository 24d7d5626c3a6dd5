"""Means, spreads and paired differences against scipy.stats and values worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from kdzoo.report.statistics import Difference, family, holm, mean_difference, paired_difference, spread


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_interval_and_p_are_those_of_a_paired_t_test(count):
    numbers = random.Random(count)
    ours = {seed: 90 + numbers.gauss(0.5, 0.4) for seed in range(count)}
    theirs = {seed: 90 + numbers.gauss(0, 0.4) for seed in range(count)}
    expected = stats.ttest_rel(list(ours.values()), list(theirs.values()))
    ends = expected.confidence_interval(0.95)
    found = paired_difference(ours, theirs)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert found.seeds == count


def test_interval_worked_out_by_hand():
    found = mean_difference([1.0, 2.0, 3.0])  # mean 2, std 1, t(0.975, 2) = 4.302653
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.level == 0.95


def test_only_seeds_that_both_sides_have_are_paired():
    found = paired_difference({0: 91.0, 1: 92.0, 2: 99.0}, {1: 91.0, 0: 90.5, 7: 10.0})
    assert found is not None
    assert (found.mean, found.seeds) == (pytest.approx(0.75), 2)
    assert paired_difference({0: 91.0}, {1: 90.0}) is None


def test_nothing_is_known_of_the_spread_of_one_seed_or_of_equal_differences():
    assert mean_difference([0.5]) == Difference(0.5, None, None, None, 1)
    for equal in ([0.0, 0.0, 0.0], [91.3 - 91.0, 90.3 - 90.0, 0.3]):  # 0.3 in three roundings
        found = mean_difference(equal)
        assert (found.low, found.high, found.p, found.seeds) == (None, None, None, 3)


def test_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 3.0]).std == pytest.approx(math.sqrt(2))
    assert spread([5.0]).std is None
    assert spread([5.0]).mean == 5.0


def test_holm_worked_out_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1; none below the one before it.
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_a_family_is_of_the_differences_that_were_tested():
    tested, untested = Difference(1.0, 0.5, 1.5, 0.02, 3), Difference(1.0, None, None, None, 1)
    found = family({"a": tested, "b": untested, "c": tested})
    assert [one.p_holm for one in found.values()] == [0.04, None, 0.04]
