"""The scoring-rule term on the chosen answers that a loss may have beside it, from the same forward as its log-probs.

Shape legend: B = preference pairs in the batch, T = tokens of all chosen answers of the batch, D = width of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tune_dlrml.errors import InputError
from tune_dlrml.losses.scoring_rules.config import SftTerm
from tune_dlrml.losses.scoring_rules.function import answer_means, build_rule
from tune_dlrml.training.full_precision import in_float32
from tune_dlrml.training.pairs.batches import Batch
from tune_dlrml.training.pairs.log_prob_head import UNSCORED

ASKED = 8
"""Tokens on which logits are compared."""
CLOSE = 1e-4
"""Share of the largest logit by which rounding in float32 may move one."""


class ChosenAnswers:
    """Scores the chosen answers of a batch by a scoring rule.

    The rules need the whole distribution of a token, which TRL's fused head does not give: the hidden states are kept
    from the forward that gave the log-probs, and go through the head once more, a chunk of tokens at a time.

    Args:
        model: The base model, before an adapter is put into it.
        term: The rule, its numbers and the weight of the term.

    Raises:
        InputError: The model's logits are not its hidden states times a matrix.
    """

    def __init__(self, model: PreTrainedModel, term: SftTerm) -> None:
        self.weight = float(term.weight)  # type: ignore[arg-type]  # a point of the space has set it
        self._token_loss = build_rule(term)
        self._model, self._backbone = model, model.base_model
        self._hidden: Tensor | None = None
        check_head(model)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the hidden states of the forward in this block."""

        def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            self._hidden = outputs.last_hidden_state

        handle = self._backbone.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def losses(self, batch: Batch) -> Tensor:
        """Loss of each chosen answer, mean over its tokens, shape (B,), of the batch whose forward was watched."""
        assert self._hidden is not None, "no forward was watched"
        hidden, self._hidden = self._hidden, None
        hidden_TD, labels_T, length_B = chosen_tokens(hidden, batch)
        return answer_means(self._token_loss(hidden_TD, head_weight(self._model), labels_T), length_B)


def check_head(model: PreTrainedModel) -> None:
    """Look whether the model's logits are hidden states times `head_weight`.

    Raises:
        InputError: They are more than that: a bias, a scale or a cap comes behind, or an adapter is in the head.
    """
    head, reason = model.get_output_embeddings(), None
    if not isinstance(head, nn.Linear) or head.bias is not None:
        reason = f"a head of {type(head).__name__} with a bias or an adapter"
    elif not _is_product(model):
        reason = "logits that are something else"
    if reason is not None:
        raise InputError(
            "a scoring rule is computed from logits that are hidden states times a matrix, but this model has "
            f"{reason}; leave `sft` and `warm_up` out, and lm_head out of lora.target_modules"
        )


def _is_product(model: PreTrainedModel) -> bool:
    ids = torch.arange(1, 1 + ASKED, device=next(model.parameters()).device)[None]
    with torch.no_grad(), in_float32(model):
        logits, outputs = (part(input_ids=ids, use_cache=False) for part in (model, model.base_model))
        hidden = getattr(outputs, "last_hidden_state", None)
        if hidden is None:
            return False
        product = nn.functional.linear(hidden, head_weight(model))
    return bool((logits.logits - product).abs().max() <= CLOSE * product.abs().max())


def head_weight(model: PreTrainedModel) -> Tensor:
    """The matrix (V, D) that makes logits of hidden states, see `check_head`."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def chosen_tokens(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of the tokens of the chosen answers: the hidden states (T, D) that predict them, themselves (T,); counts (B,)."""
    pairs = len(batch["chosen_lengths"])
    if "layout" in batch:
        labels, owners = batch["shift_labels"][0], batch["branch_N"]
        mine = (owners < pairs) & (labels != UNSCORED)
        return hidden[0][mine], labels[mine], torch.bincount(owners[mine], minlength=pairs)
    mask = batch["completion_mask"][:pairs, 1:].bool()
    return hidden[:pairs, :-1][mask], batch["input_ids"][:pairs, 1:][mask], mask.sum(dim=1)
