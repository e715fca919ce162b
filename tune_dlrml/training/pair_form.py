"""In which form pairs go through a model: packed, with each prompt computed once, or padded as in TRL."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import InputError
from tune_dlrml.training.batches import PairCollator, padded_collator, pair_log_probs
from tune_dlrml.training.packed_pairs import Layout, PackedCollator, Shared, attending, sequences, use_packed_attention
from tune_dlrml.training.ranks import on_rank_zero
from tune_dlrml.training.reference_logps import computing, to_device

Row = Mapping[str, Any]

LEAST_SAVED = 0.05
"""Share of the tokens that packing must save for `auto` to pack: below it, attention pair by pair costs as much."""
TRIED = 2
"""Pairs on which the packed form has to agree with the padded one."""
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative difference of a log-prob that rounding explains; another attention is far beyond it in a trained model."""

LOGITS = 1 << 27
"""Logits that are computed at a time: half a GiB in float32."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairForm:
    """How a group puts pairs through its model.

    Attributes:
        collate: Makes a batch of pairs.
        packed: Whether prompts are computed once.
    """

    collate: PairCollator
    packed: bool


def choose_form(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig, rows: Sequence[Row]
) -> PairForm:
    """The form for these rows, the same on every rank; a packed one is made ready in the model.

    It is not taken on trust that a model follows the layout: on two pairs both forms must agree.

    Args:
        model: Patched by `add_log_prob_head`.
        tokenizer: The model's own.
        training: `shared_prompt` and what it depends on.
        rows: Token ids of pairs like those that will come.

    Raises:
        InputError: Packing is asked for and cannot be.
    """
    padded = PairForm(padded_collator(tokenizer, training), packed=False)
    if training.shared_prompt is False:
        return padded
    saved = tokens_saved(rows, training)
    reason = _why_not(model, training, rows)
    if training.shared_prompt == "auto" and reason is None and saved < LEAST_SAVED:
        reason = f"it would save {saved:.0%} of the tokens"
    if reason is None:
        packed = PairForm(PackedCollator(training.max_length, training.truncation_mode), packed=True)
        use_packed_attention(model)
        reason = on_rank_zero(lambda: _disagreement(model, training, padded.collate, packed.collate, rows[:TRIED]))
        if reason is None:
            _log.info("prompts are computed once for both completions, which saves %.0f %% of the tokens", 100 * saved)
            return packed
        model.set_attn_implementation(training.attn_implementation)
    if training.shared_prompt is True:
        raise InputError(f"training.shared_prompt: prompts cannot be shared here: {reason}. Set it to auto or false.")
    _log.info("prompts are computed with each completion: %s", reason)
    return padded


def tokens_saved(rows: Sequence[Row], training: TrainingConfig) -> float:
    """Share of the tokens that are not computed when the two completions of a pair share their prompt."""
    both = shared = 0
    for row in rows:
        chosen, rejected = sequences(row, training.max_length, training.truncation_mode)
        both += len(chosen[0]) + len(rejected[0])
        if row["prompt_ids"] and chosen[0][: chosen[1]] == rejected[0][: rejected[1]]:
            shared += max(0, chosen[1] - 1)
    return shared / both if both else 0.0


@dataclass(frozen=True)
class CompletionBatch:
    """Chosen completions whose logits are looked at, in one row.

    Attributes:
        inputs: Arguments of the model's forward.
        predicting_C: Positions in the row that predict the completions' tokens.
        following_C: Those tokens.
        rows: Completions in it.
    """

    inputs: Mapping[str, Any]
    predicting_C: Tensor
    following_C: Tensor
    rows: int


def completion_batches(
    rows: Sequence[Row], model: PreTrainedModel, training: TrainingConfig, *, packed: bool
) -> list[CompletionBatch]:
    """The chosen completions of some pairs: packed as many as fit `LOGITS` numbers, else one after another."""
    vocabulary = model.config.get_text_config().vocab_size
    chosen = [sequences(row, training.max_length, training.truncation_mode)[0] for row in rows]
    groups: list[list[tuple[list[int], int]]] = []
    room = 0
    for ids, begin in chosen:
        logits = (len(ids) - begin) * vocabulary
        if not groups or not packed or logits > room:
            groups.append([])
            room = LOGITS
        groups[-1].append((ids, begin))
        room -= logits
    return [_completion_batch(group, next(model.parameters()).device, packed=packed) for group in groups]


def _completion_batch(
    chosen: Sequence[tuple[list[int], int]], device: torch.device, *, packed: bool
) -> CompletionBatch:
    tokens: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    following: list[int] = []
    for ids, begin in chosen:
        first = max(1, begin)  # without a prompt, nothing predicts the first token
        predicting += range(len(tokens) + first - 1, len(tokens) + len(ids) - 1)
        following += ids[first:]
        tokens += ids
        positions += range(len(ids))
    input_ids = torch.tensor([tokens], device=device)
    inputs = {"input_ids": input_ids, "position_ids": torch.tensor([positions], device=device), "use_cache": False}
    if packed:
        inputs |= attending(Layout(Shared(0, (len(ids),)) for ids, _ in chosen), input_ids)
    return CompletionBatch(
        inputs, torch.tensor(predicting, device=device), torch.tensor(following, device=device), len(chosen)
    )


def _why_not(model: PreTrainedModel, training: TrainingConfig, rows: Sequence[Row]) -> str | None:
    if training.attn_implementation != "sdpa":
        return f"training.attn_implementation is {training.attn_implementation}, and packing needs sdpa"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not let its attention be replaced"
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    longest = max(len(ids) for row in rows for ids, _ in sequences(row, training.max_length, training.truncation_mode))
    if window is not None and window < longest:
        return f"the model attends to {window} tokens, and the longest sequence has {longest}"
    return None


def _disagreement(
    model: PreTrainedModel, training: TrainingConfig, padded: PairCollator, packed: PairCollator, rows: Sequence[Row]
) -> str | None:
    """Why the packed form cannot be trusted in this model; None where it gives what the padded one gives."""
    with torch.no_grad(), computing(model, training):
        expected_2B = torch.cat(pair_log_probs(model, to_device(padded(rows), model)))
        try:
            found_2B = torch.cat(pair_log_probs(model, to_device(packed(rows), model)))
            from_logits_B = _chosen_by_logits(model, training, rows)
        except Exception as error:
            return f"{type(model).__name__} does not take a packed row ({type(error).__name__}: {error})"
    found, expected = torch.cat([found_2B, from_logits_B]), torch.cat([expected_2B, expected_2B[: len(rows)]])
    off = float(((found - expected) / expected.abs().clamp(min=1.0)).abs().max())
    limit = AGREEMENT[torch.bfloat16 if training.bf16 else torch.float32]
    return None if off <= limit else f"{type(model).__name__} gives log-probs that differ by {off:.1%} in a packed row"


def _chosen_by_logits(model: PreTrainedModel, training: TrainingConfig, rows: Sequence[Row]) -> Tensor:
    """Log-probs of the chosen completions out of logits, as the KL is computed, shape (B,)."""
    sums = []
    for row in rows:
        (batch,) = completion_batches([row], model, training, packed=True)
        logits_CV = model(**batch.inputs, logits_to_keep=batch.predicting_C).logits[0].float()
        sums.append(torch.log_softmax(logits_CV, dim=-1).gather(1, batch.following_C[:, None]).sum())
    return torch.stack(sums)
