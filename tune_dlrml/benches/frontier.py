"""Where a model, or every model of a search, lies between reward and KL to its reference."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.benches.subject import Loaded, Subject, complete_trials
from tune_dlrml.data import load_section
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.frontier import FrontierPoint, Sampling, frontier_point, pareto
from tune_dlrml.evaluation.frontier_picture import Setting
from tune_dlrml.evaluation.frontier_picture import frontier as draw_frontier
from tune_dlrml.evaluation.rewards import load_reward
from tune_dlrml.files import replace_file
from tune_dlrml.search.result import SearchPlace

LABELS = {"dpo": "DPO", "discopop": "DiscoPOP", "dlrml": "dLRML"}
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
    """

    reward: str
    prompts: str | None
    limit: int | None
    sampling: Sampling


def frontier(subject: Subject, draw: Draw, out: Path) -> dict[str, Any]:
    """Sample completions of a model, and leave them with their reward and KL in a folder.

    Args:
        subject: Who completes; its log-probs are needed, so it is loaded here.
        draw: What is completed.
        out: The folder.

    Raises:
        InputError: Reward or prompts are at fault, or the model runs elsewhere.
    """
    if not isinstance(subject, Loaded):
        raise InputError(f"the KL of {subject.name} needs its log-probs over the vocabulary, which no endpoint gives")
    worth = load_reward(draw.reward)
    source = draw.prompts or (PROMPTS if subject.config is None else subject.config.dataset.eval)
    section, _ = load_section(source, "prompts")
    asked = [pair["prompt"] for pair in section.pairs][: draw.limit]
    compared = subject.compared()
    with subject.precision(compared.policy):
        point = frontier_point(compared, asked, worth, draw.sampling)
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


def search_frontier(search: str, place: SearchPlace, draw: Draw, out: Path) -> dict[str, Any]:
    """The frontier of a whole search: every complete trial, which of them are on the Pareto front, and the picture.

    A trial is sampled once: what is in the folder from an earlier run with the same draw stays.

    Raises:
        InputError: There is no such search, or reward or prompts are at fault.
    """
    trials = []
    for subject in complete_trials(search, place):
        kept = out / f"{subject.name.replace(':', '-')}.json"
        known = json.loads(kept.read_bytes()) if kept.exists() else {}
        if known.get("draw") != _as_json(draw):
            known = {"draw": _as_json(draw), **asdict(setting(subject)), **frontier(subject, draw, out / kept.stem)}
            replace_file(kept, json.dumps(known, indent=1))
        trials.append({key: value for key, value in known.items() if key not in ("bench", "draw")})
    points: dict[Setting, list[FrontierPoint]] = defaultdict(list)
    for trial in trials:
        points[Setting(trial["label"], trial["note"])].append(FrontierPoint.from_json(trial))
    draw_frontier(points, reward=load_reward(draw.reward).meaning).savefig(out / "frontier.png")
    front = pareto([FrontierPoint.from_json(trial).position for trial in trials])
    return {
        "bench": "frontier",
        "model": search,
        "reward_function": draw.reward,
        "pareto": [trials[index]["model"] for index in front],
        "trials": trials,
    }


def setting(subject: Loaded) -> Setting:
    """How a trial is called in the picture: by its loss, and by its strength beside its mark."""
    assert subject.spec is not None, "a complete trial was handed out"
    own = subject.spec.settings()
    c, strength = own.get("c"), own.get("beta", own.get("beta_kl"))
    return Setting(LABELS[own["loss"]] + (f", c = {c:g}" if c else ""), f"β {strength:g}")


def _as_json(draw: Draw) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(asdict(draw)))
    return document
