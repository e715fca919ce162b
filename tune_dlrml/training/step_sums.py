"""What an optimizer step did, as sums that add up over micro-batches and ranks.

Shape legend: B = preference pairs in the batch.
"""

import math

import torch
from torch import Tensor

from tune_dlrml.training.divergence import StepStats


def pair_sums(
    loss_B: Tensor, margin_B: Tensor, chosen_B: Tensor, rejected_B: Tensor, sft_B: Tensor, *, tokens: Tensor
) -> Tensor:
    """Sums over the finite pairs of one micro-batch, shape (10,), float64, in the order that `step_stats` reads.

    `sft_B` is the term beside the loss, or a single 0 without one; where it is not finite, the loss is not either.
    """
    loss_ok, margin_ok = loss_B.isfinite() & sft_B.isfinite(), margin_B.isfinite()

    def total(values: Tensor, keep: Tensor) -> Tensor:
        return values.double().where(keep, torch.zeros((), dtype=torch.float64, device=values.device)).sum()

    correct = (margin_B > 0).double() + 0.5 * (margin_B == 0).double()
    return torch.stack(
        [
            torch.tensor(len(loss_B), dtype=torch.float64, device=loss_B.device),
            loss_ok.sum().double(),
            total(loss_B, loss_ok),
            total(correct, margin_ok),
            margin_ok.sum().double(),
            total(margin_B, margin_ok),
            total(chosen_B, margin_ok),
            total(rejected_B, margin_ok),
            total(sft_B.expand(len(loss_B)), loss_ok),
            tokens.double(),
        ]
    )


def step_stats(sums: Tensor, *, step: int, grad_norm: float, learning_rate: float) -> StepStats:
    """The means of a step.

    Args:
        sums: `pair_sums` over all micro-batches and ranks, then the non-finite entries of the gradient and all of them.
        step: Its number, from 1.
        grad_norm: L2 norm of the gradient before clipping.
        learning_rate: The one it used.
    """
    pairs, loss_ok, loss, correct, margin_ok, margin, chosen, rejected, sft, tokens, bad, entries = sums.tolist()
    return StepStats(
        step=step,
        pairs=int(pairs),
        loss=loss / loss_ok if loss_ok else None,
        accuracy=correct / margin_ok if margin_ok else None,
        margin=margin / margin_ok if margin_ok else None,
        chosen_logps=chosen / margin_ok if margin_ok else None,
        rejected_logps=rejected / margin_ok if margin_ok else None,
        grad_norm=grad_norm if math.isfinite(grad_norm) else None,
        nonfinite_loss=1 - loss_ok / pairs,
        nonfinite_grad=bad / entries,
        sft_loss=sft / loss_ok if loss_ok else None,
        learning_rate=learning_rate,
        tokens=int(tokens),
    )
