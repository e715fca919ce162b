"""Where one model lies between reward and KL to its reference."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tune_dlrml.benches.subject import Loaded, Subject
from tune_dlrml.data import load_section
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.frontier import Sampling, frontier_point
from tune_dlrml.evaluation.rewards import load_reward
from tune_dlrml.files import replace_file

PROMPTS = "builtin:sentiment_eval"
"""Data set whose prompts a model is asked that belongs to no search."""


def frontier(
    subject: Subject, *, reward: str, prompts: str | None, limit: int | None, sampling: Sampling, out: Path
) -> dict[str, Any]:
    """Sample completions of a model, and leave them with their reward and KL in a folder.

    Args:
        subject: Who completes; its log-probs are needed, so it is loaded here.
        reward: What a completion is worth, see `load_reward`.
        prompts: Reference of preference pairs whose prompts are completed; None is the held-out set of the trial's
            search, or the built-in one.
        limit: So many prompts, the first ones.
        sampling: How completions are drawn.
        out: The folder.

    Raises:
        InputError: Reward or prompts are at fault, or the model runs elsewhere.
    """
    if not isinstance(subject, Loaded):
        raise InputError(f"the KL of {subject.name} needs its log-probs over the vocabulary, which no endpoint gives")
    worth = load_reward(reward)
    source = prompts or (PROMPTS if subject.config is None else subject.config.dataset.eval)
    section, _ = load_section(source, "prompts")
    asked = [pair["prompt"] for pair in section.pairs][:limit]
    compared = subject.compared()
    with subject.precision(compared.policy):
        point = frontier_point(compared, asked, worth, sampling)
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(completion)) for completion in point.completions]
    replace_file(out / "completions.jsonl", "\n".join(lines) + "\n")
    return {
        "bench": "frontier",
        "model": subject.name,
        "reward_function": worth.name,
        "prompts": source,
        "samples": len(lines),
        **point.as_json(),
    }
