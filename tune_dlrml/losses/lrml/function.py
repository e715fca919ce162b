"""The log-ratio modulated losses as pure functions of the margin, per pair; reduction is left to the caller.

Shape legend: B = preference pairs in the batch. Margins are in nats, the betas per nat, tau without unit. Every
function computes in the dtype of `margin_B`; a scalar tensor `beta_mix` does not change it.

`*_published` is the product form that TRL, Liger and the DiscoPOP repository compute, operation by operation; it is
0 * inf = NaN for beta_kl * margin below -88.72 in float32. The plain names are the same functions in log space.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tune_dlrml.losses.tensors import softplus


def dlrml(margin_B: Tensor, *, beta_kl: float, beta_mix: float | Tensor, tau: float) -> Tensor:
    """Decoupled log-ratio modulated loss of each pair, shape (B,), in nats.

    (1 - m) * softplus(-z) + m * exp(-z), with z = beta_kl * margin and m = sigmoid(u), u = beta_mix * margin / tau.
    Value and gradient, also with respect to a scalar tensor `beta_mix`, are finite for every margin if
    c = beta_mix / (tau * beta_kl) >= 1; for c < 1 the true value grows like exp(|z| (1 - c)) as z falls.

    Source: arXiv 2406.08414, equation 5, with the beta inside the mixing coefficient set free.
    """
    z_B = beta_kl * margin_B
    u_B = beta_mix * margin_B / tau
    # log(m) - z. For u < 0 it is u - z - softplus(u), two large numbers so the coefficients are subtracted
    # before they are multiplied by the margin. Neither branch overflows, so both have finite gradients.
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
