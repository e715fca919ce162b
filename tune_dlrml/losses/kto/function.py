"""KTO as a pure function of the pair, per pair; reduction is left to the caller.

Shape legend: B = preference pairs in the batch. Log-ratios are in nats, beta per nat.
"""

import torch
from torch import Tensor


def kto(
    chosen_logratio_B: Tensor,
    rejected_logratio_B: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    kl_gradient: bool,
    statistic: Tensor | None = None,
) -> Tensor:
    """KTO loss of each pair, shape (B,), without unit; batch-coupled.

    Half the sum of desirable_weight * sigmoid(-beta * (chosen - kl_rejected)) and
    undesirable_weight * sigmoid(-beta * (kl_chosen - rejected)), over log-ratios; kl_chosen and kl_rejected are the
    means of the chosen and of the rejected log-ratios over the batch, at least 0: each half is held against the other
    half's KL. Where TRL gave a tensor of both halves, shape (2B,), this gives the mean of a pair's two, so that the
    batch means agree. `kl_gradient` lets the gradient through the KL estimates, as TRL's `kto_pair` and DiscoPOP do;
    without it they are constants, as in the paper. `statistic`, shape (2,), puts given estimates in their place.

    Monotone in either log-ratio, bounded, no trap; but flat on the far wrong side, where a pair has no gradient left.

    Source: arXiv 2402.01306, equation 7; in pair form arXiv 2406.08414.
    """
    if statistic is None:
        means = chosen_logratio_B.mean().clamp(min=0), rejected_logratio_B.mean().clamp(min=0)
        kl_chosen, kl_rejected = means if kl_gradient else (mean.detach() for mean in means)
    else:
        kl_chosen, kl_rejected = statistic
    desirable_B = desirable_weight * torch.sigmoid(-beta * (chosen_logratio_B - kl_rejected))
    undesirable_B = undesirable_weight * torch.sigmoid(-beta * (kl_chosen - rejected_logratio_B))
    return (desirable_B + undesirable_B) / 2
