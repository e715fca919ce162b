"""Held-out numbers as estimates over the pairs, each with the standard error of drawing the pairs.

A pair is what is drawn: its completions share a prompt, so an error is that of N values, one a pair. All are finite.

Shape legend: N = held-out pairs.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A number and its standard error over the held-out pairs."""

    value: float
    error: float


def with_errors(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Every estimate under its name, and its standard error under `<name>_se`."""
    return {
        name + end: number for name, both in estimates.items() for end, number in zip(("", "_se"), both, strict=True)
    }


def right(margin_N: Tensor) -> Tensor:
    """1 where the margin is above 0, one half where it is 0, else 0; shape (N,), float64."""
    return (margin_N > 0).double() + 0.5 * (margin_N == 0).double()


def mean(values_N: Tensor) -> Estimate:
    """The mean of one value a pair, and s / sqrt(N) with the spread s of the values."""
    return Estimate(float(values_N.mean()), _error(values_N))


def separation(margin_N: Tensor) -> Estimate:
    """Mean margin over the standard deviation of the margins, mu / s: no unit; 0 where all margins are equal.

    A factor on all margins, which a larger beta or learning rate is to first order, leaves it as it is. Its error is
    that of the delta method: a pair at z = (margin - mu) / s moves the ratio by z - (mu / s) (z^2 - 1) / 2, so that
    N error^2 is 1 + (mu / s)^2 / 2 for normal margins. Source: Lo, The Statistics of Sharpe Ratios (2002), equation 9;
    for margins that are not normal, Mertens (2002).
    """
    if margin_N.max() == margin_N.min():
        return Estimate(0.0, 0.0)
    mu, spread = margin_N.mean(), margin_N.std(correction=0)
    z_N = (margin_N - mu) / spread
    ratio = mu / spread
    return Estimate(float(ratio), _error(z_N - ratio * (z_N**2 - 1) / 2))


def auc(chosen_N: Tensor, rejected_N: Tensor) -> Estimate:
    """Probability that a chosen completion has a larger value than a rejected one of any pair; a tie is one half.

    This is the Mann-Whitney statistic U / N^2. Its error is made of DeLong's components, each completion's share of the
    other side that it is right about. Both of a pair are added before their spread is taken, since a pair is drawn as
    one. Source: DeLong, DeLong and Clarke-Pearson (1988), equation 5; for such clusters, Obuchowski (1997).
    """
    of_chosen_N = _share_below(chosen_N, rejected_N)
    of_rejected_N = 1 - _share_below(rejected_N, chosen_N)
    return Estimate(float(of_chosen_N.mean()), _error(of_chosen_N + of_rejected_N))


def length_controlled_accuracy(margin_N: Tensor, longer_N: Tensor) -> Estimate:
    """Share of margins above 0 if the chosen completion were the longer one in half of the pairs of unequal length.

    The accuracies of pairs with a longer and with a shorter chosen completion are averaged, each counting half; pairs
    of equal length keep their share. A policy that merely prefers longer completions thus has one half, however often
    those are the chosen ones. Where one of both strata has no pair, its accuracy is not known and counts one half. The
    error is that of a stratified mean, with the strata as they are.

    Args:
        margin_N: Of each pair.
        longer_N: Tokens that its chosen completion is longer than the rejected one; negative where it is shorter.
    """
    unequal = float((longer_N != 0).double().mean())
    strata = ((longer_N > 0, unequal / 2), (longer_N < 0, unequal / 2), (longer_N == 0, 1 - unequal))
    found = [(weight, mean(right(margin_N[own_N])) if own_N.any() else Estimate(0.5, 0.0)) for own_N, weight in strata]
    return Estimate(
        math.fsum(weight * each.value for weight, each in found),
        math.hypot(*(weight * each.error for weight, each in found)),
    )


def _share_below(values_N: Tensor, others_N: Tensor) -> Tensor:
    """Share of the others that each value exceeds, ties counting one half, shape (N,), float64."""
    ordered_N = others_N.sort().values
    below_N, up_to_N = (torch.searchsorted(ordered_N, values_N, right=ties) for ties in (False, True))
    return (below_N + up_to_N).double() / (2 * len(others_N))


def _error(values_N: Tensor) -> float:
    """Standard error of the mean of one value a pair."""
    return float(values_N.std(correction=0)) / math.sqrt(len(values_N))
