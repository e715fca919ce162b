"""DPO, the hinge and IPO as pure functions of the pair, per pair; reduction is left to the caller.

Shape legend: B = preference pairs in the batch. Margins are in nats, beta per nat. Every function computes in the dtype
of its log-ratios.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(margin_B: Tensor, *, beta: float) -> Tensor:
    """DPO loss of each pair, shape (B,), in nats: softplus(-beta * margin).

    Source: arXiv 2305.18290, equation 7.
    """
    return -logsigmoid(beta * margin_B)


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
        chosen_logratio_B = chosen_logratio_B / chosen_length_B.clamp(min=1).to(chosen_logratio_B.dtype)
        rejected_logratio_B = rejected_logratio_B / rejected_length_B.clamp(min=1).to(rejected_logratio_B.dtype)
    return (chosen_logratio_B - rejected_logratio_B - 1 / (2 * beta)) ** 2
