"""What comes with the package: preference pairs to train on, questions in two turns with prompts to judge by, searches.

The pairs are the IMDb sentiment experiment of the DiscoPOP paper, in small: `sentiment_train` (256 pairs) and
`sentiment_eval` (64 pairs, other prompts), one JSON object a line in TRL's conversational format (`prompt`, `chosen`,
`rejected` as message lists) with `chosen_score` and `rejected_score`, the VADER compound sentiment in [-1, 1] of each
completion. As in the paper (Lu et al., 2024, "Discovering Preference Optimization Algorithms with and for Large
Language Models"), a sentiment scorer stands in for human preference, and the policy that is trained is the one that
the completions were sampled from.

How they were made: `python -m tune_dlrml.builtin.make_sentiment_pairs` samples several completions of each prompt in
`prompts.py` from SmolLM2-135M-Instruct, scores each with VADER, and takes the most positive as chosen and the most
negative as rejected where their scores differ by at least `MIN_GAP`.

What to know when reading results: the chosen completion is the longer one in 57 % of the training pairs and in 72 % of
the held-out pairs, since neutral completions tend to be short. A policy that only learns to prefer length reaches that
held-out accuracy, so compare with it before calling a number a preference for positive sentiment.

The questions have the form of MT-Bench's, not its content: 16 of them in two turns, two from each of its eight
categories, written for models of any size, so that the first eight cover every category (`mt_bench_questions`); the
right answers to those of math, reasoning and coding (`mt_bench_references`); and the prompts of judges
(`mt_bench_prompts`). All three are in FastChat's file formats. A score on them is no score on MT-Bench's own questions.
`tldr_prompts` and `dialogue_prompts` have judges compare two summaries or two replies, by the criteria of the DPO paper
(arXiv 2305.18290, appendix C.2) in other words.

The searches are the files of `search_spaces/` in the repository, each of which begins with the question it answers.

Licence: Apache-2.0, as the rest of the project. All prompts, questions and references were written for it; the
completions were sampled from SmolLM2-135M-Instruct, which is under Apache-2.0.
"""

import difflib
from pathlib import Path
from typing import Literal

from tune_dlrml.errors import InputError

PREFIX = "builtin:"
"""Before the name of what comes with the package, where a file could be named as well."""

MIN_GAP = 0.4
NAMES = ("sentiment_train", "sentiment_eval")
TASKS = ("mt-bench", "tldr", "dialogue")
"""Whose answers the package has judge prompts for: ratings and comparisons, or comparisons alone."""


def path(name: str) -> Path:
    """The JSON Lines file of a built-in data set."""
    if name not in NAMES:
        raise InputError(f"There is no built-in data set {name!r}. Built-in are: {', '.join(NAMES)}.")
    return Path(__file__).parent / f"{name}.jsonl"


def mt_bench(part: Literal["questions", "references"]) -> Path:
    """A JSON Lines file of the built-in questions."""
    return Path(__file__).parent / f"mt_bench_{part}.jsonl"


def judge_prompts(task: str) -> Path:
    """The JSON Lines file with the prompts of judges for a task."""
    if task not in TASKS:
        raise InputError(f"There are no built-in judge prompts {task!r}. Built-in are: {', '.join(TASKS)}.")
    return Path(__file__).parent / f"{task.replace('-', '_')}_prompts.jsonl"


def search_spaces() -> dict[str, Path]:
    """The search-space files by the names of their searches."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))}


def search_space(name: str) -> Path:
    """A built-in search-space file."""
    known = search_spaces()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"There is no built-in search {name!r}; {meant}Built-in are: {', '.join(known)}.")
    return known[name]


def question(space: Path) -> str:
    """The question that a search-space file answers, out of its first line."""
    first = space.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").partition("?")[0] + "?"
