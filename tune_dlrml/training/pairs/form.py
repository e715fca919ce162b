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
from tune_dlrml.training.full_precision import in_float32
from tune_dlrml.training.pairs.batches import PairCollator, padded_collator, router_loss_weight, token_log_probs
from tune_dlrml.training.pairs.log_prob_head import AGREEMENT, label_log_probs
from tune_dlrml.training.pairs.packed import Layout, PackedCollator, Shared, attending, sequences, use_packed_attention
from tune_dlrml.training.pairs.token_mixers import other_mixer, window
from tune_dlrml.training.ranks import agreed
from tune_dlrml.training.reference.logps import computing, to_device

Row = Mapping[str, Any]

LEAST_SAVED = 0.05
"""Share of the tokens that packing must save for `auto` to pack: below it, attention pair by pair costs as much."""
ROUNDING = 0.3
"""Nats a token, root mean square, by which the precision of the trials may move log-probs from those of float32.

Two batches of another make-up have 0.07 in bfloat16 (SmolLM2-135M); a kernel that attends to other tokens has to show.
"""

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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingConfig,
    rows: Sequence[Row],
    held_out: Sequence[Row] = (),
) -> PairForm:
    """The form for these rows, the same on every rank; a packed one is made ready in the model.

    Config and classes of a model decide, see `token_mixers`. Their decision is verified: on the first and the longest
    pair both forms must agree, token by token, in float32.

    Args:
        model: With its log-prob head.
        tokenizer: The model's own.
        training: `shared_prompt` and what it depends on.
        rows: Token ids of the training pairs.
        held_out: Those of the held-out pairs.

    Raises:
        InputError: Packing is asked for and cannot be.
    """
    padded = PairForm(padded_collator(tokenizer, training), packed=False)
    if training.shared_prompt is False:
        return padded
    longest = max([*rows, *held_out], key=lambda row: _longer(row, training))
    reason = why_padded(model, training, rows, held_out)
    if reason is None:
        packed = PairForm(PackedCollator(training.max_length, training.truncation_mode), packed=True)
        use_packed_attention(model)
        reason = agreed(lambda: _disagreement(model, training, padded.collate, packed.collate, [rows[0], longest]))
        if reason is None:
            saved = 100 * tokens_saved(rows, training)
            _log.info("prompts are computed once for both completions, which saves %.0f %% of the tokens", saved)
            return packed
        model.set_attn_implementation(training.attn_implementation)
    if training.shared_prompt is True:
        raise InputError(f"training.shared_prompt: prompts cannot be shared here: {reason}. Set it to auto or false.")
    _log.info("prompts are computed with each completion: %s", reason)
    return padded


def why_padded(
    model: PreTrainedModel, training: TrainingConfig, rows: Sequence[Row], held_out: Sequence[Row] = ()
) -> str | None:
    """Why prompts are not shared, from settings, rows and the model's classes; None where a forward is to decide.

    Args:
        model: With or without storage.
        training: `shared_prompt` and what it depends on.
        rows: Token ids of the training pairs.
        held_out: Those of the held-out pairs.
    """
    if training.shared_prompt is False:
        return "training.shared_prompt is false"
    reason = _why_not(model, training, max(_longer(row, training) for row in [*rows, *held_out]))
    saved = tokens_saved(rows, training)
    if training.shared_prompt == "auto" and reason is None and saved < LEAST_SAVED:
        return f"it would save {saved:.0%} of the tokens"
    return reason


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


def _longer(row: Row, training: TrainingConfig) -> int:
    """Tokens of the longer sequence of a pair."""
    return max(len(ids) for ids, _ in sequences(row, training.max_length, training.truncation_mode))


def _why_not(model: PreTrainedModel, training: TrainingConfig, longest: int) -> str | None:
    if training.attn_implementation != "sdpa":
        return f"training.attn_implementation is {training.attn_implementation}, and packing needs sdpa"
    if router_loss_weight(model):
        return "the routers' loss of a mixture of experts is a mean over all tokens, prompts twice"
    other, width = other_mixer(model), window(model)
    if other is None and width is not None and width < longest:
        return f"the model attends to {width} tokens, and the longest sequence has {longest}"
    return other


def _disagreement(
    model: PreTrainedModel, training: TrainingConfig, padded: PairCollator, packed: PairCollator, rows: Sequence[Row]
) -> str | None:
    """Why the packed form cannot be trusted in this model; None where it gives what the padded one gives."""
    name, batch = type(model).__name__, to_device(packed(rows), model)
    with torch.no_grad(), in_float32(model):
        expected_T = token_log_probs(model, to_device(padded(rows), model))
    try:
        with torch.no_grad(), in_float32(model):
            found_T = token_log_probs(model, batch)
            from_logits_C = torch.cat([_chosen_by_logits(model, training, row) for row in rows])
        with torch.no_grad(), computing(model, training):  # a GPU attends in another kernel in bfloat16
            rounded_T = token_log_probs(model, batch)
    except Exception as error:
        return f"{name} does not take a packed row ({type(error).__name__}: {error})"
    off_T = torch.cat([found_T - expected_T, from_logits_C - expected_T[: len(from_logits_C)]])
    if not off_T.abs().max() <= AGREEMENT:
        return f"a token's log-prob of {name} is off by {float(off_T.abs().max()):.2g} nats in a packed row"
    spread = float((rounded_T - expected_T).square().mean().sqrt())
    return None if spread <= ROUNDING else f"log-probs of {name} spread by {spread:.2g} nats a token in a packed row"


def _chosen_by_logits(model: PreTrainedModel, training: TrainingConfig, row: Row) -> Tensor:
    """Log-probs of the tokens of a chosen completion out of logits, as the KL is computed, shape (C,)."""
    (batch,) = completion_batches([row], model, training, packed=True)
    logits_CV = model(**batch.inputs, logits_to_keep=batch.predicting_C).logits[0]
    return label_log_probs(logits_CV, batch.following_C)
