"""The learnable beta_mix: its parametrisation, its bounds and its one piece of state."""

import pytest
import torch

from tune_dlrml.losses.lrml.function import dlrml
from tune_dlrml.losses.lrml.mixing import LearnableMix

BETA_KL, TAU = 0.05, 0.05


def mix(c_init=5.0, c_bounds=(1.0, 9.1)):
    return LearnableMix(beta_kl=BETA_KL, tau=TAU, c_init=c_init, c_bounds=c_bounds)


@pytest.mark.parametrize(
    ("c_init", "c_bounds"),
    [
        (5.0, (1.0, 9.1)),
        (1.00001, (1.0, 9.1)),
        (9.0999, (1.0, 9.1)),
        (2.0, (0.01, 1e4)),
        (1.0, (0.0, 1e5)),
        (80.0, (1.0, 100.0)),
        (20.0, None),
        (0.003, None),
    ],
)
def test_the_start_survives_the_round_trip_through_theta(c_init, c_bounds):
    start = mix(c_init, c_bounds)
    assert start.c().item() == pytest.approx(c_init, rel=1e-6)
    assert start.value().item() == pytest.approx(c_init * TAU * BETA_KL, rel=1e-6)


@pytest.mark.parametrize("c_bounds", [(1.0, 9.1), None])
def test_theta_is_the_only_state_and_a_float32_scalar(c_bounds):
    module = mix(c_bounds=c_bounds)
    assert list(module.state_dict()) == ["theta"]
    assert [p.shape for p in module.parameters()] == [torch.Size([])]
    assert module.theta.dtype == torch.float32
    assert module.value().shape == module.c().shape == ()


def test_state_restores_the_mixing_of_another_run():
    trained, fresh = mix(c_init=3.0), mix(c_init=7.0)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.value(), trained.value())


def test_without_bounds_theta_is_beta_mix_itself():
    module = mix(c_init=20.0, c_bounds=None)
    assert module.theta.item() == pytest.approx(0.05, rel=1e-7)
    torch.autograd.backward(module.value())
    assert module.theta.grad.item() == 1.0


def test_gradient_in_theta_is_the_chain_rule_through_the_sigmoid():
    module = mix(c_init=3.0)
    (slope,) = torch.autograd.grad(module.value(), module.theta)
    # d beta_mix / d theta = tau * beta_kl * (c - low) * (high - c) / (high - low)
    assert slope.item() == pytest.approx(TAU * BETA_KL * (3 - 1.0) * (9.1 - 3) / (9.1 - 1.0), rel=1e-5)


@pytest.mark.parametrize("side", ["right", "wrong", "both"])
def test_no_bound_is_left_in_1000_steps_of_adam_at_a_large_learning_rate(side):
    low, high = 1.0, 9.1
    module = mix(c_bounds=(low, high))
    optimizer = torch.optim.Adam(module.parameters(), lr=3.0)
    generator = torch.Generator().manual_seed(0)
    visited = []
    for _ in range(1000):
        margin_B = 30 * torch.randn(8, generator=generator)
        margin_B = {"right": margin_B.abs(), "wrong": -margin_B.abs(), "both": margin_B}[side]
        optimizer.zero_grad()
        dlrml(margin_B, beta_kl=BETA_KL, beta_mix=module.value(), tau=TAU).mean().backward()
        optimizer.step()
        visited.append(module.c().detach())
    visited = torch.stack(visited)
    assert visited.isfinite().all()
    # As float32 numbers, which the upper bound 9.1 rounds to as well.
    assert torch.tensor(low) <= visited.min()
    assert visited.max() <= torch.tensor(high)
    # Pairs that are right lower beta_mix, pairs that are wrong raise it.
    if side != "both":
        assert visited[-1].item() == pytest.approx({"right": low, "wrong": high}[side], abs=0.1)


def test_without_bounds_descent_on_right_pairs_carries_beta_mix_below_zero():
    module = mix(c_init=5.0, c_bounds=None)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        dlrml(torch.tensor([2.0, 5.0]), beta_kl=BETA_KL, beta_mix=module.value(), tau=TAU).mean().backward()
        optimizer.step()
    assert module.value().item() < 0


@pytest.mark.parametrize("c_init", [0.5, 1.0, 1.000001, 9.0999999, 9.1, 20.0])
def test_a_start_that_is_not_inside_the_bounds_is_refused_with_the_law_the_value_and_the_remedy(c_init):
    with pytest.raises(ValueError, match=r"`low < c_init < high` must hold.*got c_init=.*Start further inside"):
        mix(c_init=c_init)
