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


def wpo_weight(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Weight of each pair, shape (B,), without a gradient: exp(chosen + rejected).

    The arguments are means over the tokens of a completion of log p(token) - log(sum over the vocabulary of p^2), under
    the policy: the likelihood of a token, measured by what the policy would have on average for a token of its own. A
    weight lies above 1 where both completions are likelier than the policy's own samples.

    Source: WPO, arXiv 2406.11827, equation 2, as TRL 1.16 computes it with `use_weighting`; the authors' code has an
    upper bound of 1, which TRL has no longer.
    """
    return (chosen_B + rejected_B).detach().exp()
