"""What makes log-probs of hidden states: TRL's fused head where it gives what the model's own logits give, else those.

TRL's head multiplies hidden states by the model's matrix, tile by tile, and knows by name what some models do to their
logits behind it. A model that does something else would be trained, in silence, on log-probs of another model.

Shape legend: B = sequences, T = tokens of a sequence, K = positions with logits, V = vocabulary.
"""

import functools
import inspect
import logging
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tune_dlrml.training.full_precision import in_float32
from tune_dlrml.training.ranks import agreed

UNSCORED = -100
"""Label of a token that is not predicted."""
COMPARED = 64
"""Tokens of a sequence on which the two heads have to agree."""
SQUARED = 128
"""Tokens whose probabilities are squared at a time, so that no further (K, V) of float32 comes and goes."""
AGREEMENT = 1e-3
"""Nats by which the log-prob of a token may differ between two ways to compute it in float32.

Rounding gives up to 3e-6 in the architectures of the tests, and more in deep models; a head that leaves out a scale or
a cap, or a token that sees another pair, is off by far more in a model that was trained.
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadOutput:
    """What is used of the output of TRL's head.

    Attributes:
        log_probs: Of the labels, shape (B, T), float32, in nats; 0 where there is none.
        aux_loss: Of the routers of a mixture of experts, where it was asked for.
        log_sum_sq_probs: Logarithm of the sum of the squared probabilities of the vocabulary in the place of each
            label, without a gradient, where it was asked for.
    """

    log_probs: Tensor
    aux_loss: Tensor | None
    log_sum_sq_probs: Tensor | None = None


def settle_log_prob_head(model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]) -> str:
    """Compare TRL's head with the model's own logits, and put the model's own in its place where they differ.

    Args:
        model: In evaluation mode, patched by `add_log_prob_head`; the same on every rank.
        rows: Token ids of at least one pair.

    Returns:
        Which it is, in words.
    """
    device = next(model.parameters()).device
    row = max(rows, key=lambda row: len(row["prompt_ids"]) + len(row["chosen_ids"]))
    ids = torch.tensor([[*row["prompt_ids"], *row["chosen_ids"]][:COMPARED]], device=device)
    reason = agreed(lambda: _disagreement(model, ids))
    if reason is None:
        return "fused head"
    _log.info("log-probs come from the model's own logits: %s", reason)
    use_own_logits(model)
    return "own logits"


def _disagreement(model: PreTrainedModel, ids: Tensor) -> str | None:
    with torch.no_grad(), in_float32(model):
        expected = label_log_probs(model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:])
        try:
            found = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True).log_probs
        except (AttributeError, TypeError, RuntimeError) as error:
            return f"the fused head does not take {type(model).__name__} ({type(error).__name__}: {error})"
    off = float((found - expected).abs().max())
    return None if off <= AGREEMENT else f"a token's log-prob of {type(model).__name__} is off by {off:.2g} nats in it"


def use_own_logits(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True)` return log-probs out of its own logits, at the positions that are scored."""
    patched = model.forward
    own = types.MethodType(type(model).forward, model)
    chooses = "logits_to_keep" in inspect.signature(own).parameters

    @functools.wraps(type(model).forward)  # `generate` looks at the signature
    def forward(
        _self: nn.Module,
        *args: Any,
        fused_lm_head: bool = False,
        squares: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            return patched(*args, labels=labels, shift_labels=shift_labels, **kwargs)
        following_BT = labels[:, 1:] if shift_labels is None else shift_labels  # type: ignore[index]  # one of them
        scored = (following_BT != UNSCORED).any(dim=0).nonzero().flatten()
        keep = {"logits_to_keep": scored} if chooses else {}
        outputs = own(*args, **kwargs | {"use_cache": False} | keep)
        logits_BKV = outputs.logits if chooses else outputs.logits[:, scored]
        found_BK = checkpoint(label_log_probs, logits_BKV, following_BT[:, scored], use_reentrant=False)

        def placed(found_BK: Tensor) -> Tensor:
            return found_BK.new_zeros(following_BT.shape).index_copy(1, scored, found_BK)

        return HeadOutput(
            log_probs=placed(found_BK),
            aux_loss=getattr(outputs, "aux_loss", None),
            log_sum_sq_probs=placed(log_sum_squares(logits_BKV, following_BT[:, scored])) if squares else None,
        )

    model.forward = types.MethodType(forward, model)


def label_log_probs(logits_BKV: Tensor, following_BK: Tensor) -> Tensor:
    """Log-prob of each label, shape (B, K), float32; 0 where it is unscored."""
    log_probs_BKV = torch.log_softmax(logits_BKV.float(), dim=-1)
    found_BK = log_probs_BKV.gather(-1, following_BK.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return found_BK.where(following_BK != UNSCORED, 0.0)


@torch.no_grad()  # type: ignore[untyped-decorator]
def log_sum_squares(logits_BKV: Tensor, following_BK: Tensor) -> Tensor:
    """log(sum p^2) over the vocabulary in the place of each label, shape (B, K), float32; 0 where it is unscored."""
    tiles = logits_BKV.split(SQUARED, dim=1)
    found = [torch.logsumexp(2 * torch.log_softmax(tile.float(), dim=-1), dim=-1) for tile in tiles]
    return torch.cat(found, dim=1).where(following_BK != UNSCORED, 0.0)
