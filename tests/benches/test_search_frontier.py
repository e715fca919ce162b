"""The frontier of a whole search: which trials are sampled, and which are known from an earlier run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.benches import frontier as bench
from tune_dlrml.benches.frontier import Draw, search_frontier
from tune_dlrml.benches.subject import Loaded
from tune_dlrml.config import TrainingConfig
from tune_dlrml.evaluation.frontier.points import Sampling
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec

DRAW = Draw("vader", "builtin:sentiment_eval", 4, Sampling(samples=1))


def trial(folder: Path, number: int) -> Loaded:
    checkpoint = folder / f"trials/{number}/attempt-0/checkpoint-8"
    checkpoint.mkdir(parents=True)
    train(checkpoint, f"first {number}")
    spec = TrialSpec(number=number, branch="dpo", loss=DpoLoss(), training=TrainingConfig(max_steps=8), params={})
    return Loaded(f"search:{number}", "org/base", checkpoint, spec=spec)


def train(checkpoint: Path, sha256: str) -> None:
    """Leave the marker of a checkpoint with these weights."""
    marker = {"files": {"adapter_model.safetensors": {"size": 8, "sha256": sha256}}}
    (checkpoint / "complete.json").write_text(json.dumps(marker))


@pytest.fixture
def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trials that were sampled, whose completions are all worth 0.5 at a KL of their number."""
    trials, names = [trial(tmp_path / "search", number) for number in range(2)], []

    def completions(subject: Loaded, asked: Any, sampling: Sampling, out: Path) -> dict[str, Any]:
        names.append(subject.name)
        kl = float(subject.name.rpartition(":")[2])
        reward, kl = ({"mean": mean, "se": 0.0, "interval": [mean, mean]} for mean in (0.5, kl))
        return {"bench": "frontier", "model": subject.name, "reward": reward, "kl": kl}

    monkeypatch.setattr(bench, "complete_trials", lambda search, place: trials)
    monkeypatch.setattr(bench, "_sampled", completions)
    (tmp_path / "out").mkdir()
    return names


def run(tmp_path: Path, draw: Draw = DRAW) -> dict[str, Any]:
    return search_frontier("search", SearchPlace(tmp_path), draw, tmp_path / "out")


def test_a_trial_is_sampled_once_and_the_front_is_found(tmp_path, sampled):
    first = run(tmp_path)
    assert run(tmp_path, replace(DRAW, sampling=Sampling(samples=1, batch_size=3))) == first
    assert sampled == ["search:0", "search:1"]
    assert first["pareto"] == ["search:0"]
    assert [(known["label"], known["note"]) for known in first["trials"]] == [("DPO", "β 0.1")] * 2


def test_a_trial_that_was_trained_again_is_sampled_again(tmp_path, sampled):
    run(tmp_path)
    train(tmp_path / "search/trials/1/attempt-0/checkpoint-8", "second")
    run(tmp_path)
    assert sampled == ["search:0", "search:1", "search:1"]


@pytest.mark.parametrize(
    "other", [{"limit": 5}, {"prompts": "builtin:sentiment_train"}, {"sampling": Sampling(samples=1, seed=1)}]
)
def test_another_draw_is_sampled_again_and_the_first_one_is_kept(tmp_path, sampled, other):
    run(tmp_path)
    run(tmp_path, replace(DRAW, **other))
    run(tmp_path)
    assert sampled == ["search:0", "search:1"] * 2
