"""Values worked out by hand of the losses without a reference, and what their papers claim of them."""

import math

import pytest
import torch

from tune_dlrml.losses.reference_free import function

LENGTHS = torch.tensor([2, 1]), torch.tensor([4, 1])
LN_2 = math.log(2)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def same(found, expected):
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_simpo_is_a_logistic_loss_of_the_log_probability_per_token():
    # -2 / 2 + 8 / 4 = 1, -3 + 3 = 0
    found = function.simpo(at(-2.0, -3.0), at(-8.0, -3.0), *LENGTHS, beta=2.0, gamma=0.5)
    same(found, [math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(0.5))])


def test_cpo_adds_the_likelihood_per_token_to_dpo_under_a_uniform_reference():
    found = function.cpo(at(-2.0, -3.0), at(-8.0, -3.0), LENGTHS[0], beta=0.5, nll_weight=2.0)
    same(found, [math.log(1 + math.exp(-3.0)) + 2.0 * 1, LN_2 + 2.0 * 3])


def test_orpo_compares_the_odds_of_the_geometric_mean_of_the_probabilities():
    # p = 1/2 and 1/4: odds 1 and 1/3, whose ratio is 3.
    found = function.orpo(at(-2 * LN_2), at(-8 * LN_2), *(length[:1] for length in LENGTHS), beta=0.1)
    same(found, [LN_2 + 0.1 * math.log(4 / 3)])


def test_orpo_is_finite_for_a_completion_that_is_certain():
    chosen, rejected = (torch.zeros(1, requires_grad=True) for _ in range(2))
    one = torch.ones(1)
    loss = function.orpo(chosen, rejected, one, one, beta=0.1)
    loss.backward()
    assert loss.isfinite() and chosen.grad.isfinite() and rejected.grad.isfinite()


def test_slic_asks_for_a_margin_in_nats_and_for_likelihood():
    found = function.slic(at(-2.0, -3.0), at(-2.5, -9.0), delta=1.0, nll_weight=0.5)
    same(found, [0.5 + 1.0, 0.0 + 1.5])


def test_alphapo_is_simpo_in_the_limit_and_weighs_unlikely_completions_more():
    pairs = at(-2.0, -3.0), at(-8.0, -5.0)
    simpo = function.simpo(*pairs, *LENGTHS, beta=2.0, gamma=0.5)
    near = function.alphapo(*pairs, *LENGTHS, alpha=1e-9, beta=2.0, gamma=0.5)
    torch.testing.assert_close(near, simpo, rtol=1e-7, atol=0)
    # 1 - 1 / p at p = 1/2 and 1/4: -1 and -3
    found = function.alphapo(at(-2 * LN_2), at(-8 * LN_2), *(n[:1] for n in LENGTHS), alpha=1.0, beta=0.5, gamma=0.25)
    same(found, [math.log(1 + math.exp(0.25 - 0.5 * 2))])


def test_simper_is_the_difference_of_the_inverse_perplexities():
    found = function.simper(at(-2 * LN_2, 0.0), at(-8 * LN_2, -LN_2), *LENGTHS)
    same(found, [0.25 - 0.5, 0.5 - 1.0])
