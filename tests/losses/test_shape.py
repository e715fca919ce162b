"""Geometry found from value and slope, and that of the baselines and the discovered losses."""

import math

import pytest
import torch

from tune_dlrml.losses.discovered import function as discovered
from tune_dlrml.losses.discovered.geometry import (
    aqfl_geometry,
    aqfl_slope,
    aqfl_start,
    aqfl_value,
    aql_geometry,
    aql_slope,
    aql_start,
    aql_value,
    cell_geometry,
)
from tune_dlrml.losses.dpo.function import ipo
from tune_dlrml.losses.dpo.geometry import ipo_geometry
from tune_dlrml.losses.lrml.geometry import dlrml_geometry, dlrml_slope, dlrml_value
from tune_dlrml.losses.shape import geometry_of

AQL = {"quantile": 0.5, "quantile_rate": 0.01}


@pytest.mark.parametrize("c", [0.5, 1.0, 5.0, 9.1, 9.11, 9.5, 20.0, 80.0, 1000.0])
def test_the_numeric_geometry_of_dlrml_is_the_exact_one(c):
    exact, found = dlrml_geometry(c), geometry_of(lambda z: dlrml_value(z, c), lambda z: dlrml_slope(z, c))
    assert (found.starts, found.bounded, found.value_at_zero) == (exact.starts, exact.bounded, exact.value_at_zero)
    assert (found.trap is None) == (exact.trap is None)
    if exact.trap is not None:
        assert found.trap.z == pytest.approx(exact.trap.z, rel=1e-9)
        assert found.barrier.z == pytest.approx(exact.barrier.z, rel=1e-9)
        assert found.barrier.value == pytest.approx(exact.barrier.value, rel=1e-12)


def test_a_parabola_has_a_minimum_but_no_trap_and_is_unbounded():
    shape = geometry_of(lambda z: (z - 0.5) ** 2, lambda z: 2 * (z - 0.5))
    assert (shape.starts, shape.trap, shape.barrier, shape.bounded) == ("right", None, None, False)
    assert shape.value_at_zero == 0.25


def test_of_two_barriers_the_upper_one_counts():
    # Slope -(z + 6)(z + 3)(z - 2)(z - 5): minima at -6 and 2, maxima at -3 and 5.
    def slope(z):
        return -(z + 6) * (z + 3) * (z - 2) * (z - 5)

    def value(z):
        return -(z**5 / 5 + z**4 / 2 - 35 * z**3 / 3 - 18 * z**2 + 180 * z)

    shape = geometry_of(value, slope)
    assert (shape.trap.z, shape.barrier.z) == (pytest.approx(2, abs=1e-9), pytest.approx(5, abs=1e-9))
    assert shape.trap.value == pytest.approx(value(2), rel=1e-12)


def test_a_barrier_without_a_minimum_below_is_no_trap_but_a_wrong_start():
    shape = geometry_of(lambda z: -math.log(math.cosh(z - 1)), lambda z: -math.tanh(z - 1))
    assert (shape.starts, shape.trap, shape.barrier, shape.bounded) == ("wrong", None, None, True)


def test_a_flat_stretch_goes_on_in_the_direction_before_it():
    shape = geometry_of(lambda z: max(1 - z, 0.0), lambda z: -1.0 if z < 1 else 0.0)
    assert (shape.starts, shape.trap, shape.bounded) == ("right", None, True)


def test_a_kink_may_be_a_barrier():
    # Down to -1, up to the kink at 2, down from there.
    def slope(z):
        return -1.0 if z < -1 or z > 2 else 1.0

    shape = geometry_of(lambda z: 0.0, slope)
    assert (shape.trap.z, shape.barrier.z) == (pytest.approx(-1, abs=1e-9), pytest.approx(2, abs=1e-9))


def test_slopes_that_are_not_finite_are_passed_over_and_unbounded():
    def slope(z):
        return -math.exp(-z) if z > -700 else -math.inf

    shape = geometry_of(lambda z: math.exp(-z) if z > -700 else math.inf, slope)
    assert (shape.starts, shape.trap, shape.bounded) == ("right", None, False)


GRID = torch.tensor([-300.0, -20.0, -1.0, -0.2, -0.03, 0.0, 0.01, 0.2, 0.9, 1.1, 20.0, 300.0], dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.05, 0.4])
def test_value_and_slope_of_aql_are_those_of_the_pure_function(tau):
    z = GRID.clone().requires_grad_()
    start = aql_start(**AQL)
    loss = discovered.aql(z, beta=1.0, tau=tau, **AQL, statistic=torch.tensor(start, dtype=torch.float64))
    (slope,) = torch.autograd.grad(loss.sum(), z)
    for point, value, rise in zip(GRID.tolist(), loss.tolist(), slope.tolist(), strict=True):
        assert aql_value(point, tau=tau, statistic=start) == pytest.approx(value, rel=1e-12, abs=1e-300)
        assert aql_slope(point, tau=tau, statistic=start) == pytest.approx(rise, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("tau", [0.05, 0.4])
def test_value_and_slope_of_aqfl_are_those_of_the_pure_function(tau):
    z = GRID.clone().requires_grad_()
    start, numbers = aqfl_start(0.05), {"tau": tau, "distance_scale": 0.1}
    frozen = torch.tensor(start, dtype=torch.float64)
    loss = discovered.aqfl(z, beta=1.0, quantile_rate=0.05, **numbers, statistic=frozen)
    (slope,) = torch.autograd.grad(loss.sum(), z)
    for point, value, rise in zip(GRID.tolist(), loss.tolist(), slope.tolist(), strict=True):
        assert aqfl_value(point, **numbers, statistic=start) == pytest.approx(value, rel=1e-12, abs=1e-300)
        assert aqfl_slope(point, **numbers, statistic=start) == pytest.approx(rise, rel=1e-11, abs=1e-300)


def test_the_statistics_of_the_first_step_are_those_of_margins_of_zero():
    zeros = torch.zeros(8, dtype=torch.float64)
    for start, loss, numbers in (
        (aql_start(**AQL), discovered.aql, AQL),
        (aqfl_start(0.05), discovered.aqfl, {"quantile_rate": 0.05, "distance_scale": 0.1}),
        (0.0, discovered.dbaql, {"temperature": 0.9}),
    ):
        frozen = torch.tensor(start, dtype=torch.float64)
        with_it = loss(zeros, beta=0.05, tau=0.05, **numbers, statistic=frozen)
        assert torch.equal(loss(zeros, beta=0.05, tau=0.05, **numbers), with_it)


def test_aql_as_published_starts_uphill_between_a_trap_and_a_barrier():
    shape = aql_geometry(0.05, **AQL)
    assert (shape.starts, shape.bounded) == ("wrong", True)
    assert shape.trap.z == pytest.approx(-0.0919, abs=5e-5)
    assert shape.barrier.z == pytest.approx(0.0893, abs=5e-5)
    assert shape.trap.value < shape.value_at_zero < shape.barrier.value
    # q = sigmoid(0.5) at z = 0: q ln 2 + (1 - q)
    q = 1 / (1 + math.exp(-0.5))
    assert shape.value_at_zero == pytest.approx(q * math.log(2) + 1 - q, rel=1e-12)


def test_aql_turns_uphill_at_a_tau_of_0_1047():
    # The slope at 0 is q (1 - q) (1 - ln 2) / tau - q / 2 - (1 - q).
    q = 1 / (1 + math.exp(-0.5))
    turning = q * (1 - q) * (1 - math.log(2)) / (1 - q / 2)
    assert round(turning, 4) == 0.1047
    assert aql_geometry(turning * 0.999, **AQL).starts == "wrong"
    assert aql_geometry(turning * 1.001, **AQL).starts == "right"


def test_aql_at_a_wide_tau_is_monotone():
    shape = aql_geometry(0.4, **AQL)
    assert (shape.starts, shape.trap, shape.barrier) == ("right", None, None)


def test_aqfl_is_monotone_as_published_and_traps_at_a_fifth_of_its_tau():
    shape = aqfl_geometry(0.05, 0.05, 0.1)
    assert (shape.starts, shape.trap, shape.barrier, shape.bounded) == ("right", None, None, True)
    narrow = aqfl_geometry(0.01, 0.05, 0.1)
    # The kink, where the distance is 0, is at z = tau * 0.025.
    assert narrow.starts == "wrong"
    assert narrow.barrier.z == pytest.approx(0.00025, rel=1e-6)
    assert narrow.trap.z < 0


def test_aqfl_rises_right_of_1_once_the_batch_is_wide():
    numbers = {"tau": 0.05, "distance_scale": 0.1}

    def shape(statistic):
        return geometry_of(
            lambda z: aqfl_value(z, **numbers, statistic=statistic),
            lambda z: aqfl_slope(z, **numbers, statistic=statistic),
        )

    assert shape(10.0).trap is None
    wide = shape(30.0)
    assert (wide.starts, wide.bounded) == ("right", True)
    assert 1 <= wide.trap.z < wide.barrier.z


def test_cell_is_bounded_only_where_it_is_the_logistic_loss():
    assert cell_geometry(0.0).bounded
    assert not cell_geometry(0.5).bounded


def test_ipo_starts_at_the_square_of_its_target_and_has_no_trap():
    shape = ipo_geometry(0.1)
    tokens = torch.ones(1)
    at_zero = ipo(torch.zeros(1), torch.zeros(1), tokens, tokens, beta=0.1, length_normalized=False)
    assert shape.value_at_zero == pytest.approx(at_zero.item()) == pytest.approx(25)
    assert (shape.starts, shape.trap, shape.bounded) == ("right", None, False)
