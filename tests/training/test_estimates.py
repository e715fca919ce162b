"""Estimates over the held-out pairs: values by hand and by scipy, errors by derivatives and by drawing pairs anew."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from tune_dlrml.training.estimates import (
    Estimate,
    auc,
    length_controlled_accuracy,
    mean,
    right,
    separation,
    with_errors,
)

ESTIMATES: dict[str, Callable[[Tensor, Tensor, Tensor], Estimate]] = {
    "accuracy": lambda chosen_N, rejected_N, longer_N: mean(right(chosen_N - rejected_N)),
    "accuracy_lc": lambda chosen_N, rejected_N, longer_N: length_controlled_accuracy(chosen_N - rejected_N, longer_N),
    "auc": lambda chosen_N, rejected_N, longer_N: auc(chosen_N, rejected_N),
    "separation": lambda chosen_N, rejected_N, longer_N: separation(chosen_N - rejected_N),
}
every_estimate = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def correlated(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios whose completions share their prompt's part and rise with the length; lengths differ by -2 to 5."""
    draws = torch.Generator().manual_seed(seed)
    of_prompt_N, chosen_N, rejected_N = torch.randn(3, count, generator=draws, dtype=torch.float64)
    longer_N = torch.randint(-2, 6, (count,), generator=draws).double()
    return of_prompt_N + chosen_N.abs() + 0.2 * longer_N, of_prompt_N + rejected_N, longer_N


def test_separation_is_the_mean_over_the_standard_deviation() -> None:
    # Mean 3; deviations -2, -1, 0, 3 with mean square 3.5.
    assert separation(numbers(1, 2, 3, 6)).value == pytest.approx(3 / math.sqrt(3.5))
    assert separation(numbers(-1, -2, -3, -6)).value == pytest.approx(-3 / math.sqrt(3.5))


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 40.0])
def test_separation_does_not_know_the_scale_of_the_margins(factor: float) -> None:
    margin_N = numbers(1, 2, -3, 6, 0)
    assert separation(factor * margin_N) == pytest.approx(separation(margin_N))


def test_the_error_of_separation_is_that_of_a_sharpe_ratio() -> None:
    draws = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = separation(3 + 2 * draws)  # of normal margins (1 + r^2 / 2) / N, r = 1.5
    assert found.error * math.sqrt(400_000) == pytest.approx(math.sqrt(1 + 1.5**2 / 2), rel=0.01)


def test_the_error_of_separation_is_the_derivative_by_the_weights_of_the_pairs() -> None:
    margin_N = numbers(1, 2, 3, 6, -4, 11)
    weight_N = torch.full_like(margin_N, 1 / 6).requires_grad_()
    share_N = weight_N / weight_N.sum()
    mu = (share_N * margin_N).sum()
    (mu / ((share_N * margin_N**2).sum() - mu**2).sqrt()).backward()
    assert separation(margin_N).error == pytest.approx(float(weight_N.grad.norm()) / 6)


def test_auc_is_the_share_of_chosen_and_rejected_completions_that_are_in_order() -> None:
    # 1 exceeds 0; 2 exceeds 0 and ties with 2; 3 exceeds 0 and 2: 4.5 of 9. Of the rejected ones 0 is below all three,
    # 2 below one and tied with one, 4 below none. The sums of a pair are 1/3 + 1, 1/2 + 1/2 and 2/3 + 0.
    found = auc(numbers(1, 2, 3), numbers(0, 2, 4))
    assert found.value == pytest.approx(0.5)
    assert found.error == pytest.approx(math.sqrt((1 / 9 + 0 + 1 / 9) / 3 / 3))


def test_auc_is_the_mann_whitney_statistic() -> None:
    chosen_N, rejected_N, _ = correlated(60, seed=1)
    chosen_N, rejected_N = chosen_N.round(), rejected_N.round()
    assert len({*chosen_N.tolist(), *rejected_N.tolist()}) < 20, "many ties"
    statistic = stats.mannwhitneyu(chosen_N.numpy(), rejected_N.numpy()).statistic
    assert auc(chosen_N, rejected_N).value == pytest.approx(statistic / 60**2)


@pytest.mark.parametrize(("longer", "shorter"), [(6, 2), (1, 7), (4, 4)])
@pytest.mark.parametrize("equal", [0, 3])
def test_a_preference_for_longer_completions_alone_has_one_half(longer: int, shorter: int, equal: int) -> None:
    longer_N = numbers(*[2.0] * longer, *[-5.0] * shorter, *[0.0] * equal)
    assert length_controlled_accuracy(longer_N, longer_N).value == pytest.approx(0.5)
    assert length_controlled_accuracy(-longer_N, longer_N).value == pytest.approx(0.5)


def test_both_strata_of_length_count_alike() -> None:
    # Right: 3 of 4 longer ones, 1 of 2 shorter ones, 1 of 2 of equal length. Weights 3/8, 3/8 and 2/8.
    margin_N, longer_N = numbers(1, 1, 1, -1, 1, -1, 1, -1), numbers(9, 1, 2, 3, -1, -4, 0, 0)
    found = length_controlled_accuracy(margin_N, longer_N)
    assert found.value == pytest.approx(3 / 8 * 3 / 4 + 3 / 8 * 1 / 2 + 2 / 8 * 1 / 2)
    variances = (3 / 8) ** 2 * (3 / 16) / 4, (3 / 8) ** 2 * (1 / 4) / 2, (2 / 8) ** 2 * (1 / 4) / 2
    assert found.error == pytest.approx(math.sqrt(sum(variances)))


def test_a_stratum_without_pairs_counts_one_half() -> None:
    # 3 of 4 longer ones are right, none is shorter.
    found = length_controlled_accuracy(numbers(1, 1, 1, -1), numbers(1, 2, 3, 4))
    assert found.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found.error == pytest.approx(math.sqrt(3 / 16 / 4) / 2)


def test_where_all_lengths_are_equal_the_controlled_accuracy_is_the_accuracy() -> None:
    margin_N = numbers(1, -1, 3, 2, 0)
    assert length_controlled_accuracy(margin_N, torch.zeros(5)) == pytest.approx(mean(right(margin_N)))


@every_estimate
def test_the_error_is_the_spread_over_pairs_drawn_anew(estimate: Callable[[Tensor, Tensor, Tensor], Estimate]) -> None:
    found = [estimate(*correlated(200, seed)) for seed in range(600)]
    spread = torch.tensor([each.value for each in found]).std()
    # The spread of 600 values has a relative error of 3 %.
    assert sum(each.error for each in found) / 600 == pytest.approx(float(spread), rel=0.1)


@every_estimate
@pytest.mark.parametrize("value", [0.0, 0.1, -700.0])
@pytest.mark.parametrize("count", [1, 3])
def test_pairs_without_spread_have_finite_estimates_without_error(
    estimate: Callable[[Tensor, Tensor, Tensor], Estimate], value: float, count: int
) -> None:
    same_N = torch.full((count,), value, dtype=torch.float64)
    found = estimate(same_N, torch.zeros_like(same_N), torch.ones_like(same_N))
    assert math.isfinite(found.value) and found.error == pytest.approx(0)
    if value == 0:
        assert found.value == (0 if estimate is ESTIMATES["separation"] else 0.5)


def test_an_error_is_reported_beside_its_number() -> None:
    assert with_errors({"eval_auc": Estimate(0.7, 0.1)}) == {"eval_auc": 0.7, "eval_auc_se": 0.1}
