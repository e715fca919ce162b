"""Values worked out by hand of the losses beside DPO that take a reference, and what their papers claim of them."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from tune_dlrml.losses.anchored import function as anchored
from tune_dlrml.losses.anchored.config import BcoPairLoss
from tune_dlrml.losses.anchored.geometry import nca_pair_geometry, sppo_hard_geometry
from tune_dlrml.losses.dpo import function as dpo
from tune_dlrml.losses.dpo.config import BetaDpoLoss, DpoLoss
from tune_dlrml.losses.mix.config import MixLoss
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.losses.running import RunningMean
from tune_dlrml.losses.transport import function as transport

LN_3 = math.log(3)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def pairs_of(chosen, rejected):
    return PairBatch(chosen, rejected, torch.ones_like(chosen), torch.ones_like(chosen))


def same(found, expected):
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_cdpo_by_hand_and_at_its_minimum():
    # z = ln 3: softplus(-z) = ln 4/3, softplus(z) = ln 4.
    same(dpo.cdpo(at(10 * LN_3), beta=0.1, label_smoothing=0.25), [math.log(4) - 0.75 * LN_3])
    lowest = minimize_scalar(lambda z: dpo.cdpo(at(z), beta=1.0, label_smoothing=0.25).item(), (0, 2), tol=1e-10)
    assert lowest.x == pytest.approx(LN_3, rel=1e-6)
    same(dpo.cdpo(at(-3.0, 2.0), beta=0.3, label_smoothing=0.0), dpo.dpo(at(-3.0, 2.0), beta=0.3).tolist())


def test_robust_dpo_is_dpo_in_the_mean_over_swapped_labels():
    margins = at(-40.0, -3.0, 0.0, 5.0, 60.0)
    right, swapped = (dpo.robust(sign * margins, beta=0.1, label_smoothing=0.2) for sign in (1, -1))
    same(0.8 * right + 0.2 * swapped, dpo.dpo(margins, beta=0.1).tolist())


def test_exo_is_the_divergence_to_the_smoothed_label():
    # z = ln 3: q = (3/4, 1/4); at e = 1/4 that is the label itself, at e = 1/10 the KL to (9/10, 1/10).
    same(dpo.exo_pair(at(10 * LN_3), beta=0.1, label_smoothing=0.25), [0.0])
    kl = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)
    same(dpo.exo_pair(at(10 * LN_3), beta=0.1, label_smoothing=0.1), [kl])


def test_length_normalized_dpo_compares_log_ratios_per_token():
    lengths = torch.tensor([4, 1]), torch.tensor([2, 0])
    found = dpo.sigmoid_norm(at(8.0, 3.0), at(-2.0, 3.0), *lengths, beta=0.5)
    same(found, [math.log(1 + math.exp(-0.5 * (2 + 1))), math.log(2)])


def test_length_regularized_dpo_learns_less_from_a_longer_chosen_completion():
    margins = at(2.0, 2.0).requires_grad_()
    lengths = torch.tensor([30, 10]), torch.tensor([10, 30])
    losses = dpo.r_dpo(margins, *lengths, beta=0.1, alpha=0.05)
    same(losses, [math.log(1 + math.exp(-1.2)), math.log(1 + math.exp(0.8))])
    losses.sum().backward()
    assert margins.grad[1] < margins.grad[0] < 0


def test_dpo_positive_counts_what_the_chosen_completion_has_lost():
    found = dpo.dpop(at(1.0, -0.5), at(-1.0, -4.0), beta=0.2, penalty=5.0)
    # 1 + 1, and -0.5 + 4 - 5 * 0.5
    same(found, [math.log(1 + math.exp(-0.4)), math.log(1 + math.exp(-0.2))])


def test_nca_draws_the_chosen_reward_to_ln_2_and_the_rejected_one_down():
    # sigmoid(ln 3) = 3/4
    expected = math.log(4 / 3) + math.log(4) / 2 + math.log(4 / 3) / 2
    same(anchored.nca_pair(at(10 * LN_3), at(-10 * LN_3), beta=0.1), [expected])
    chosen, rejected = at(10 * math.log(2)).requires_grad_(), at(0.7).requires_grad_()
    anchored.nca_pair(chosen, rejected, beta=0.1).backward()
    assert chosen.grad.item() == pytest.approx(0, abs=1e-15)
    assert rejected.grad.item() > 0
    assert nca_pair_geometry().value_at_zero == pytest.approx(2 * math.log(2))


def test_sppo_draws_both_log_ratios_to_half_of_one_over_beta():
    same(anchored.sppo_hard(at(5.0, 2.0), at(-5.0, 1.0), beta=0.1), [0.0, 9.0 + 36.0])
    assert sppo_hard_geometry(0.1).value_at_zero == pytest.approx(50.0)


def test_apo_by_hand():
    chosen, rejected = at(10 * LN_3, 0.0), at(-10 * LN_3, 10 * LN_3)
    same(anchored.apo_zero(chosen, rejected, beta=0.1), [0.25 + 0.25, 0.5 + 0.75])
    # beta * margin is 2 ln 3 and -ln 3
    same(anchored.apo_down(chosen, rejected, beta=0.1), [0.75 + 0.1, 0.5 + 0.75])


def test_apo_down_has_a_crest_far_down_and_no_minimum_below_it():
    def value(z):
        return anchored.apo_down(at(z / 2), at(-z / 2), beta=1.0).item()

    crest = minimize_scalar(lambda z: -value(z), (-4, -1), tol=1e-10)
    # With x = exp(z / 2) the slope vanishes where (1 + x^2)^2 = 2 x (1 + x)^2.
    x = math.exp(crest.x / 2)
    assert (1 + x**2) ** 2 == pytest.approx(2 * x * (1 + x) ** 2, rel=1e-5)
    assert crest.x == pytest.approx(-2.12, abs=5e-3)
    assert value(-40.0) == pytest.approx(1.0) and value(-40.0) < value(-20.0) < value(-4.0)


def test_aot_compares_margins_and_reference_margins_of_one_rank():
    reference = at(5.0, -3.0, 0.0)
    losses = transport.aot(at(2.0, 9.0, 4.0), at(1.0, 1.0, 1.0), reference, beta=0.1, label_smoothing=0.0)
    # Margins 1, 8, 3 against -3, 5, 0.
    same(losses, [math.log(1 + math.exp(-0.1 * each)) for each in (4, 3, 3)])
    alone = transport.aot(at(2.0), at(1.0), at(5.0), beta=0.1, label_smoothing=0.0)
    same(alone, dpo.dpo(at(-4.0), beta=0.1).tolist())


def test_unpaired_aot_forgets_which_rejected_completion_was_whose():
    chosen, rejected = at(3.0, -1.0, 0.5), at(2.0, -2.0, 0.0)
    losses = transport.aot_unpaired(chosen, rejected, beta=0.1, label_smoothing=0.1)
    same(losses, dpo.cdpo(at(1.0, 1.0, 0.5), beta=0.1, label_smoothing=0.1).tolist())
    assert torch.equal(losses, transport.aot_unpaired(chosen, rejected.flip(0), beta=0.1, label_smoothing=0.1))


def test_bco_takes_the_mean_reward_of_all_completions_so_far_off_each():
    loss = build_loss(BcoPairLoss(beta=0.1))
    first, second = (pairs_of(at(*chosen), at(*rejected)) for chosen, rejected in (((4.0,), (2.0,)), ((9.0,), (1.0,))))
    loss.observe(first)
    same(loss(first), [math.log(1 + math.exp(-0.1)) + math.log(1 + math.exp(-0.1))])
    loss.observe(second)
    # (4 + 2 + 9 + 1) / 4 = 4
    same(loss(second), [math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-0.3))])


def test_bco_gives_the_pairs_of_two_micro_batches_the_weight_of_one_of_both():
    apart, together = RunningMean(), RunningMean()
    apart.update(at(1.0, 2.0))
    apart.update(at(6.0, math.inf, 3.0, 8.0))
    together.update(at(1.0, 2.0, 6.0, 3.0, 8.0))
    assert apart.mean.item() == pytest.approx(together.mean.item()) == pytest.approx(4.0)


def test_beta_dpo_is_strict_where_margins_are_above_their_running_mean():
    loss = build_loss(BetaDpoLoss(beta=0.1, alpha=0.5, momentum=0.75))
    pairs = pairs_of(at(4.0, 8.0), at(0.0, 0.0))
    loss.observe(pairs)
    # The running mean is 6 / 4; beta is 0.1 * (1 + 0.5 * (6 - 1.5)).
    same(loss(pairs), [math.log(1 + math.exp(-0.325 * margin)) for margin in (4, 8)])
    low = pairs_of(at(0.0), at(50.0))
    same(loss(low), [math.log(1 + math.exp(1e-3 * 50))])


def test_a_sum_lets_its_parts_remember_and_weighs_them():
    loss = build_loss(MixLoss(parts=[{"loss": BcoPairLoss(beta=0.1), "weight": 0.5}, {"loss": DpoLoss(beta=0.2)}]))
    pairs = pairs_of(at(4.0), at(2.0))
    loss.observe(pairs)
    same(loss(pairs), [math.log(1 + math.exp(-0.1)) + math.log(1 + math.exp(-0.4))])
    assert (loss.beta_kl, next(name for name, _ in loss.named_buffers())) == (0.1, "parts.0.running.mean")
