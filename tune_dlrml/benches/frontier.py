"""Where a model, or every model of a search, lies between reward and KL to its reference."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.benches.answers import fingerprint
from tune_dlrml.benches.setting import settings_of
from tune_dlrml.benches.subject import Loaded, complete_trials
from tune_dlrml.config import RowsConfig
from tune_dlrml.data import load_section
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.frontier.picture import Setting
from tune_dlrml.evaluation.frontier.picture import frontier as draw_frontier
from tune_dlrml.evaluation.frontier.points import LEAST_PROMPTS, FrontierPoint, Sampling, frontier_point
from tune_dlrml.evaluation.frontier.rewards import Reward, load_reward
from tune_dlrml.evaluation.records import Chat
from tune_dlrml.pareto import pareto_front
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.system.files import replace_file

PROMPTS = "builtin:sentiment_eval"
"""Data set whose prompts a model is asked that belongs to no search."""


@dataclass(frozen=True)
class Draw:
    """What is completed, and how it is rewarded.

    Attributes:
        reward: What a completion is worth, see `load_reward`.
        prompts: Reference of preference pairs whose prompts are completed; None is the held-out set of the trial's
            search, or the built-in one.
        limit: So many prompts, the first ones.
        sampling: How completions are drawn.

    Raises:
        InputError: So few prompts have no interval.
    """

    reward: str
    prompts: str | None
    limit: int | None
    sampling: Sampling

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < LEAST_PROMPTS:
            raise InputError(
                f"the intervals of the frontier are over prompts and need at least {LEAST_PROMPTS} of them, but got "
                f"--limit {self.limit}; raise it"
            )


@dataclass(frozen=True)
class _Asked:
    """Prompts, the reference of the data set that they are from, and what completions of them are worth."""

    source: str
    prompts: Sequence[str | Chat]
    reward: Reward

    @classmethod
    def of(cls, subject: Loaded, draw: Draw) -> "_Asked":
        worth = load_reward(draw.reward)
        held_out = None if draw.prompts or subject.config is None else subject.config.dataset
        source = draw.prompts or (PROMPTS if held_out is None else held_out.eval)
        section, _ = load_section(source, "prompts", held_out or RowsConfig())
        return cls(source, [pair["prompt"] for pair in section.pairs][: draw.limit], worth)


def frontier(subject: Loaded, draw: Draw, out: Path) -> dict[str, Any]:
    """Sample completions of a model, and leave them with their reward and KL in a folder.

    Args:
        subject: Who completes; its log-probs are needed, so it is loaded here.
        draw: What is completed.
        out: The folder.

    Raises:
        InputError: Reward or prompts are at fault.
        NotFiniteError: The model has diverged.
    """
    return _sampled(subject, _Asked.of(subject, draw), draw.sampling, out)


def search_frontier(search: str, place: SearchPlace, draw: Draw, out: Path) -> dict[str, Any]:
    """The frontier of a whole search: every complete trial, which of them are on the Pareto front, and the picture.

    A trial is sampled once: what is in the folder from an earlier run stays, as long as it was drawn from the same
    weights, for the same prompts, in the same way and for the same reward, which is known by its file or weights.

    Raises:
        InputError: There is no such search, or reward or prompts are at fault.
        NotFiniteError: A trial has diverged.
    """
    subjects = complete_trials(search, place)
    asked = _Asked.of(subjects[0], draw)
    trials = [
        asdict(setting) | _known(subject, asked, draw.sampling, out)
        for subject, setting in zip(subjects, settings_of(subjects), strict=True)
    ]
    points: dict[Setting, list[FrontierPoint]] = defaultdict(list)
    for trial in trials:
        points[Setting(trial["label"], trial["note"])].append(FrontierPoint.from_json(trial))
    draw_frontier(points, reward=asked.reward.meaning).savefig(out / "frontier.png")
    positions = [FrontierPoint.from_json(trial).position for trial in trials]
    front = pareto_front([(position.kl, position.reward) for position in positions])
    return {
        "bench": "frontier",
        "model": search,
        "reward_function": draw.reward,
        "pareto": [trials[index]["model"] for index in front],
        "trials": trials,
    }


def _known(subject: Loaded, asked: _Asked, sampling: Sampling, out: Path) -> dict[str, Any]:
    """What a trial's completions come to, sampled unless the folder holds it."""
    how = {name: value for name, value in asdict(sampling).items() if name != "batch_size"}
    made_from = fingerprint(subject.identity(), asked.prompts, asked.reward.identity, how)
    kept = out / f"{subject.name.replace(':', '-')}-{made_from}.json"
    if not kept.exists():
        replace_file(kept, json.dumps(_sampled(subject, asked, sampling, out / kept.stem), indent=1))
    known: dict[str, Any] = json.loads(kept.read_bytes())
    return {name: value for name, value in known.items() if name != "bench"}


def _sampled(subject: Loaded, asked: _Asked, sampling: Sampling, out: Path) -> dict[str, Any]:
    compared = subject.compared()
    with subject.precision(compared.policy):
        point = frontier_point(compared, asked.prompts, asked.reward, sampling)
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(completion)) for completion in point.completions]
    replace_file(out / "completions.jsonl", "\n".join(lines) + "\n")
    return {
        "bench": "frontier",
        "model": subject.name,
        "reward_function": asked.reward.name,
        "prompts": asked.source,
        "samples": len(lines),
        **point.as_json(),
    }
