"""Alignment by optimal transport, as pure functions of a micro-batch of pairs.

Shape legend: B = preference pairs in the micro-batch. Log-ratios and margins are in nats, beta per nat. Every function
computes in the dtype of its log-probabilities.

In one dimension the optimal transport between two samples of one size is by rank. A batch is the micro-batch of a
worker, as in TRL: its size is a setting of these losses, which gradient accumulation and more workers leave as it is.
`alone` takes every pair as a micro-batch of its own. Each loss stays with the pair whose margin, or whose chosen
completion, was ranked; over a micro-batch the losses are those of the sorted values.

Source: arXiv 2406.05882, section 3.
"""

from torch import Tensor

from tune_dlrml.losses.dpo.function import cdpo


def aot(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    reference_margin_B: Tensor | float,
    *,
    beta: float,
    label_smoothing: float,
    alone: bool = False,
) -> Tensor:
    """Paired AOT loss of each pair, shape (B,), in nats; batch-coupled.

    (1 - e) * softplus(-beta * d) + e * softplus(beta * d), with e = label_smoothing and d the policy's margin of
    log-probabilities minus the reference's margin of the same rank in the micro-batch. A pair alone has DPO's loss.
    """
    margin_B = chosen_logps_B - rejected_logps_B
    reference_B = margin_B.new_zeros(margin_B.shape) + reference_margin_B
    if not alone:
        reference_B = of_same_rank(margin_B, reference_B)
    return cdpo(margin_B - reference_B, beta=beta, label_smoothing=label_smoothing)


def aot_unpaired(
    chosen_logratio_B: Tensor, rejected_logratio_B: Tensor, *, beta: float, label_smoothing: float, alone: bool = False
) -> Tensor:
    """Unpaired AOT loss of each chosen completion, shape (B,), in nats; batch-coupled.

    (1 - e) * softplus(-beta * d) + e * softplus(beta * d), with e = label_smoothing and d the chosen log-ratio minus
    the rejected one of the same rank in the micro-batch. A pair alone has DPO's loss.
    """
    if not alone:
        rejected_logratio_B = of_same_rank(chosen_logratio_B, rejected_logratio_B)
    return cdpo(chosen_logratio_B - rejected_logratio_B, beta=beta, label_smoothing=label_smoothing)


def of_same_rank(like_B: Tensor, values_B: Tensor) -> Tensor:
    """The values, each put where `like_B` has the entry of the same rank, shape (B,)."""
    rank_B = like_B.argsort().argsort()
    return values_B.sort().values[rank_B]
