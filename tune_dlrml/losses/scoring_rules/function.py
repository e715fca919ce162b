"""Strictly proper scoring rules of the next token, as losses per token: minus the score.

Shape legend: T = tokens, t = tokens of a chunk, V = vocabulary, D = width of the hidden states, A = answers.

A rule gives every token of the vocabulary the score that it would earn as the label, from log-probabilities: `logp_tV`
in, (t, V) out. `from_hidden` applies a rule to a chunk of tokens at a time and computes each chunk again in the
backward pass. Beside inputs and their gradients no tensor is larger than chunk x V, at most eight of that size are
alive at once, and the logits of all tokens never exist.

Everything is computed from log-softmax, in float32 at least. Probabilities that underflow give a finite value and a
finite gradient; a rule other than the logarithmic one gives a label far below the others no gradient, as it is defined,
which is what its masked logarithmic score is for.

Source: arXiv 2405.18906 (Language Generation with Strictly Proper Scoring Rules); the two families are Tsallis' and
Good's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from tune_dlrml.domains import Choice, Range
from tune_dlrml.losses.scoring_rules.config import ScoringRule

CHUNK = 128
"""Tokens whose distribution over the vocabulary is held at once: 25 MB in float32 at a vocabulary of 49,152."""

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states (T, D), the head's weight (V, D) and labels (T,) to the loss of each token (T,)."""


def logarithmic(logp_tV: Tensor) -> Tensor:
    """Logarithmic score of every possible label, shape (t, V), in nats: log p_i. Minus it is cross-entropy."""
    return logp_tV


def alpha_power(logp_tV: Tensor, *, alpha: float) -> Tensor:
    """Alpha-power (Tsallis) score of every possible label, shape (t, V), no unit; alpha > 1.

    alpha * p_i^(alpha - 1) - (alpha - 1) * sum_j p_j^alpha. It is Brier's at alpha = 2.
    """
    power_t1 = torch.exp(alpha * logp_tV).sum(dim=-1, keepdim=True)
    return alpha * torch.exp((alpha - 1) * logp_tV) - (alpha - 1) * power_t1


def pseudo_spherical(logp_tV: Tensor, *, alpha: float) -> Tensor:
    """Pseudo-spherical score of every possible label, shape (t, V), within [0, 1]; alpha > 1.

    (p_i / |p|)^(alpha - 1), with |p| the alpha-norm of p, whose logarithm is a log-sum-exp and never underflows. It is
    the spherical score at alpha = 2.
    """
    log_norm_t1 = torch.logsumexp(alpha * logp_tV, dim=-1, keepdim=True) / alpha
    return torch.exp((alpha - 1) * (logp_tV - log_norm_t1))


def brier(logp_tV: Tensor) -> Tensor:
    """Brier score of every possible label, shape (t, V), within [-1, 1]: 2 * p_i - sum_j p_j^2."""
    return alpha_power(logp_tV, alpha=2)


def spherical(logp_tV: Tensor) -> Tensor:
    """Spherical score of every possible label, shape (t, V), within [0, 1]: p_i / |p|."""
    return pseudo_spherical(logp_tV, alpha=2)


def smoothed(score_tV: Tensor, labels_t: Tensor, smoothing: float) -> Tensor:
    """Score of each label, shape (t,), with the share `smoothing` of it replaced by the mean over the vocabulary."""
    score_t = score_tV.gather(-1, labels_t.unsqueeze(-1)).squeeze(-1)
    return score_t if smoothing == 0 else (1 - smoothing) * score_t + smoothing * score_tV.mean(dim=-1)


def masked_logarithmic(logp_tV: Tensor, smoothing: float) -> Tensor:
    """Masked logarithmic score of each position, shape (t,), in nats.

    sum_i of f * log p_i over the tokens with p_i < f, where f = smoothing / V is what the smoothed target gives to a
    token that is not the label: it pulls up what the other rules, flat near 0, leave behind. 0 without smoothing.
    """
    if smoothing == 0:
        return logp_tV.new_zeros(logp_tV.shape[:-1])
    floor = smoothing / logp_tV.shape[-1]
    below_tV = torch.where(logp_tV < math.log(floor), logp_tV, torch.zeros_like(logp_tV))
    return floor * below_tV.sum(dim=-1)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"logarithmic": logarithmic, "brier": brier, "spherical": spherical}
WITH_ALPHA: dict[str, Callable[..., Tensor]] = {"alpha_power": alpha_power, "pseudo_spherical": pseudo_spherical}


@dataclass(frozen=True)
class TokenRule:
    """A scoring rule with its numbers: called with logits (t, V) and labels (t,) it gives minus the score, (t,).

    Attributes:
        name: Key of `PLAIN` or `WITH_ALPHA`.
        alpha: Of the rules in `WITH_ALPHA`, above 1; None for the others.
        smoothing: Share of the target that goes to the whole vocabulary, in [0, 1).
        masked: Adds the masked logarithmic score where there is smoothing; the logarithmic rule needs none.
    """

    name: str
    alpha: float | None = None
    smoothing: float = 0.0
    masked: bool = True

    def __call__(self, logits_tV: Tensor, labels_t: Tensor) -> Tensor:
        """Loss of each token, shape (t,), in float32 or, for float64 logits, in float64."""
        wide = torch.promote_types(logits_tV.dtype, torch.float32)
        logp_tV = torch.log_softmax(logits_tV, dim=-1, dtype=wide)
        score_t = smoothed(self._scores(logp_tV), labels_t, self.smoothing)
        if self.masked and self.smoothing > 0 and self.name != "logarithmic":
            score_t = score_t + masked_logarithmic(logp_tV, self.smoothing)
        return -score_t

    def _scores(self, logp_tV: Tensor) -> Tensor:
        if self.name in WITH_ALPHA:
            return WITH_ALPHA[self.name](logp_tV, alpha=self.alpha)
        return PLAIN[self.name](logp_tV)


def from_hidden(rule: TokenRule, hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Loss of each token, shape (T,), from hidden states (T, D), the head's weight (V, D) and labels (T,).

    The logits are made a chunk at a time, here and again in the backward pass.
    """

    def of_chunk(hidden_tD: Tensor, labels_t: Tensor) -> Tensor:
        return rule(linear(hidden_tD, head_VD), labels_t)

    # split, not slices: the gradient of each slice would be a tensor as large as the whole input.
    parts = zip(hidden_TD.split(chunk), labels_T.split(chunk), strict=True)
    return torch.cat(
        [
            checkpoint(of_chunk, hidden_tD, labels_t, use_reentrant=False, preserve_rng_state=False)
            for hidden_tD, labels_t in parts
        ]
    )


def rule_of(config: ScoringRule) -> TokenRule:
    """The rule that `config`, an SFT term or a warm-up, describes; every searched field of it is a number by now.

    Raises:
        ValueError: A field still holds a domain.
    """
    for name, value in (("alpha", config.alpha), ("smoothing", config.smoothing)):
        if isinstance(value, (Range, Choice)):
            raise ValueError(
                f"A scoring rule is built from one value per field, but got {name}={value!r}. "
                "Draw a point of the search space first."
            )
    return TokenRule(config.rule, config.alpha, config.smoothing, config.masked_logarithmic)  # type: ignore[arg-type]


def build_rule(config: ScoringRule, *, chunk: int = CHUNK) -> TokenLoss:
    """The token loss that `config` describes: hidden states (T, D), head (V, D), labels (T,) -> losses (T,).

    An SFT term's `weight` is left to the caller.

    Raises:
        ValueError: A field still holds a domain.
    """
    rule = rule_of(config)

    def token_loss(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor) -> Tensor:
        return from_hidden(rule, hidden_TD, head_VD, labels_T, chunk=chunk)

    return token_loss


def answer_means(loss_T: Tensor, length_A: Tensor) -> Tensor:
    """Mean loss over the tokens of each answer, shape (A,), of answers that follow each other in `loss_T`.

    `length_A` holds their tokens, at least one each, and sums to T.
    """
    answer_T = torch.repeat_interleave(torch.arange(len(length_A), device=loss_T.device), length_A)
    return loss_T.new_zeros(len(length_A)).index_add(0, answer_T, loss_T) / length_A
