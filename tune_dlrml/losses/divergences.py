"""Scores of a completion by its log-ratio to the reference, under divergences other than the reverse KL.

Shape legend: B = preference pairs in the batch. Log-ratios are in nats.

DPO's reward of a completion is beta * f'(u) of the ratio u = policy / reference, for the f of the divergence that holds
the policy near its reference, up to a number that the two completions of a prompt share. Of the reverse KL that is the
log-ratio itself. Every function rises with the log-ratio and is 0 with slope 1 (of JS 1/2) at 0.

Source: arXiv 2309.16240, table 1; TRL's `f_alpha_divergence_coef` is 1 - alpha.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def forward_kl(logratio_B: Tensor) -> Tensor:
    """Scores under the forward KL, shape (B,): 1 - exp(-log-ratio), infinite below -88.72 in float32."""
    return 1 - torch.exp(-logratio_B)


def js(logratio_B: Tensor) -> Tensor:
    """Scores under the Jensen-Shannon divergence, shape (B,): ln(2u / (1 + u)) = ln 2 + logsigmoid(log-ratio)."""
    return math.log(2) + logsigmoid(logratio_B)


def alpha_divergence(logratio_B: Tensor, *, alpha: float) -> Tensor:
    """Scores under the alpha-divergence, shape (B,): (1 - exp(-alpha * log-ratio)) / alpha, 0 < alpha < 1.

    It goes from the reverse KL, at alpha near 0, to the forward KL, at 1.
    """
    return -torch.expm1(-alpha * logratio_B) / alpha
