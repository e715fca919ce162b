"""What some papers put on top of any loss: weights of tokens and of pairs, as pure functions.

Shape legend: B = preference pairs in the batch. Log-probabilities are in nats.
"""

from torch import Tensor


def length_desensitized(log_probs_B: Tensor, beyond_B: Tensor, *, ld_alpha: float) -> Tensor:
    """Log-probability of each completion with its excess length weighted, shape (B,), in nats.

    log_probs - (1 - ld_alpha) * beyond, where `beyond_B` is the part of `log_probs_B` on the tokens beyond the public
    length of the pair, the tokens of its shorter completion; ld_alpha lies in [0, 1]. The shorter completion keeps its
    log-probability, and at ld_alpha = 1 both do.

    Source: LD-DPO, arXiv 2409.06411; TRL's `ld_alpha`, which weighs policy and reference alike.
    """
    return log_probs_B - (1 - ld_alpha) * beyond_B
