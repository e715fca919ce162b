"""The identity of a data set, and the order of its rows in training."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

from tune_dlrml.config import TrainingConfig


def content_hash(rows: Iterable[Any]) -> str:
    """sha256 of the rows in their order, each as canonical JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row).encode() + b"\n")
    return digest.hexdigest()


WINDOW = 16
"""Optimizer steps whose pairs are grouped by length together: enough that the pairs of a step are alike."""


def training_order(lengths: Sequence[int], training: TrainingConfig, *, steps: int, workers: int) -> list[int]:
    """Row indices in the order in which a trial of these settings trains on them, step by step.

    Args:
        lengths: Tokens of each row before truncation.
        training: Settings of the trial.
        steps: Optimizer steps.
        workers: Of its group.
    """
    longest = training.max_length
    return batch_plan(
        lengths if longest is None else [min(length, longest) for length in lengths],
        steps=steps,
        pairs_per_step=training.pairs_per_step(workers),
        seed=training.seed if training.data_seed is None else training.data_seed,
        by_length=training.train_sampling_strategy == "group_by_length",
    )


def batch_plan(
    lengths: Sequence[int], *, steps: int, pairs_per_step: int, seed: int, by_length: bool = True
) -> list[int]:
    """Row indices in training order, `pairs_per_step` for each optimizer step, in a fresh permutation each epoch.

    With `by_length`, within a window of steps the pairs of one step have similar lengths, the longest first, so that
    there is little padding and ranks wait little for each other; the steps of a window come in random order.

    Equal arguments give equal plans on every platform, and a plan of fewer steps is the start of a longer one: trials
    with the same seed and batch size differ by their parameters, not by their data.

    Args:
        lengths: Tokens of each row.
        steps: Optimizer steps.
        pairs_per_step: Pairs of one step, over all micro-batches and ranks.
        seed: Of the permutations.
        by_length: Whether the pairs of a step are alike in length; otherwise they come as the permutation has them.
    """
    if not lengths:
        raise ValueError("`rows >= 1` must hold, but got rows=0")
    plan: list[int] = []
    partial: list[int] = []
    for epoch in itertools.count():
        order = list(range(len(lengths)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        # A step that two epochs share is not sorted: it could then have one row twice, side by side.
        cut = (-len(partial)) % pairs_per_step
        partial, order = partial + order[:cut], order[cut:]
        if len(partial) == pairs_per_step:
            plan, partial = plan + partial, []
        whole = len(order) - len(order) % pairs_per_step
        for start in range(0, whole, WINDOW * pairs_per_step):
            window = order[start : min(start + WINDOW * pairs_per_step, whole)]
            rng = random.Random(f"{seed}-{epoch}-{start}")
            plan += _alike(window, lengths, pairs_per_step, rng) if by_length else window
        partial += order[whole:]
        if len(plan) >= steps * pairs_per_step:
            return plan[: steps * pairs_per_step]
    raise AssertionError("epochs never end")


def _alike(rows: list[int], lengths: Sequence[int], size: int, rng: random.Random) -> list[int]:
    """Rows sorted by length, the longest first, cut into steps that come in random order."""
    ordered = sorted(rows, key=lambda row: -lengths[row])
    steps = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    rng.shuffle(steps)
    return [row for step in steps for row in step]


def canonical(value: Any) -> str:
    """Equal values, and no others, have equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
