"""Log-probs of the frozen reference: one forward per pair and worker group, kept for all its trials.

They depend on the base model, the tokenizer and the truncation only, never on a trial's loss, rate or adapter.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.trainer import Batch, pair_log_probs, preference_collator

Row = dict[str, Any]


class ReferenceLogProbs:
    """Adds `ref_chosen_logps` and `ref_rejected_logps` (nats, float32) to rows of token ids, each row once.

    Args:
        model: The base model without an adapter, its weights pristine whenever `fill` is called.
        tokenizer: The model's own.
        training: Truncation, precision and the batch size of the forward.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> None:
        self._model = model
        self._training = training
        self._collate = preference_collator(tokenizer, training)
        self.tokens = 0

    def fill(self, rows: Iterable[Row]) -> None:
        """Complete the rows that lack their reference, the longest first so that a batch wastes little padding."""
        missing = {id(row): row for row in rows if "ref_chosen_logps" not in row}.values()
        ordered = sorted(missing, key=row_length, reverse=True)
        size = self._training.per_device_eval_batch_size
        for start in range(0, len(ordered), size):
            batch_rows = ordered[start : start + size]
            batch = to_device(self._collate(batch_rows), self._model)
            with torch.no_grad(), computing(self._model, self._training):
                chosen_B, rejected_B = pair_log_probs(self._model, batch)
            for row, chosen, rejected in zip(batch_rows, chosen_B.tolist(), rejected_B.tolist(), strict=True):
                row["ref_chosen_logps"], row["ref_rejected_logps"] = chosen, rejected
            self.tokens += int(batch["attention_mask"].sum())


def row_length(row: Row) -> int:
    """Tokens of the longer sequence of a pair, before truncation."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def by_length(rows: Sequence[Row]) -> list[int]:
    """Positions of the rows, the longest pair first; ties keep their order."""
    return sorted(range(len(rows)), key=lambda index: -row_length(rows[index]))


def to_device(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def computing(model: nn.Module, training: TrainingConfig) -> torch.autocast:
    """The precision in which a trial trains, as Accelerate sets it around the policy's forward."""
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=training.bf16)
