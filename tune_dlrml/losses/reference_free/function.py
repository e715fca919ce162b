"""Losses without a reference as pure functions of the pair, per pair; reduction is left to the caller.

Shape legend: B = preference pairs in the batch. Log-probabilities are those of the policy, in nats, summed over a
completion, lengths its tokens, at least 1. Every function computes in the dtype of its log-probabilities; below, c and
r are the log-probabilities per token of the chosen and of the rejected completion. A mean over tokens is one over those
of a completion, never of a batch, so that neither accumulation nor more workers change a loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tune_dlrml.losses.dpo.function import per_token


def simpo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_length_B: Tensor,
    rejected_length_B: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """SimPO loss of each pair, shape (B,), in nats: softplus(gamma - beta * (c - r)).

    Monotone in either completion, with a bounded slope.

    Source: arXiv 2405.14734, equation 6.
    """
    chosen_B = per_token(chosen_logps_B, chosen_length_B)
    return -logsigmoid(beta * (chosen_B - per_token(rejected_logps_B, rejected_length_B)) - gamma)


def cpo(
    chosen_logps_B: Tensor, rejected_logps_B: Tensor, chosen_length_B: Tensor, *, beta: float, nll_weight: float
) -> Tensor:
    """CPO loss of each pair, shape (B,), in nats.

    softplus(-beta * (a - b)) - nll_weight * c, with a and b the log-probabilities of the chosen and the rejected
    completion. Monotone in either completion, with a bounded slope. The likelihood is per token; TRL takes its mean
    over all tokens of the micro-batch, which is the same where the chosen completions have one length.

    Source: arXiv 2401.08417, section 3.
    """
    preferred_B = -logsigmoid(beta * (chosen_logps_B - rejected_logps_B))
    return preferred_B - nll_weight * per_token(chosen_logps_B, chosen_length_B)


def orpo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_length_B: Tensor,
    rejected_length_B: Tensor,
    *,
    beta: float,
) -> Tensor:
    """ORPO loss of each pair, shape (B,), in nats: -c + beta * softplus(-(log odds(c) - log odds(r))).

    log odds(x) = x - log(1 - exp(x)); x is kept below 0 by the precision of its dtype. Monotone in either completion.
    The likelihood is that of the completion, per token; TRL's is a mean over the tokens of prompts and completions of
    the micro-batch.

    Source: arXiv 2403.07691, equations 6 and 7.
    """
    chosen_B, rejected_B = per_token(chosen_logps_B, chosen_length_B), per_token(rejected_logps_B, rejected_length_B)
    return -chosen_B - beta * logsigmoid(log_odds(chosen_B) - log_odds(rejected_B))


def log_odds(logp_B: Tensor) -> Tensor:
    """Log odds of events of these log-probabilities, shape (B,), in nats; finite at a probability of 1."""
    logp_B = logp_B.clamp(max=-torch.finfo(logp_B.dtype).eps)
    return logp_B - torch.log(-torch.expm1(logp_B))


def slic(chosen_logps_B: Tensor, rejected_logps_B: Tensor, *, delta: float, nll_weight: float) -> Tensor:
    """SLiC loss of each pair, shape (B,), in nats.

    relu(delta - a + b) - nll_weight * a, with a and b the log-probabilities of the chosen and the rejected completion;
    the chosen one stands for the paper's target of fine-tuning. Monotone in either completion, with a bounded slope.

    Source: arXiv 2305.10425, section 2, whose lambda is `nll_weight`.
    """
    return torch.relu(delta - chosen_logps_B + rejected_logps_B) - nll_weight * chosen_logps_B


def alphapo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_length_B: Tensor,
    rejected_length_B: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """AlphaPO loss of each pair, shape (B,), in nats: softplus(gamma - beta * (reward(c) - reward(r))).

    reward(x) = (1 - exp(-alpha * x)) / alpha, and x for alpha = 0, which is SimPO. Monotone in either completion. For
    alpha > 0 the reward falls exponentially as a completion becomes unlikely: in float32 it overflows where
    alpha * nats per token exceed 88.

    Source: arXiv 2501.03884, section 3.
    """
    chosen_B, rejected_B = (
        shaped_reward(per_token(logps_B, length_B), alpha)
        for logps_B, length_B in ((chosen_logps_B, chosen_length_B), (rejected_logps_B, rejected_length_B))
    )
    return -logsigmoid(beta * (chosen_B - rejected_B) - gamma)


def shaped_reward(logp_B: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward of log-probabilities per token, shape (B,), without its strength."""
    return logp_B if alpha == 0 else -torch.expm1(-alpha * logp_B) / alpha


def simper(
    chosen_logps_B: Tensor, rejected_logps_B: Tensor, chosen_length_B: Tensor, rejected_length_B: Tensor
) -> Tensor:
    """SimPER loss of each pair, shape (B,), without unit: exp(r) - exp(c), within [-1, 1].

    The inverse perplexity of the rejected completion minus that of the chosen one. Monotone in either completion, with
    a bounded slope; an unlikely completion has nearly no gradient.

    Source: arXiv 2502.00883, section 3.
    """
    return per_token(rejected_logps_B, rejected_length_B).exp() - per_token(chosen_logps_B, chosen_length_B).exp()
