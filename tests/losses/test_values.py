"""Values worked out by hand, from the definitions in the papers, and where the losses meet.

At beta = tau = 0.05 the argument z / tau of the discovered losses is the margin itself.
"""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from tune_dlrml.losses.discovered import function as discovered
from tune_dlrml.losses.discovered.function import standard_deviation, variance
from tune_dlrml.losses.dpo import function as dpo
from tune_dlrml.losses.kto import function as kto
from tune_dlrml.losses.lrml import function as lrml


def log1pexp(x):
    return math.log(1 + math.exp(x))


def expit(x):
    return 1 / (1 + math.exp(-x))


def at(*margins):
    return torch.tensor(margins, dtype=torch.float64)


def same(found, expected):
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


MARGINS = (-20.0, -2.0, 0.0, 2.0, 20.0)  # z = -1, -0.1, 0, 0.1, 1 at beta 0.05


def test_dpo_by_hand():
    expected = [math.log(1 + math.e), log1pexp(0.1), math.log(2), log1pexp(-0.1), math.log(1 + 1 / math.e)]
    same(dpo.dpo(at(*MARGINS), beta=0.05), expected)


def test_hinge_by_hand():
    same(dpo.hinge(at(-20.0, -2.0, 0.0, 2.0, 40.0), beta=0.05), [2.0, 1.1, 1.0, 0.9, 0.0])


def test_ipo_by_hand_pulls_the_margin_to_half_of_one_over_beta():
    tokens = torch.ones(5)
    margin = at(-2.0, 0.0, 4.0, 5.0, 7.0)
    loss = dpo.ipo(margin / 2, -margin / 2, tokens, tokens, beta=0.1, length_normalized=False)
    same(loss, [49.0, 25.0, 1.0, 0.0, 4.0])


def test_ipo_of_trl_takes_log_ratios_per_token():
    chosen, rejected = at(10.0, -4.0, 0.0, 8.0, 3.0), at(-3.0, 6.0, 9.0, 0.0, 3.0)
    lengths = torch.tensor([2, 4, 5, 8, 3]), torch.tensor([3, 2, 9, 1, 0])
    loss = dpo.ipo(chosen, rejected, *lengths, beta=0.25, length_normalized=True)
    # 5 + 1, -1 - 3, 0 - 1, 1 - 0, 1 - 3, each minus 2
    same(loss, [16.0, 36.0, 9.0, 1.0, 16.0])


def test_kto_by_hand_holds_each_half_against_the_kl_of_the_other():
    chosen, rejected = at(2.0, -1.0, 4.0, 0.0, 5.0), at(1.0, -6.0, 0.0, 3.0, -8.0)
    loss = kto.kto(chosen, rejected, beta=0.5, desirable_weight=1.0, undesirable_weight=3.0, kl_gradient=True)
    # Means 2 and -2: the chosen half has a KL of 2, the rejected half one of 0.
    expected = [
        (1 - expit(1.0) + 3 * (1 - expit(0.5))) / 2,
        (1 - expit(-0.5) + 3 * (1 - expit(4.0))) / 2,
        (1 - expit(2.0) + 3 * (1 - expit(1.0))) / 2,
        (1 - expit(0.0) + 3 * (1 - expit(-0.5))) / 2,
        (1 - expit(2.5) + 3 * (1 - expit(5.0))) / 2,
    ]
    same(loss, expected)


def test_kto_keeps_the_gradient_out_of_the_kl_where_configured():
    def slope_of_the_first_chosen(kl_gradient):
        chosen = at(2.0, 4.0).requires_grad_()
        weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
        loss = kto.kto(chosen, at(1.0, 3.0), beta=0.5, kl_gradient=kl_gradient, **weights)
        return torch.autograd.grad(loss.sum(), chosen)[0][0].item()

    # KL 3 and 2: the first chosen log-ratio stands at 2 - 2; the rejected ones stand at 3 - 1 and 3 - 3.
    own = -0.5 * 0.25 / 2
    through_the_kl = -0.5 * (expit(1.0) * expit(-1.0) + 0.25) / 2 / 2
    assert slope_of_the_first_chosen(False) == pytest.approx(own, rel=1e-12)
    assert slope_of_the_first_chosen(True) == pytest.approx(own + through_the_kl, rel=1e-12)


def test_cell_by_hand():
    expected = [(math.exp(-z) + log1pexp(-z)) / 2 for z in (-1.0, -0.1, 0.0, 0.1, 1.0)]
    same(discovered.cell(at(*MARGINS), beta=0.05, alpha=0.5), expected)


def test_padll_by_hand_halves_the_loss_of_pairs_ranked_wrong():
    expected = [0.45 * log1pexp(1.0), 0.45 * log1pexp(0.1), 0.9 * math.log(2), 0.9 * log1pexp(-0.1)]
    expected.append(0.9 * log1pexp(-1.0))
    same(discovered.padll(at(*MARGINS), beta=0.05, decay=0.9, mismatch_penalty=0.5), expected)


def test_pfl_by_hand_asks_what_the_policy_itself_prefers():
    # The policy's own margins are -23, 1, -1, 3 and -10.
    loss = discovered.pfl(at(*MARGINS), at(-3.0, 3.0, -1.0, 1.0, -30.0), beta=0.05, focus_scale=2.0)
    same(loss, [4.0, log1pexp(0.1) / 2, 2.0, log1pexp(-0.1) / 2, 0.0])
    indifferent = discovered.pfl(at(*MARGINS), 0.0, beta=0.05, focus_scale=2.0)
    same(indifferent, [4.0, 2.2, 2.0, log1pexp(-0.1) / 2, log1pexp(-1.0) / 2])


BATCH = (-3.0, -1.0, 0.0, 2.0, 4.0)  # mean 0.4, unbiased variance 7.3


def test_dbaql_by_hand_blends_by_the_variance_of_the_batch():
    s = expit(7.3)
    expected = [s * log1pexp(-0.05 * margin / 0.9) + (1 - s) * math.exp(-0.9 * 0.05 * margin) for margin in BATCH]
    same(discovered.dbaql(at(*BATCH), beta=0.05, tau=0.05, temperature=0.9), expected)


def test_aql_by_hand_blends_around_a_moving_quantile():
    m = 0.5 + 0.01 * (expit(0.4) - 0.5)
    expected = []
    for margin in BATCH:
        q = expit(m - margin)
        expected.append(q * log1pexp(-0.05 * margin) + (1 - q) * (1 - 0.05 * margin))
    same(discovered.aql(at(*BATCH), beta=0.05, tau=0.05, quantile=0.5, quantile_rate=0.01), expected)


def test_aqfl_by_hand_blends_by_the_distance_from_an_adaptive_quantile():
    likely_wrong = (expit(3.0) + expit(1.0) + 0.5 + expit(-2.0) + expit(-4.0)) / 5
    centre = 0.95 * math.sqrt(7.3) * likely_wrong + 0.05 * expit(0.4)
    expected = []
    for margin in BATCH:
        r = expit(0.1 * abs(margin - centre))
        expected.append(r * log1pexp(-0.05 * margin) + (1 - r) * (1 - 0.05 * margin))
    same(discovered.aqfl(at(*BATCH), beta=0.05, tau=0.05, quantile_rate=0.05, distance_scale=0.1), expected)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_lrml_is_dlrml_with_one_beta_in_both_places(tau):
    margin = torch.linspace(-300, 300, 601, dtype=torch.float64)
    ours = lrml.dlrml(margin, beta_kl=0.05, beta_mix=0.05, tau=tau)
    z = 0.05 * margin
    m = torch.sigmoid(z / tau)
    torch.testing.assert_close(ours, (1 - m) * torch.log1p(torch.exp(-z)) + m * torch.exp(-z), rtol=1e-9, atol=1e-12)
    assert torch.equal(ours, lrml.discopop(margin, beta=0.05, tau=tau))


def test_cell_is_half_the_logistic_and_half_the_exponential_loss_and_its_ends_are_either():
    margin = torch.linspace(-100, 100, 201, dtype=torch.float64)
    logistic, exponential = discovered.cell(margin, beta=0.05, alpha=0.0), discovered.cell(margin, beta=0.05, alpha=1.0)
    assert torch.equal(logistic, dpo.dpo(margin, beta=0.05))
    assert torch.equal(exponential, torch.exp(-0.05 * margin))
    half = discovered.cell(margin, beta=0.05, alpha=0.5)
    torch.testing.assert_close(half, (logistic + exponential) / 2, rtol=1e-14, atol=0)


def test_dbaql_of_equal_margins_at_temperature_1_is_cell():
    margin = at(3.0, 3.0, 3.0)
    ours = discovered.dbaql(margin, beta=0.05, tau=0.05, temperature=1.0)
    torch.testing.assert_close(ours, discovered.cell(margin, beta=0.05, alpha=0.5))


def test_padll_without_a_penalty_is_dpo_scaled():
    margin = torch.linspace(-50, 50, 101, dtype=torch.float64)
    scaled = discovered.padll(margin, beta=0.1, decay=0.9, mismatch_penalty=0.0)
    assert torch.equal(scaled, 0.9 * dpo.dpo(margin, beta=0.1))


@pytest.mark.parametrize(
    ("loss", "far_left", "far_right"),
    [
        # Far on the left they are the logistic loss, |z| = 100; far on the right its tail, or nothing.
        (lambda rho: discovered.aql(rho, beta=0.05, tau=0.05, quantile=0.5, quantile_rate=0.01), 100.0, 0.0),
        (lambda rho: discovered.padll(rho, beta=0.05, decay=0.9, mismatch_penalty=0.5), 45.0, 0.0),
        (lambda rho: discovered.aqfl(rho, beta=0.05, tau=0.05, quantile_rate=0.05, distance_scale=0.1), 100.0, 0.0),
        (lambda rho: discovered.pfl(rho, 0.0, beta=0.05, focus_scale=2.0), 202.0, 0.0),
        (lambda rho: dpo.hinge(rho, beta=0.05), 101.0, 0.0),
    ],
)
def test_limits_of_single_pairs(loss, far_left, far_right):
    assert loss(at(-2000.0)).item() == pytest.approx(far_left, rel=1e-9)
    assert loss(at(2000.0)).item() == pytest.approx(far_right, abs=1e-40)


def test_kto_is_flat_where_a_pair_is_far_wrong():
    chosen, rejected = at(-1000.0, 1000.0).requires_grad_(), at(1000.0, -1000.0)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    loss = kto.kto(chosen, rejected, beta=0.1, kl_gradient=False, **weights)
    assert loss.tolist() == pytest.approx([1.0, 0.0], abs=1e-20)
    assert torch.autograd.grad(loss.sum(), chosen)[0].abs().max() < 1e-20


def test_the_published_dbaql_is_nan_on_a_wide_batch_and_ours_is_not():
    margin = torch.tensor([-2400.0, 0.0, 2400.0], requires_grad=True)
    z = 0.05 * margin.detach()
    s = torch.sigmoid((z / 0.05).var())
    published = s * -logsigmoid(z / 0.9) + (1 - s) * torch.exp(-0.9 * z)
    assert published.isnan().tolist() == [True, False, False]
    ours = discovered.dbaql(margin, beta=0.05, tau=0.05, temperature=0.9)
    ours.sum().backward()
    assert ours[0].item() == pytest.approx(120 / 0.9, rel=1e-6)
    assert margin.grad.isfinite().all()


def test_a_single_pair_and_equal_pairs_have_no_spread_and_no_gradient_of_one():
    for values in ([1.5], [1.5, 1.5]):
        x = torch.tensor(values, requires_grad=True)
        assert variance(x).item() == standard_deviation(x).item() == 0.0
        if len(values) > 1:
            assert torch.autograd.grad(standard_deviation(x), x)[0].tolist() == [0.0, 0.0]
    assert variance(torch.tensor([1.0, 3.0])).item() == 2.0


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "loss",
    [
        lambda rho: discovered.dbaql(rho, beta=0.05, tau=0.05, temperature=0.9),
        lambda rho: discovered.aqfl(rho, beta=0.05, tau=0.05, quantile_rate=0.05, distance_scale=0.1),
        lambda rho: discovered.aql(rho, beta=0.05, tau=0.05, quantile=0.5, quantile_rate=0.01),
    ],
)
def test_the_first_step_of_the_smallest_batches_has_a_finite_gradient(loss, count):
    margin = torch.zeros(count, requires_grad=True)
    loss(margin).sum().backward()
    assert margin.grad.isfinite().all()
    assert (margin.grad != 0).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda rho: discovered.dbaql(rho, beta=0.05, tau=0.05, temperature=0.9),
        lambda rho: discovered.aqfl(rho, beta=0.05, tau=0.05, quantile_rate=0.05, distance_scale=0.1),
        lambda rho: discovered.aql(rho, beta=0.05, tau=0.05, quantile=0.5, quantile_rate=0.9),
    ],
)
def test_the_gradient_goes_through_the_batch_statistics(loss):
    margin = at(-1.2, 0.3, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(loss, (margin,), atol=1e-8)
    (of_the_first,) = torch.autograd.grad(loss(margin)[0], margin)
    assert (of_the_first[1:] != 0).all()
