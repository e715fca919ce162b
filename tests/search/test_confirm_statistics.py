import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from tune_dlrml.search.confirm.paired import (
    crossed_difference,
    crossed_variances,
    holm,
    p_value,
    paired_difference,
    verdict,
)


def test_the_difference_is_that_of_students_paired_t_test():
    ours, theirs = [0.80, 0.84, 0.79, 0.90, 0.83], [0.75, 0.80, 0.80, 0.81, 0.76]
    found = paired_difference(ours, theirs)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.count == 5 and found.mean == pytest.approx(0.048)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("count", "p"), [(2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_equal_differences_are_judged_by_their_sign_alone(count, p):
    found = paired_difference([0.75] * count, [0.5] * count)
    assert (found.mean, found.low, found.high, found.p) == (0.25, None, None, p)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([0.9], [0.1]), ([0.5] * 5, [0.5] * 5)])
def test_what_says_nothing_has_p_one(ours, theirs):
    found = paired_difference(ours, theirs)
    assert found.p == 1.0 and found.low is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_the_verdict_has_the_sign_of_the_difference_and_of_the_objective():
    told = {
        (difference, maximize): verdict(difference, 0.01, maximize=maximize)
        for difference, maximize in itertools.product((-0.1, 0.1), (True, False))
    }
    assert told == {(0.1, True): "better", (-0.1, True): "worse", (0.1, False): "worse", (-0.1, False): "better"}
    assert verdict(0.3, 0.05, maximize=True) == "cannot tell"


def test_pairs_that_all_seeds_share_widen_the_interval():
    """Every seed says the same of the same pairs: no spread between seeds, and yet only twenty pairs were asked."""
    of_pairs = [1.0, 0, 0, 1, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, -1, 0, 0]
    found = crossed_difference([of_pairs] * 5)
    alone = stats.ttest_1samp(of_pairs, 0)
    assert found.mean == pytest.approx(0.15) and (found.count, found.items) == (5, 20)
    assert found.p == pytest.approx(alone.pvalue)
    interval = alone.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_seeds_that_move_all_pairs_alike_are_judged_as_by_seed():
    of_seeds = [0.10, 0.14, 0.05, 0.20, 0.08]
    found = crossed_difference([[each] * 30 for each in of_seeds])
    by_seed = paired_difference(of_seeds, [0.0] * 5)
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (by_seed.mean, by_seed.low, by_seed.high, by_seed.p)
    )


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("of_seeds", "of_pairs"), [(0.2, 0.0), (0.05, 0.3), (0.1, 0.3), (0.0, 0.3), (0.0, 0.0)])
def test_also_with_few_seeds_and_at_small_levels_nothing_is_told_too_often(seeds, of_seeds, of_pairs):
    """Whichever of seeds and pairs is most of the noise; a level may be exceeded by three errors of 4000 tables."""
    rng = np.random.default_rng([seeds, round(100 * of_seeds), round(10 * of_pairs)])
    noise = of_seeds * rng.normal(size=(4000, seeds, 1)) + of_pairs * rng.normal(size=(4000, 1, 60))
    mean, by_seed, by_item = crossed_variances(noise + 0.4 * rng.normal(size=(4000, seeds, 60)))
    p = p_value(mean, seeds, 60, by_seed, by_item)
    for level in (0.05, 0.0167, 0.005):
        assert (p < level).mean() <= level + 3 * math.sqrt(level / 4000)


def test_a_p_value_is_the_level_at_which_the_interval_reaches_zero():
    rng = random.Random(3)
    table = [[0.2 + a + rng.gauss(0, 1) for _ in range(25)] for a in (0.1, -0.05, 0.2, 0.0)]
    found = crossed_difference(table)
    low, high = found.interval(found.p)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6)
    assert found.interval(0.05) == pytest.approx((found.low, found.high))


def test_a_table_without_any_difference_says_nothing():
    found = crossed_difference([[0.0] * 8] * 3)
    assert (found.mean, found.p, found.low, found.items) == (0.0, 1.0, None, 8)


def test_a_difference_that_was_reached_is_told_four_times_of_five():
    """Of pairs alone, which are many enough that their spread is known: 1.96 + 0.84 standard errors."""
    rng = np.random.default_rng(8)
    of_pairs = rng.normal(0, 1, (1, 400))
    found = crossed_difference(of_pairs + rng.normal(0, 1e-3, (4, 400)))
    reached = found.shown_beyond((found.high - found.low) / 2)
    assert reached == pytest.approx(2.8 * of_pairs.std(ddof=1) / 20, rel=0.02)
