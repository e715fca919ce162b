"""Rows, batches and log-probs of preference pairs as TRL makes them, for one forward of a policy or its reference.

Shape legend: B = preference pairs in the batch, T = tokens of a padded sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from tune_dlrml.config import TrainingConfig
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.training.pairs.log_prob_head import UNSCORED
from tune_dlrml.training.pairs.packed import packed_log_probs, packed_token_log_probs

_has_triton = trl_utils._use_triton


def _scores_completions_only(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_has_triton(device))


# Where it has no Triton, TRL runs the head on every position, prompts and padding too. On a CPU that costs a small
# model with a large vocabulary a fifth of its step, and gives the same numbers.
trl_utils._use_triton = _scores_completions_only

# 4,096 tokens by 2,048 words in float32 are 32 MB, half of what `allocator` can keep for the next tile. TRL's 32,768
# words are for a GPU: on two cores a held-out pass of SmolLM2-135M takes a fifth longer with them.
CPU_HEAD_TILE = 2048
HEAD_TOKENS: int = chunked_logprob.TOKEN_CHUNK_SIZE
GPU_HEAD_TILE: int = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
if not torch.cuda.is_available():
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = CPU_HEAD_TILE

Batch = Mapping[str, Any]
"""Tensors by their name, and the layout of a packed row."""


class PairCollator(Protocol):
    """Makes a batch of B pairs in the form that it stands for.

    Every form has `chosen_lengths` and `rejected_lengths`, the tokens of the completions, shape (B,), `tokens`, those
    of prompts and completions together without padding, shape (), and `ref_chosen_logps` and `ref_rejected_logps`,
    shape (B,), where the rows have them. The rest is for `pair_log_probs`.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]], /) -> Batch:
        """The batch of these rows."""


def padded_collator(tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> PairCollator:
    """TRL's form: rows of the batch are the chosen sequences, then the rejected ones; padding on the right."""
    trl = DataCollatorForPreference(
        pad_token_id=tokenizer.pad_token_id, max_length=training.max_length, truncation_mode=training.truncation_mode
    )

    def collate(rows: Sequence[Mapping[str, Any]]) -> Batch:
        batch: dict[str, Any] = trl(list(rows))
        chosen_B, rejected_B = batch["completion_mask"].sum(dim=1).chunk(2)
        return batch | {
            "chosen_lengths": chosen_B,
            "rejected_lengths": rejected_B,
            "tokens": batch["attention_mask"].sum(),
        }

    return collate


def add_log_prob_head(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True)` return log-probs per token without logits, and no other statistic."""
    add_fused_lm_head(model, outputs=("log_probs",))


def pair_log_probs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probs of the chosen and the rejected completions, each of shape (B,), float32, in nats."""
    if "layout" in batch:
        return packed_log_probs(model, batch)
    return _sums(_padded_outputs(model, batch), batch)


def pairs_of(batch: Batch, chosen_B: Tensor, rejected_B: Tensor) -> PairBatch:
    """The pairs of a batch, of these log-probs, as a loss sees them; without a reference where the batch has none."""
    lengths = batch["chosen_lengths"], batch["rejected_lengths"]
    if "ref_chosen_logps" not in batch:
        return PairBatch(chosen_B, rejected_B, *lengths)
    reference = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    ratios = chosen_B - reference[0], rejected_B - reference[1]
    return PairBatch(*ratios, *lengths, reference[0] - reference[1], *reference)


def pair_log_probs_and_router_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """As `pair_log_probs`, and what a mixture of experts loses by the balance of its experts, shape (); padded only.

    It is a mean over all tokens of the batch, prompts twice, so that no packed row could give it.
    """
    outputs = _padded_outputs(model, batch, output_router_logits=True)
    return *_sums(outputs, batch), outputs.aux_loss


def token_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of the tokens of all completions, one after another, the chosen ones first, float32, in nats."""
    if "layout" in batch:
        owner_N = batch["branch_N"]
        by_completion = owner_N.argsort(stable=True)[: int((owner_N < 2 * len(batch["chosen_lengths"])).sum())]
        return packed_token_log_probs(model, batch)[by_completion]
    return _of_tokens(_padded_outputs(model, batch), batch)[batch["completion_mask"][:, 1:].bool()]


def _padded_outputs(model: nn.Module, batch: Batch, **asked: bool) -> Any:
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["input_ids"].masked_fill(batch["completion_mask"] == 0, UNSCORED),
        use_cache=False,
        fused_lm_head=True,
        **asked,
    )


def _sums(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    chosen_B, rejected_B = _of_tokens(outputs, batch).sum(dim=1).chunk(2)
    return chosen_B, rejected_B


def _of_tokens(outputs: Any, batch: Batch) -> Tensor:
    """Log-prob of each token of each sequence but its first, shape (2B, T - 1), float32; 0 outside completions."""
    log_probs_2BT: Tensor = outputs.log_probs[:, -(batch["completion_mask"].size(1) - 1) :]
    return log_probs_2BT.float()


def router_loss_weight(model: PreTrainedModel) -> float:
    """Weight of the routers' loss in the loss of a trial, as TRL takes it from the config; 0 without experts."""
    config = model.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", 0.0)) if hasattr(config, "output_router_logits") else 0.0


def rows_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows of token ids and reference log-probs as TRL's trainer takes them."""
    return Dataset.from_list([dict(row) for row in rows])
