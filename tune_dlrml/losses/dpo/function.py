"""DPO and its next of kin as pure functions of the pair, per pair; reduction is left to the caller.

Shape legend: B = preference pairs in the batch. Margins are in nats, beta per nat. Every function computes in the dtype
of its log-ratios.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LEAST_BETA = 1e-3
"""To which beta-DPO lowers its beta at most, per nat."""


def dpo(margin_B: Tensor, *, beta: float) -> Tensor:
    """DPO loss of each pair, shape (B,), in nats: softplus(-beta * margin).

    Source: arXiv 2305.18290, equation 7.
    """
    return -logsigmoid(beta * margin_B)


def cdpo(margin_B: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Conservative DPO loss of each pair, shape (B,), in nats.

    (1 - e) * softplus(-z) + e * softplus(z), with z = beta * margin and e = label_smoothing, in [0, 1/2). It falls to
    its minimum at z = ln((1 - e) / e) and rises beyond: bounded slope, no trap. DPO at e = 0.

    Source: E. Mitchell (2023), A note on DPO with noisy preferences and relationship to IPO.
    """
    z_B = beta * margin_B
    return -(1 - label_smoothing) * logsigmoid(z_B) - label_smoothing * logsigmoid(-z_B)


def robust(margin_B: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO loss of each pair, shape (B,), in nats.

    ((1 - e) * softplus(-z) - e * softplus(z)) / (1 - 2 * e), with z = beta * margin and e = label_smoothing, in
    [0, 1/2): its mean over labels swapped with probability e is DPO's loss under the right ones. Monotone, bounded
    slope, no trap, and without a lower bound for e > 0. DPO at e = 0.

    Source: arXiv 2403.00409, section 3.1.
    """
    z_B = beta * margin_B
    # softplus(z) = z + softplus(-z), so that what cancels is never added.
    return -logsigmoid(z_B) - label_smoothing / (1 - 2 * label_smoothing) * z_B


def exo_pair(margin_B: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """EXO loss of each pair, shape (B,), in nats.

    KL(q || p) of the policy's preference q = (sigmoid(z), sigmoid(-z)), z = beta * margin, to p = (1 - e, e) with
    e = label_smoothing, in (0, 1/2). It falls to 0 at z = ln((1 - e) / e) and rises beyond. Bounded slope, no trap; but
    flat on the far wrong side, where a pair has no gradient left.

    Source: arXiv 2402.00856, equation 16.
    """
    z_B = beta * margin_B
    chosen_B = torch.sigmoid(z_B) * (logsigmoid(z_B) - math.log1p(-label_smoothing))
    return chosen_B + torch.sigmoid(-z_B) * (logsigmoid(-z_B) - math.log(label_smoothing))


def hinge(margin_B: Tensor, *, beta: float) -> Tensor:
    """Hinge (SLiC) loss of each pair, shape (B,), in nats: relu(1 - beta * margin).

    Monotone, bounded slope, no trap; without gradient above a margin of 1 / beta.

    Source: arXiv 2305.10425, as DiscoPOP and TRL write it for log-ratios.
    """
    return torch.relu(1 - beta * margin_B)


def ipo(
    chosen_logratio_B: Tensor,
    rejected_logratio_B: Tensor,
    chosen_length_B: Tensor,
    rejected_length_B: Tensor,
    *,
    beta: float,
    length_normalized: bool,
) -> Tensor:
    """Identity preference loss of each pair, shape (B,), in squared nats: (margin - 1 / (2 * beta))^2.

    With `length_normalized` each log-ratio is divided by the tokens of its completion, at least 1, as TRL does. One
    minimum, at z = beta * margin = 1/2, and no trap; the slope is unbounded on both sides.

    Source: arXiv 2310.12036, equation 17 (its tau is beta); in the sum form the IPO of arXiv 2406.08414.
    """
    if length_normalized:
        chosen_logratio_B = per_token(chosen_logratio_B, chosen_length_B)
        rejected_logratio_B = per_token(rejected_logratio_B, rejected_length_B)
    return (chosen_logratio_B - rejected_logratio_B - 1 / (2 * beta)) ** 2


def beta_dpo(
    margin_B: Tensor, *, beta: float, alpha: float, threshold: Tensor | float = 0.0, statistic: Tensor | None = None
) -> Tensor:
    """Beta-DPO loss of each pair, shape (B,), in nats; batch-coupled, without a gradient through the batch.

    softplus(-b * margin), with b = beta * (1 + alpha * (mean margin of the micro-batch - threshold)), at least
    `LEAST_BETA`. `threshold`, in nats, is a running mean of the margins; both are log-ratios, not rewards, as in the
    authors' code. `statistic` puts a given value in place of the difference. At the first step b is beta.

    Source: arXiv 2407.08639, equation 7; github.com/junkangwu/beta-DPO. The paper's filter, which draws the pairs to
    train on by how close their margins are to the threshold, is left out.
    """
    above = margin_B.detach().mean() - threshold if statistic is None else statistic
    return -logsigmoid((beta * (1 + alpha * above)).clamp(min=LEAST_BETA) * margin_B)


def sigmoid_norm(
    chosen_logratio_B: Tensor,
    rejected_logratio_B: Tensor,
    chosen_length_B: Tensor,
    rejected_length_B: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Length-normalized DPO loss of each pair, shape (B,), in nats: softplus(-beta * margin per token).

    The margin per token is the chosen log-ratio over its tokens minus the rejected one over its own, at least 1 each.
    Its shape is DPO's.

    Source: arXiv 2411.15124, length-normalized DPO.
    """
    chosen_B = per_token(chosen_logratio_B, chosen_length_B)
    return -logsigmoid(beta * (chosen_B - per_token(rejected_logratio_B, rejected_length_B)))


def r_dpo(margin_B: Tensor, chosen_length_B: Tensor, rejected_length_B: Tensor, *, beta: float, alpha: float) -> Tensor:
    """Length-regularized DPO loss of each pair, shape (B,), in nats.

    softplus(-(beta * margin + alpha * (chosen length - rejected length))), lengths in tokens: a preference for the
    longer completion is explained by its length, and teaches the policy less. Its shape is DPO's, moved by the lengths.

    Source: arXiv 2403.19159, length-regularized DPO.
    """
    longer_B = (chosen_length_B - rejected_length_B).to(margin_B.dtype)
    return -logsigmoid(beta * margin_B + alpha * longer_B)


def dpop(chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float, penalty: float) -> Tensor:
    """DPO-positive loss of each pair, shape (B,), in nats.

    softplus(-beta * (margin - penalty * relu(-chosen log-ratio))): a chosen completion that loses likelihood counts
    against the pair. Monotone in either log-ratio, bounded slope, no trap; a kink where the chosen log-ratio is 0.

    Source: arXiv 2402.13228, DPO-positive, whose lambda is `penalty`.
    """
    margin_B = chosen_logratio_B - rejected_logratio_B - penalty * torch.relu(-chosen_logratio_B)
    return -logsigmoid(beta * margin_B)


def per_token(logratio_B: Tensor, length_B: Tensor) -> Tensor:
    """Log-ratios over the tokens of their completions, at least 1, shape (B,), in nats a token."""
    return logratio_B / length_B.clamp(min=1).to(logratio_B.dtype)
