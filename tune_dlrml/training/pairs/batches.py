"""Rows, batches and log-probs of preference pairs as TRL makes them, for one forward of a policy or its reference.

Shape legend: B = preference pairs in the batch, T = tokens of a padded sequence.
"""

import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

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
from tune_dlrml.losses.weighting import length_desensitized, wpo_weight
from tune_dlrml.training.pairs import packed
from tune_dlrml.training.pairs.log_prob_head import UNSCORED
from tune_dlrml.training.pairs.packed import REFERENCE

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
    of prompts and completions together without padding, shape (), and those of the columns `REFERENCE` that the rows
    have, shape (B,). The rest is for `pair_log_probs`.
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
        reference = {name: torch.tensor([row[name] for row in rows]) for name in REFERENCE if name in rows[0]}
        return batch | {
            **reference,
            "chosen_lengths": chosen_B,
            "rejected_lengths": rejected_B,
            "tokens": batch["attention_mask"].sum(),
        }

    return collate


def add_log_prob_head(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True)` return log-probs per token without logits.

    With `squares=True` it returns `log_sum_sq_probs`, too, see `HeadOutput`, and no other statistic.
    """
    own, heads = model.forward, []
    for outputs in (["log_probs"], ["log_probs", "log_sum_sq_probs"]):
        model.forward = own
        add_fused_lm_head(model, outputs=tuple(outputs))
        heads.append(model.forward)
    plain, squared = heads

    @functools.wraps(type(model).forward)  # `generate` looks at the signature
    def forward(_self: nn.Module, *args: Any, squares: bool = False, **kwargs: Any) -> Any:
        return (squared if squares else plain)(*args, **kwargs)

    model.forward = types.MethodType(forward, model)


class PairOutputs(NamedTuple):
    """What a forward gives of the pairs of a batch, each of shape (B,), float32, in nats; None where it is not asked.

    `chosen_B` and `rejected_B` are the log-probs of the completions, and `beyond` the parts of the two on the tokens
    beyond the public length of their pair, that of its shorter completion. `weight_B` is WPO's weight of the pair, a
    number without a gradient. `router_loss`, shape (), is what a mixture of experts loses by the balance of its
    experts.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    beyond: tuple[Tensor, Tensor] | None = None
    weight_B: Tensor | None = None
    router_loss: Tensor | None = None


def pair_outputs(
    model: nn.Module, batch: Batch, *, beyond: bool = False, weights: bool = False, routers: bool = False
) -> PairOutputs:
    """What a forward gives of the pairs of a batch.

    The loss of routers is a mean over all tokens of the batch, prompts twice, so that no packed row could give it.
    """
    asked = {"squares": True} if weights else {}
    outputs = _outputs(model, batch, **asked, **({"output_router_logits": True} if routers else {}))
    tokens = _of_tokens(outputs.log_probs, batch)
    return PairOutputs(
        *pair_sums(tokens, batch),
        beyond=pair_sums(tokens * beyond_public_length(batch), batch) if beyond else None,
        weight_B=pair_weights(tokens, _of_tokens(outputs.log_sum_sq_probs, batch), batch) if weights else None,
        router_loss=outputs.aux_loss if routers else None,
    )


def pair_log_probs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probs of the chosen and the rejected completions, each of shape (B,), float32, in nats."""
    return pair_outputs(model, batch)[:2]


def pair_sums(tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums over the tokens of the chosen and of the rejected completions, each of shape (B,).

    Args:
        tokens: A number of every scored token, 0 of every other: of a packed row (N,), of padded ones (2B, T - 1).
        batch: Where they are from.
    """
    if "layout" in batch:
        return packed.pair_sums(tokens, batch)
    chosen_B, rejected_B = tokens.sum(dim=1).chunk(2)
    return chosen_B, rejected_B


def beyond_public_length(batch: Batch) -> Tensor:
    """Which scored tokens lie beyond the public length of their pair, in the shape that `pair_sums` takes.

    Others may or may not be marked.
    """
    if "layout" in batch:
        return packed.beyond_public_length(batch)
    scored = batch["completion_mask"][:, 1:]
    public_B = scored.sum(dim=1).view(2, -1).amin(dim=0)
    return scored.cumsum(dim=1) > public_B.repeat(2)[:, None]


def pair_weights(tokens: Tensor, squares: Tensor, batch: Batch) -> Tensor:
    """WPO's weight of each pair, shape (B,).

    Args:
        tokens: Log-probs in the shape that `pair_sums` takes.
        squares: log(sum p^2) over the vocabulary in the same places.
        batch: Where they are from.
    """
    scored = 1 if "layout" in batch else batch["completion_mask"][:, 1:]
    lengths = pair_sums(torch.ones_like(tokens, requires_grad=False) * scored, batch)
    sums = pair_sums(tokens - squares, batch)
    return wpo_weight(*(total_B / length_B.clamp(min=1) for total_B, length_B in zip(sums, lengths, strict=True)))


def pairs_of(batch: Batch, outputs: PairOutputs, *, ld_alpha: float | None = None) -> PairBatch:
    """The pairs of a batch as a loss sees them; without a reference where the batch has none.

    With `ld_alpha`, its log-probs are the length-desensitized ones of policy and reference.
    """
    policy, lengths = outputs[:2], (batch["chosen_lengths"], batch["rejected_lengths"])
    if "ref_chosen_logps" not in batch:
        return PairBatch(*policy, *lengths)
    chosen_B, rejected_B, *beyond = (batch[name] for name in REFERENCE if name in batch)
    reference = chosen_B, rejected_B
    if ld_alpha is not None:
        assert outputs.beyond is not None, "a forward is asked for what ld_alpha weighs"
        policy, reference = (
            tuple(length_desensitized(*each, ld_alpha=ld_alpha) for each in zip(log_probs, tail, strict=True))
            for log_probs, tail in ((policy, outputs.beyond), (reference, beyond))
        )
    ratios = policy[0] - reference[0], policy[1] - reference[1]
    return PairBatch(*ratios, *lengths, reference[0] - reference[1], *reference)


def token_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of the tokens of all completions, one after another, the chosen ones first, float32, in nats."""
    if "layout" in batch:
        owner_N = batch["branch_N"]
        by_completion = owner_N.argsort(stable=True)[: int((owner_N < 2 * len(batch["chosen_lengths"])).sum())]
        return _of_tokens(_outputs(model, batch).log_probs, batch)[by_completion]
    return _of_tokens(_outputs(model, batch).log_probs, batch)[batch["completion_mask"][:, 1:].bool()]


def _outputs(model: nn.Module, batch: Batch, **asked: bool) -> Any:
    if "layout" in batch:
        return packed.outputs(model, batch, **asked)
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["input_ids"].masked_fill(batch["completion_mask"] == 0, UNSCORED),
        use_cache=False,
        fused_lm_head=True,
        **asked,
    )


def _of_tokens(numbers: Tensor, batch: Batch) -> Tensor:
    """What a head gives of each token, in the shape that `pair_sums` takes, float32; 0 outside completions."""
    if "layout" in batch:
        return numbers[0].float()
    return numbers[:, -(batch["completion_mask"].size(1) - 1) :].float()


def router_loss_weight(model: PreTrainedModel) -> float:
    """Weight of the routers' loss in the loss of a trial, as TRL takes it from the config; 0 without experts."""
    config = model.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", 0.0)) if hasattr(config, "output_router_logits") else 0.0


def rows_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows of token ids and reference log-probs as TRL's trainer takes them."""
    return Dataset.from_list([dict(row) for row in rows])
