"""What every registered loss must satisfy, whatever its formula."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from tune_dlrml.config.domains import Range
from tune_dlrml.config.losses import AnyLoss, DiscopopLoss, DlrmlLoss, DpoLoss, LearnableBetaMix
from tune_dlrml.losses.functional import dlrml
from tune_dlrml.losses.registry import LOSSES, PairBatch, build_loss

BOUNDED_MIX = LearnableBetaMix(c_init=5.0, learning_rate=0.01, c_bounds=(1.0, 9.1))
RAW_MIX = LearnableBetaMix(init=0.2, learning_rate=0.01, c_bounds=None)

STABLE = {
    "dpo": DpoLoss(beta=0.1),
    "discopop": DiscopopLoss(beta=0.05, tau=0.05, numerics="stable"),
    "dlrml at c = 1": DlrmlLoss(beta_kl=0.5, c=1.0, tau=0.05, numerics="stable"),
    "dlrml at c = 5": DlrmlLoss(beta_kl=0.05, c=5.0, tau=0.05, numerics="stable"),
    "dlrml at beta_mix 0.2": DlrmlLoss(beta_kl=0.05, beta_mix=0.2, tau=0.05, numerics="stable"),
    "dlrml learnable": DlrmlLoss(beta_kl=0.05, beta_mix=BOUNDED_MIX, tau=0.05, numerics="stable"),
    "dlrml learnable raw": DlrmlLoss(beta_kl=0.05, beta_mix=RAW_MIX, tau=0.05, numerics="stable"),
}
PUBLISHED = {
    f"{label}, published": config.model_copy(update={"numerics": "published"})
    for label, config in STABLE.items()
    if hasattr(config, "numerics")
}
ALL = STABLE | PUBLISHED


def over(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def pairs_of(margin_B):
    """Pairs with these margins, split unevenly between chosen and rejected."""
    length_B = torch.full(margin_B.shape, 7)
    return PairBatch(0.25 * margin_B, -0.75 * margin_B, length_B, length_B + 1)


def present_mixing(config):
    """beta_kl, beta_mix and tau of the formula, read off the configuration alone."""
    if config.name == "discopop":
        return config.beta, config.beta, config.tau
    if config.c is not None:
        return config.beta_kl, config.c * config.tau * config.beta_kl, config.tau
    mix = config.beta_mix
    if isinstance(mix, LearnableBetaMix):
        mix = mix.init if mix.init is not None else mix.c_init * config.tau * config.beta_kl
    return config.beta_kl, mix, config.tau


def trl_formula(margin_B, config):
    if config.name == "dpo":
        return -F.logsigmoid(config.beta * margin_B)
    beta_kl, beta_mix, tau = present_mixing(config)
    modulation_B = torch.sigmoid(beta_mix * margin_B / tau)
    logits_B = beta_kl * margin_B
    return -F.logsigmoid(logits_B) * (1 - modulation_B) + torch.exp(-logits_B) * modulation_B


def test_the_suite_covers_every_registered_loss_and_every_configurable_loss_is_registered():
    assert {config.name for config in ALL.values()} == set(LOSSES)
    configurable = {member.model_fields["name"].default for member in get_args(get_args(AnyLoss)[0])}
    assert configurable == set(LOSSES)


@over(STABLE)
def test_value_and_gradients_are_finite_at_margins_of_2000_nats(config):
    loss = build_loss(config)
    margin_B = torch.linspace(-2000, 2000, 4001).requires_grad_()
    loss_B = loss(pairs_of(margin_B))
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert margin_B.grad.isfinite().all()
    assert all(parameter.grad.isfinite() for parameter in loss.parameters())


@over(ALL)
def test_gradient_is_that_of_finite_differences(config):
    loss = build_loss(config)
    margin_B = torch.tensor([-60.0, -7.0, -1.0, 0.0, 1.0, 7.0, 60.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda margin_B: loss(pairs_of(margin_B)), (margin_B,), atol=1e-7)


@over(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_stack_of_its_pairs(config, dtype):
    loss = build_loss(config)
    margin_B = torch.linspace(-50, 50, 37, dtype=dtype)
    loss_B = loss(pairs_of(margin_B))
    assert loss_B.shape == margin_B.shape
    assert loss_B.dtype == dtype
    one_by_one = torch.cat([loss(pairs_of(margin_1)) for margin_1 in margin_B.split(1)])
    # Vectorised and scalar code of torch may differ in the last digits.
    torch.testing.assert_close(loss_B, one_by_one, rtol=20 * torch.finfo(dtype).eps, atol=0)


@over(ALL)
def test_value_and_gradient_agree_with_the_formula_of_trl(config):
    loss = build_loss(config)
    margin_B = torch.linspace(-150, 150, 601, dtype=torch.float64).requires_grad_()
    ours_B, theirs_B = loss(pairs_of(margin_B)), trl_formula(margin_B, config)
    assert theirs_B.isfinite().all()
    # A learnable beta_mix is a float32 number.
    rtol = 1e-10 if loss.mix is None else 1e-5
    torch.testing.assert_close(ours_B, theirs_B, rtol=rtol, atol=1e-12)
    slopes = [torch.autograd.grad(loss_B.sum(), margin_B)[0] for loss_B in (ours_B, theirs_B)]
    torch.testing.assert_close(*slopes, rtol=10 * rtol, atol=rtol)


@over(ALL)
def test_geometry_tells_value_and_direction_of_the_start(config):
    loss = build_loss(config)
    shape = loss.geometry()
    margin_B = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss_B = loss(pairs_of(margin_B))
    loss_B.backward()
    assert loss_B.item() == pytest.approx(shape.value_at_zero, rel=1e-12)
    assert shape.starts == ("wrong" if margin_B.grad.item() > 0 else "right")


@over(ALL)
def test_geometry_tells_the_trap_of_the_loss(config):
    loss = build_loss(config)
    shape = loss.geometry()
    margin_B = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    with torch.no_grad():
        rising = loss(pairs_of(margin_B)).diff() > 0
    assert rising.any().item() == (shape.trap is not None)
    if shape.trap is not None:
        lowest = margin_B[:-1][rising][0].item()
        highest = margin_B[1:][rising][-1].item()
        assert shape.trap_margin(loss.beta_kl) == pytest.approx(lowest, abs=2e-3)
        assert shape.barrier_margin(loss.beta_kl) == pytest.approx(highest, abs=2e-3)


@over(ALL)
def test_state_is_the_learnable_mixing_or_nothing(config):
    loss = build_loss(config)
    learnable = isinstance(getattr(config, "beta_mix", None), LearnableBetaMix)
    assert (loss.mix is not None) == learnable
    assert list(loss.state_dict()) == (["mix.theta"] if learnable else [])


def test_beta_kl_is_the_scale_of_the_margin():
    assert build_loss(STABLE["dpo"]).beta_kl == 0.1
    assert build_loss(STABLE["discopop"]).beta_kl == 0.05
    assert build_loss(STABLE["dlrml at c = 1"]).beta_kl == 0.5


def test_the_margin_of_a_pair_is_the_difference_of_its_log_ratios():
    tokens_B = torch.tensor([3, 4])
    pairs = PairBatch(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), tokens_B, tokens_B)
    assert pairs.margin_B.tolist() == [0.5, -3.0]


@pytest.mark.parametrize(("label", "c"), [("discopop", 20.0), ("dlrml at c = 5", 5.0), ("dlrml at beta_mix 0.2", 80.0)])
def test_each_way_to_set_the_mixing_gives_its_shape_number(label, c):
    assert build_loss(ALL[label]).geometry().c == pytest.approx(c, rel=1e-14)


def test_a_learnable_start_may_be_given_in_either_unit():
    by_mix = LearnableBetaMix(init=0.0125, learning_rate=0.01, c_bounds=(1.0, 9.1))
    of_beta_mix = build_loss(DlrmlLoss(beta_kl=0.05, beta_mix=by_mix, tau=0.05))
    of_c = build_loss(STABLE["dlrml learnable"])
    assert of_beta_mix.mix.c().item() == pytest.approx(5.0, rel=1e-6)
    assert of_c.mix.beta_mix().item() == pytest.approx(0.0125, rel=1e-6)


def test_geometry_of_a_learnable_loss_follows_the_present_c():
    loss = build_loss(STABLE["dlrml learnable raw"])
    assert loss.geometry().c == pytest.approx(80, rel=1e-6)
    with torch.no_grad():
        loss.mix.theta.fill_(0.0125)
    assert loss.geometry().c == pytest.approx(5, rel=1e-6)
    assert loss.geometry().trap is None
    with torch.no_grad():
        loss.mix.theta.fill_(-0.01)
    assert loss.geometry().bounded is False


@over({label: ALL[label] for label in ("dlrml learnable", "dlrml learnable, published")})
def test_gradient_reaches_theta_through_either_numerics(config):
    loss = build_loss(config)
    loss(pairs_of(torch.tensor([4.0]))).sum().backward()
    # dL/dbeta_mix = rho / tau * m (1 - m) (e^-z - softplus(-z)) and dbeta_mix/dtheta by the sigmoid between 1 and 9.1
    m, z = 1 / (1 + math.exp(-5 * 0.05 * 4)), 0.05 * 4
    in_beta_mix = 4 / 0.05 * m * (1 - m) * (math.exp(-z) - math.log1p(math.exp(-z)))
    in_theta = in_beta_mix * 0.05 * 0.05 * (5 - 1) * (9.1 - 5) / (9.1 - 1)
    assert loss.mix.theta.grad.item() == pytest.approx(in_theta, rel=1e-4)


def test_published_numerics_keep_the_fault_that_stable_numerics_remove():
    far_wrong = pairs_of(torch.tensor([-2000.0]))
    assert build_loss(ALL["discopop, published"])(far_wrong).isnan().all()
    assert build_loss(ALL["discopop"])(far_wrong).item() == pytest.approx(100.0)
    assert dlrml(far_wrong.margin_B, beta_kl=0.05, beta_mix=0.05, tau=0.05).item() == pytest.approx(100.0)


def test_a_searched_field_that_was_not_drawn_is_refused_with_the_remedy():
    undrawn = DpoLoss(beta=Range(kind="log_uniform", low=0.01, high=0.5))
    with pytest.raises(ValueError, match=r"one value per field, but got Range.*Draw a point of the search space first"):
        build_loss(undrawn)
