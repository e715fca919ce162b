"""Losses that look at each completion by itself, as pure functions of the pair, per pair.

Shape legend: B = preference pairs in the batch. Log-ratios are in nats, beta per nat. Every function computes in the
dtype of its log-ratios; below, a and b are the chosen and the rejected log-ratio.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def nca_pair(chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float) -> Tensor:
    """Noise contrastive alignment loss of each pair, shape (B,), in nats.

    softplus(-beta * a) + softplus(beta * a) / 2 + softplus(beta * b) / 2: the rejected log-ratio falls without end, the
    chosen one is drawn to beta * a = ln 2. Bounded slope, no trap.

    Source: arXiv 2402.05369, section 4.1, whose alpha is beta.
    """
    chosen_B, rejected_B = beta * chosen_logratio_B, beta * rejected_logratio_B
    return -logsigmoid(chosen_B) - 0.5 * logsigmoid(-chosen_B) - 0.5 * logsigmoid(-rejected_B)


def bco_pair(
    chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float, shift: Tensor | float = 0.0
) -> Tensor:
    """Binary classifier loss of each pair, shape (B,), in nats.

    softplus(-beta * (a - shift)) + softplus(beta * (b - shift)). `shift`, in nats, is the mean of all log-ratios,
    chosen and rejected, that were trained on so far; TRL 1.16 has none. Monotone in either log-ratio, bounded slope, no
    trap.

    Source: arXiv 2404.04656, section 4, whose delta is beta * shift.
    """
    return -logsigmoid(beta * (chosen_logratio_B - shift)) - logsigmoid(-beta * (rejected_logratio_B - shift))


def sppo_hard(chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float) -> Tensor:
    """Self-play preference loss of each pair, shape (B,), in squared nats.

    (a - 1 / (2 * beta))^2 + (b + 1 / (2 * beta))^2: a parabola in either log-ratio, with its minimum at
    z = beta * margin = 1 and no trap; the slope is unbounded on both sides.

    Source: arXiv 2405.00675, equation 4.7 with a probability of 1 for the chosen completion; its eta is 1 / beta.
    """
    return (chosen_logratio_B - 0.5 / beta) ** 2 + (rejected_logratio_B + 0.5 / beta) ** 2


def apo_zero(chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float) -> Tensor:
    """APO-zero loss of each pair, shape (B,), without unit: sigmoid(-beta * a) + sigmoid(beta * b).

    Raises the chosen likelihood and lowers the rejected one. Monotone in either log-ratio, bounded, no trap; but flat
    on the far wrong side, where a pair has no gradient left.

    Source: arXiv 2408.06266, equation 7.
    """
    return torch.sigmoid(-beta * chosen_logratio_B) + torch.sigmoid(beta * rejected_logratio_B)


def apo_down(chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float) -> Tensor:
    """APO-down loss of each pair, shape (B,), without unit: sigmoid(beta * a) + sigmoid(-beta * (a - b)).

    Lowers the chosen likelihood and the rejected one more. For a margin split evenly it falls between z = -2.12 and
    z = 2.12 and rises outside: below, a pair is pushed further down without end, though ever more gently. Bounded.

    Source: arXiv 2408.06266, equation 8.
    """
    margin_B = chosen_logratio_B - rejected_logratio_B
    return torch.sigmoid(beta * chosen_logratio_B) + torch.sigmoid(-beta * margin_B)
