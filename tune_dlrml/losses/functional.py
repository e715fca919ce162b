"""The losses as pure functions of the pair, per pair; reduction is left to the caller. `discovered` holds more of them.

Shape legend: B = preference pairs in the batch. Margins are in nats, the betas per nat, tau without unit. Every
function computes in the dtype of `margin_B`; a scalar tensor `beta_mix` does not change it.

`*_published` is the product form that TRL, Liger and the DiscoPOP repository compute, operation by operation; it is
0 * inf = NaN for beta_kl * margin below -88.72 in float32. The plain names are the same functions in log space.
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


def kto(
    chosen_logratio_B: Tensor,
    rejected_logratio_B: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    kl_gradient: bool,
) -> Tensor:
    """KTO loss of each pair, shape (B,), without unit; batch-coupled.

    Half the sum of desirable_weight * sigmoid(-beta * (chosen - kl_rejected)) and
    undesirable_weight * sigmoid(-beta * (kl_chosen - rejected)), over log-ratios; kl_chosen and kl_rejected are the
    means of the chosen and of the rejected log-ratios over the batch, at least 0: each half is held against the other
    half's KL. Where TRL gave a tensor of both halves, shape (2B,), this gives the mean of a pair's two, so that the
    batch means agree. `kl_gradient` lets the gradient through the KL estimates, as TRL's `kto_pair` and DiscoPOP do;
    without it they are constants, as in the paper.

    Monotone in either log-ratio, bounded, no trap; but flat on the far wrong side, where a pair has no gradient left.

    Source: arXiv 2402.01306, equation 7; in pair form arXiv 2406.08414.
    """
    kl_chosen, kl_rejected = chosen_logratio_B.mean().clamp(min=0), rejected_logratio_B.mean().clamp(min=0)
    if not kl_gradient:
        kl_chosen, kl_rejected = kl_chosen.detach(), kl_rejected.detach()
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto_at(chosen_logratio_B, rejected_logratio_B, kl_chosen, kl_rejected, beta=beta, **weights)


def kto_at(
    chosen_logratio_B: Tensor,
    rejected_logratio_B: Tensor,
    kl_chosen: Tensor | float,
    kl_rejected: Tensor | float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """`kto` at given KL estimates, each of shape () and in nats."""
    desirable_B = desirable_weight * torch.sigmoid(-beta * (chosen_logratio_B - kl_rejected))
    undesirable_B = undesirable_weight * torch.sigmoid(-beta * (kl_chosen - rejected_logratio_B))
    return (desirable_B + undesirable_B) / 2


def dlrml(margin_B: Tensor, *, beta_kl: float, beta_mix: float | Tensor, tau: float) -> Tensor:
    """Decoupled log-ratio modulated loss of each pair, shape (B,), in nats.

    (1 - m) * softplus(-z) + m * exp(-z), with z = beta_kl * margin and m = sigmoid(u), u = beta_mix * margin / tau.
    Value and gradient, also with respect to a scalar tensor `beta_mix`, are finite for every margin if
    c = beta_mix / (tau * beta_kl) >= 1; for c < 1 the true value grows like exp(|z| (1 - c)) as z falls.

    Source: arXiv 2406.08414, equation 5, with the beta inside the mixing coefficient set free.
    """
    z_B = beta_kl * margin_B
    u_B = beta_mix * margin_B / tau
    # log(m) - z. For u < 0 it is u - z - softplus(u), two large numbers whose difference is taken between the
    # coefficients, before they are multiplied by the margin. Neither branch overflows, so both have finite gradients.
    log_mixed_exp_B = torch.where(
        u_B < 0,
        margin_B * (beta_mix / tau - beta_kl) - softplus(u_B),
        -z_B - softplus(-u_B),
    )
    return torch.sigmoid(-u_B) * softplus(-z_B) + torch.exp(log_mixed_exp_B)


def dlrml_published(margin_B: Tensor, *, beta_kl: float, beta_mix: float | Tensor, tau: float) -> Tensor:
    """`dlrml` in the product form, shape (B,), in nats: NaN or inf where exp(-z) overflows.

    Source: the discopop branch of `DPOTrainer` in TRL 1.16, with beta_mix in place of beta inside the sigmoid.
    """
    logits_B = margin_B * beta_kl
    modulation_B = torch.sigmoid(margin_B * beta_mix / tau)
    return -logsigmoid(logits_B) * (1 - modulation_B) + torch.exp(-logits_B) * modulation_B


def discopop(margin_B: Tensor, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP (log-ratio modulated) loss of each pair, shape (B,), in nats: `dlrml` at beta_kl = beta_mix = beta.

    Source: arXiv 2406.08414, equation 5; the paper uses tau = 0.05.
    """
    return dlrml(margin_B, beta_kl=beta, beta_mix=beta, tau=tau)


def discopop_published(margin_B: Tensor, *, beta: float, tau: float) -> Tensor:
    """`discopop` in the product form, shape (B,), in nats: bit for bit the discopop loss of TRL 1.16."""
    return dlrml_published(margin_B, beta_kl=beta, beta_mix=beta, tau=tau)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), elementwise."""
    # torch's softplus is the identity above 20, wrong in the tenth digit and in its gradient; logsigmoid is exact.
    return -logsigmoid(-x)
