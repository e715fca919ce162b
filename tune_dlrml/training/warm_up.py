"""Plain fine-tuning on the chosen answers before a search: it makes the model that all trials start from.

The result is a folder like any other model's, so that reference, policy, judge and export know nothing of a warm-up.

Shape legend: C = tokens of the chosen answers of a batch.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from tune_dlrml.config import TrainingConfig
from tune_dlrml.data import TokenRows, training_order
from tune_dlrml.errors import InputError
from tune_dlrml.losses.scoring_rules.function import TokenLoss, build_rule
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.training.adapters import adapted
from tune_dlrml.training.arguments import optimizer_of
from tune_dlrml.training.checkpoint import storing
from tune_dlrml.training.pairs.batches import add_log_prob_head
from tune_dlrml.training.pairs.form import CompletionBatch, choose_form, completion_batches
from tune_dlrml.training.pairs.log_prob_head import settle_log_prob_head
from tune_dlrml.training.reference.logps import Row, computing, row_length
from tune_dlrml.training.sft import check_head, head_weight

LOSSES = "warm_up.json"
"""File of the folder with the mean loss of every step."""


def warm_up(
    model: str, pairs: TokenRows, training: TrainingConfig, folder: Path, *, workers: int, threads: int
) -> list[float]:
    """Fine-tune a model as `training.warm_up` says and write it into `folder`, which appears when it is whole.

    With `lora` an adapter is trained and then merged; else all weights. Optimizer, weight decay, clipping, dropout,
    attention, pairs of a step and their order, truncation and seed are those of the trials, whatever a trial may vary
    being as the file has it; the learning rate is the warm-up's own and constant. With `bf16` it computes in bfloat16.
    Weights are kept in float32.

    Args:
        model: Reference of the model to begin with.
        pairs: Training pairs as token ids; their rejected answers are not looked at.
        training: Settings of the search.
        folder: What is made; there is none yet.
        workers: Of a trial, each of which adds its pairs to a step; here one process takes them all.
        threads: CPU threads of this process.

    Returns:
        Mean loss over the tokens of each optimizer step.

    Raises:
        InputError: A loss or a gradient was not finite, or the rule cannot be computed on this model.
        StorageError: The folder cannot be written.
    """
    assert training.warm_up is not None
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(training.seed)
    reference = parse_model_reference(model)
    device, attention = "cuda" if torch.cuda.is_available() else "cpu", training.attn_implementation
    base = load_model(reference, dtype=torch.float32, attn_implementation=attention, device=device)
    tokenizer = load_tokenizer(reference)
    add_log_prob_head(base)  # the form of the pairs is chosen by it
    rows = list(pairs)
    settle_log_prob_head(base, rows)
    packed = choose_form(base, tokenizer, training, rows).packed
    check_head(base)
    policy = base if training.lora is None else adapted(base, training.lora, seed=training.seed)
    losses = _train(policy, base, list(_steps(rows, base, training, workers=workers, packed=packed)), training)
    if training.lora is not None:
        policy.merge_and_unload()
    base.set_attn_implementation(training.attn_implementation)
    partial = folder.with_name(f"{folder.name}.partial")
    with storing(folder.parent):
        shutil.rmtree(partial, ignore_errors=True)
        base.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / LOSSES).write_text(json.dumps(losses))
        partial.rename(folder)
    return losses


def _steps(
    rows: Sequence[Row], model: PreTrainedModel, training: TrainingConfig, *, workers: int, packed: bool
) -> Iterator[list[CompletionBatch]]:
    """The chosen answers of each optimizer step."""
    assert training.warm_up is not None
    steps, size = training.warm_up.steps, training.pairs_per_step(workers)
    plan = training_order([row_length(row) for row in rows], training, steps=steps, workers=workers)
    for step in range(steps):
        chosen = [rows[index] for index in plan[step * size : (step + 1) * size]]
        yield completion_batches(chosen, model, training, packed=packed)


def _train(
    policy: nn.Module, base: PreTrainedModel, steps: Sequence[Sequence[CompletionBatch]], training: TrainingConfig
) -> list[float]:
    assert training.warm_up is not None
    rule = build_rule(training.warm_up)
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(policy, training.model_copy(update={"learning_rate": training.warm_up.learning_rate}))
    policy.train(not training.disable_dropout)
    means: list[float] = []
    for batches in steps:
        tokens = sum(len(batch.following_C) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = _loss_sum(base, batch, rule, training) / tokens
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm or math.inf)
        if not math.isfinite(total) or not bool(norm.isfinite()):
            raise InputError(
                f"training.warm_up: step {len(means) + 1} must be finite, but its loss is {total:.4g} and the norm of "
                f"its gradient {float(norm):.4g}; lower training.warm_up.learning_rate, which is "
                f"{training.warm_up.learning_rate:g}"
            )
        optimizer.step()
        optimizer.zero_grad()
        means.append(total)
    return means


def _loss_sum(base: PreTrainedModel, batch: CompletionBatch, rule: TokenLoss, training: TrainingConfig) -> Tensor:
    """Loss of all tokens of a batch, summed; an adapter lives inside `base`."""
    with computing(base, training):
        hidden_CD = base.base_model(**batch.inputs).last_hidden_state[0][batch.predicting_C]
        return rule(hidden_CD, head_weight(base), batch.following_C).sum()
