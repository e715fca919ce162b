"""The identity of a data set, and the order of its rows in training."""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def content_hash(dataset: Dataset) -> str:
    """sha256 of the rows in their order, each as canonical JSON."""
    digest = hashlib.sha256()
    for row in dataset:
        digest.update(canonical(row).encode() + b"\n")
    return digest.hexdigest()


def batch_plan(rows: int, *, steps: int, pairs_per_step: int, seed: int) -> list[int]:
    """Row indices in training order, `pairs_per_step` for each optimizer step, in a fresh permutation each epoch.

    Equal arguments give equal plans on every platform, and a plan of fewer steps is the start of a longer one: trials
    with the same seed and batch size differ by their parameters, not by their data.
    """
    if rows < 1:
        raise ValueError(f"`rows >= 1` must hold, but got rows={rows}")
    needed = steps * pairs_per_step
    plan: list[int] = []
    for epoch in range(-(-needed // rows)):
        order = list(range(rows))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        plan += order
    return plan[:needed]


def canonical(value: Any) -> str:
    """Equal values, and no others, have equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
