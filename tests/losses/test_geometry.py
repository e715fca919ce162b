"""The curve L(z; c), held against 30-digit arithmetic that knows only the definition of the loss.

mpmath comes with torch, through sympy.
"""

import math

import numpy as np
import pytest
from mpmath import diff, exp, findroot, log, mp, mpf
from scipy.integrate import quad

from tune_dlrml.losses.dpo.geometry import dpo_geometry
from tune_dlrml.losses.lrml.geometry import (
    MONOTONE_C,
    SAFE_BAND,
    WRONG_START_C,
    dlrml_geometry,
    dlrml_slope,
    dlrml_value,
    learned_geometry,
    shape_number,
)

mp.dps = 30


def definition(z, c):
    m = 1 / (1 + exp(-c * z))
    return (1 - m) * log(1 + exp(-z)) + m * exp(-z)


def slope_of_definition(z, c):
    return diff(lambda t: definition(t, c), z)


def numpy_definition(z, c):
    m = 1 / (1 + np.exp(-c * z))
    return (1 - m) * np.log1p(np.exp(-z)) + m * np.exp(-z)


def test_shape_number_of_the_published_settings():
    assert shape_number(beta_kl=0.05, beta_mix=0.05, tau=0.05) == pytest.approx(20, rel=1e-15)
    assert shape_number(beta_kl=0.05, beta_mix=0.20, tau=0.05) == pytest.approx(80, rel=1e-15)


@pytest.mark.parametrize("c", [0.1, 0.9, 1.0, 5.0, 9.5, 20.0, 1000.0])
@pytest.mark.parametrize("z", [-300.0, -20.0, -1.0, -0.1, 0.0, 0.1, 1.0, 20.0, 300.0])
def test_value_and_slope_are_those_of_the_definition(z, c):
    assert dlrml_value(z, c) == pytest.approx(float(definition(mpf(z), mpf(c))), rel=1e-12)
    assert dlrml_slope(z, c) == pytest.approx(float(slope_of_definition(mpf(z), mpf(c))), rel=1e-11)


def test_value_and_slope_beyond_double_range_are_infinite_not_nan():
    # log10 of the true value at z = -2000, c = 0.1 is 1800 / ln 10 = 782.
    assert dlrml_value(-2000.0, 0.1) == math.inf
    assert dlrml_slope(-2000.0, 0.1) == -math.inf
    for c in (1.0, 20.0, 1e6):
        assert dlrml_value(-2000.0, c) == pytest.approx(2000.0, rel=1e-3)
        assert dlrml_slope(-2000.0, c) == pytest.approx(-1.0, rel=1e-12)


def test_the_slope_at_margin_zero_is_the_derivative_there():
    for c in (0.5, 5.0, 9.5, 20.0, 80.0):
        for beta_kl in (0.05, 0.3):
            by_hand = beta_kl * (c * (1 - math.log(2)) - 3) / 4
            assert float(diff(lambda rho, c=c, b=beta_kl: definition(b * rho, c), 0)) == pytest.approx(by_hand)
            assert beta_kl * dlrml_slope(0.0, c) == pytest.approx(by_hand, rel=1e-13)


def test_start_turns_wrong_at_c_9_777():
    assert round(WRONG_START_C, 3) == 9.777
    assert dlrml_slope(0.0, WRONG_START_C * (1 - 1e-12)) < 0 < dlrml_slope(0.0, WRONG_START_C * (1 + 1e-12))
    assert dlrml_geometry(9.776).starts == "right"
    assert dlrml_geometry(9.777).starts == "wrong"


def test_monotone_c_is_where_slope_and_curvature_vanish_together():
    def slope_and_curvature(z, c):
        return [diff(lambda t: definition(t, c), z, order) for order in (1, 2)]

    z, c = findroot(slope_and_curvature, (-0.06, 9.11), tol=1e-20)
    assert float(c) == MONOTONE_C
    assert float(z) == pytest.approx(-0.061037518, abs=1e-9)
    assert round(MONOTONE_C, 3) == 9.109


def test_safe_band_runs_from_bounded_slope_to_monotone_loss():
    assert SAFE_BAND == (1.0, MONOTONE_C)
    # At tau = 0.05 the band is 0.05 <= beta_mix / beta_kl <= 0.455.
    assert [round(0.05 * c, 3) for c in SAFE_BAND] == [0.05, 0.455]


@pytest.mark.parametrize("c", [0.2, 1.0, 5.0, 9.0, 9.109])
def test_loss_falls_everywhere_in_the_monotone_range(c):
    z = np.concatenate([np.linspace(-30, -1, 2901), np.linspace(-1, 1, 2001), np.linspace(1, 30, 2901)])
    assert (np.diff(numpy_definition(np.unique(z), c)) < 0).all()
    assert dlrml_geometry(c).trap is None
    assert dlrml_geometry(c).barrier is None


@pytest.mark.parametrize("c", [9.11, 9.5, 20.0, 80.0])
def test_loss_rises_between_trap_and_barrier_and_nowhere_else(c):
    z = np.linspace(-1, 1, 20001)
    rising = np.diff(numpy_definition(z, c)) > 0
    first, last = np.flatnonzero(rising)[[0, -1]]
    assert rising[first : last + 1].all()
    shape = dlrml_geometry(c)
    assert shape.trap.z == pytest.approx(z[first], abs=2e-4)
    assert shape.barrier.z == pytest.approx(z[last + 1], abs=2e-4)


@pytest.mark.parametrize(
    ("c", "trap", "barrier"),
    [
        (9.11, (-0.06327, 0.84761), (-0.05879, 0.84761)),
        (9.5, (-0.102, 0.8450), (-0.014, 0.8467)),
        (20.0, (-0.1186, 0.7859), (0.072, 0.8783)),
        (80.0, (-0.0486, 0.7244), (0.0389, 0.9496)),
        (1000.0, (-0.006422, 0.6969), (0.005718, 0.9933)),
    ],
)
def test_trap_and_barrier_are_the_stationary_points_of_the_definition(c, trap, barrier):
    shape = dlrml_geometry(c)
    for found, (z, value) in ((shape.trap, trap), (shape.barrier, barrier)):
        exact = findroot(lambda t: slope_of_definition(t, mpf(c)), (0.99 * z, 1.01 * z), solver="anderson", tol=1e-30)
        assert found.z == pytest.approx(float(exact), rel=1e-9)
        assert found.value == pytest.approx(float(definition(exact, mpf(c))), rel=1e-14)
        assert found.z == pytest.approx(z, abs=5.1 * 10.0 ** -(len(str(z).split(".")[1]) + 1))
        assert found.value == pytest.approx(value, abs=6e-5)


def test_at_c_9_5_the_start_is_right_but_a_trap_lies_below():
    shape = dlrml_geometry(9.5)
    assert shape.starts == "right"
    assert shape.trap.z < shape.barrier.z < 0


@pytest.mark.parametrize("c", [9.78, 20.0, 80.0, 1e6])
def test_from_a_wrong_start_the_trap_lies_below_and_the_barrier_above(c):
    shape = dlrml_geometry(c)
    assert shape.starts == "wrong"
    assert shape.trap.z < 0 < shape.barrier.z
    assert shape.trap.value < shape.value_at_zero < shape.barrier.value


def test_margins_of_discopop_at_beta_0_05():
    shape = dlrml_geometry(20.0)
    assert shape.trap_margin(0.05) == pytest.approx(-2.37, abs=5e-3)
    assert shape.barrier_margin(0.05) == pytest.approx(1.44, abs=5e-3)
    assert shape.barrier_margin(0.27) == pytest.approx(0.072 / 0.27, rel=1e-3)
    assert dlrml_geometry(5.0).trap_margin(0.05) is None
    assert dlrml_geometry(5.0).barrier_margin(0.05) is None


def test_trap_and_barrier_separate_like_a_square_root_above_the_monotone_range():
    # Two roots that merge at MONOTONE_C are, to first order, sqrt(c - MONOTONE_C) apart times a constant.
    def gap(above):
        shape = dlrml_geometry(MONOTONE_C + above)
        return shape.barrier.z - shape.trap.z

    assert gap(1e-6) / gap(1e-8) == pytest.approx(10, rel=1e-3)
    assert dlrml_geometry(math.nextafter(MONOTONE_C, 10)).trap.z == pytest.approx(-0.0610375, abs=1e-6)


@pytest.mark.parametrize("c", [1e6, 1e12, 1e100])
def test_at_huge_c_trap_and_barrier_follow_the_asymptotes(c):
    # As z -> 0 at fixed u = c z, the slope vanishes where c m (1 - m)(1 - ln 2) = (1 - m) / 2 + m:
    # at m = 1 / (2 c (1 - ln 2)) and at 1 - m = 1 / (c (1 - ln 2)).
    shape = dlrml_geometry(c)
    assert shape.trap.z * c == pytest.approx(-math.log(2 * c * (1 - math.log(2))), rel=1e-4)
    assert shape.barrier.z * c == pytest.approx(math.log(c * (1 - math.log(2))), rel=1e-4)
    assert shape.trap.value == pytest.approx(math.log(2), abs=20 / c * math.log(c) + 1e-15)
    assert shape.barrier.value == pytest.approx(1, abs=20 / c * math.log(c) + 1e-15)


@pytest.mark.parametrize("c", [1.0, 1.5, 5.0, 20.0, 100.0])
def test_for_c_of_one_and_more_the_exponential_term_stays_below_one_and_the_slope_bounded(c):
    z = np.concatenate([-np.logspace(4, -4, 4001), [0.0], np.logspace(-4, 4, 4001)])
    exponential_term = np.exp(-np.logaddexp(0, -c * z) - z)
    assert (exponential_term <= 1).all()
    # m e^-z <= 1 makes the rising part c (1 - m) m (e^-z - softplus(-z)) at most c and the falling part at most 2.
    slopes = np.array([dlrml_slope(float(t), c) for t in z])
    assert (slopes >= -2).all()
    assert (slopes <= c).all()
    assert dlrml_geometry(c).bounded


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_below_c_of_one_loss_and_slope_grow_exponentially(c):
    rate = 1 - c
    for quantity in (dlrml_value, dlrml_slope):
        growth = math.log(quantity(-700.0, c) / quantity(-600.0, c)) / 100
        assert growth == pytest.approx(rate, rel=2e-2)
    assert not dlrml_geometry(c).bounded


def test_value_at_zero_is_the_mean_of_ln_2_and_1_whatever_the_shape():
    for c in (0.5, 5.0, 20.0, 1e6):
        assert dlrml_geometry(c).value_at_zero == pytest.approx((math.log(2) + 1) / 2, rel=1e-15)
    assert round((math.log(2) + 1) / 2, 4) == 0.8466


def test_86_percent_of_the_published_box_starts_wrong():
    # beta_kl in [0.01, 0.5] x beta_mix in [0.05, 0.5], log-uniform, tau 0.05: integrate over ln beta_kl the share of
    # the ln beta_mix interval where the derivative at zero, c (1 - ln 2) / 4 - 3 / 4, is positive.
    def wrong_share(ln_kl):
        threshold = ln_kl + math.log(0.05 * 3 / (1 - math.log(2)))
        return min(1.0, max(0.0, (math.log(0.5) - threshold) / math.log(10)))

    kink = math.log(0.5) - math.log(0.05 * 3 / (1 - math.log(2))) - math.log(10)
    area, _ = quad(wrong_share, math.log(0.01), math.log(0.5), points=[kink])
    assert area / math.log(50) == pytest.approx(0.860, abs=5e-4)

    kl, mix = np.meshgrid(np.geomspace(0.01, 0.5, 60), np.geomspace(0.05, 0.5, 60))
    flagged = np.mean([dlrml_geometry(c).starts == "wrong" for c in (mix / (0.05 * kl)).ravel()])
    assert flagged == pytest.approx(area / math.log(50), abs=2e-2)


def test_dpo_is_softplus_and_never_traps():
    shape = dpo_geometry()
    assert (shape.c, shape.starts, shape.trap, shape.barrier, shape.bounded) == (None, "right", None, None, True)
    assert shape.value_at_zero == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize("c", [0.0, -1.0, math.inf, math.nan])
def test_a_shape_number_that_is_not_positive_and_finite_is_refused_with_the_law_the_value_and_the_remedy(c):
    with pytest.raises(ValueError, match=r"`0 < c < inf` must hold.*got c=.*Choose c in the safe band \[1, 9.109\]"):
        dlrml_geometry(c)


def test_a_learnt_shape_number_may_pass_through_zero_and_stays_monotone():
    z = np.linspace(-20, 20, 4001)
    for c in (0.0, -0.5, -20.0):
        shape = learned_geometry(c)
        assert (shape.starts, shape.trap, shape.barrier, shape.bounded) == ("right", None, None, False)
        assert (np.diff(numpy_definition(z, c)) < 0).all()
    with pytest.raises(ValueError, match=r"must be finite, but got c=nan.*Lower the learning rate"):
        learned_geometry(math.nan)
