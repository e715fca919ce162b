"""What evaluations say of a policy's completions of held-out prompts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from safetensors.torch import load_file
from toy_training import DPO, ORPO, Recorder, completer, plan, settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.errors import InputError, NotFiniteError
from tune_dlrml.records import Answer, Completed, Report, State
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.completions import HeldOutCompletions
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial


class Scripted:
    """Completes as it is told, call by call."""

    def __init__(self, *calls: list[Completed]) -> None:
        self.calls = iter(calls)

    def complete(self, *_: Any, **__: Any) -> list[Completed]:
        return next(self.calls)


class Diverging(Scripted):
    """Completes once, and then no more."""

    def complete(self, *_: Any, **__: Any) -> list[Completed]:
        try:
            return next(self.calls)
        except StopIteration:
            raise NotFiniteError("no logits") from None


def of(resident: Resident, completer: Any) -> HeldOutCompletions:
    return HeldOutCompletions(completer, resident.model, resident.tokenizer, resident.training)


@pytest.fixture(scope="module")
def writing(toy_model: Path) -> Resident:
    """Of a search that completes prompts for a reward."""
    return toy_training.resident(toy_model, settings(), completer=completer())


def test_the_ratio_is_that_of_mean_lengths_and_the_error_that_over_prompts(lora_resident: Resident) -> None:
    first, second = [Completed(2, 0.5), Completed(4, -0.5)], [Completed(3, 1.0), Completed(6, 0.0)]
    completions = of(lora_resident, Scripted(first, second))
    assert completions.untrained() == {"eval_length_ratio": 1.0, "eval_reward": 0.0, "eval_reward_se": 0.5 / 2**0.5}
    assert completions.evaluate(lora_resident.model) == pytest.approx(
        {"eval_length_ratio": 4.5 / 3, "eval_reward": 0.5, "eval_reward_se": math.sqrt(0.25 / 2)}
    )


def test_without_a_reward_there_is_a_ratio_alone(lora_resident: Resident) -> None:
    completions = of(lora_resident, Scripted([Completed(8, None)], [Completed(4, None)]))
    assert completions.evaluate(lora_resident.model) == {"eval_length_ratio": 0.5}


def test_lengths_are_those_of_greedy_generation_by_transformers_itself(toy_model: Path, writing: Resident) -> None:
    asked = completer(temperature=0.0, reward=None)
    found = asked.complete(writing.model, writing.tokenizer, rank=0, world=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(toy_model), AutoTokenizer.from_pretrained(toy_model)
    for prompt, completed in zip(asked.prompts, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        whole = model.generate(ids, do_sample=False, max_new_tokens=12, attention_mask=torch.ones_like(ids))
        assert completed == (whole.shape[1] - ids.shape[1], None)


def test_a_cut_completion_counts_as_its_limit(writing: Resident) -> None:
    found = completer(max_new_tokens=3).complete(writing.model, writing.tokenizer, rank=0, world=1)
    assert max(each.tokens for each in found) == 3


def test_ranks_share_the_prompts(writing: Resident) -> None:
    asked = completer()
    whole = asked.complete(writing.model, writing.tokenizer, rank=0, world=1)
    halves = [asked.complete(writing.model, writing.tokenizer, rank=rank, world=2) for rank in (0, 1)]
    assert halves == [whole[0::2], whole[1::2]]


def test_a_trial_reports_them_from_step_0_on_and_moves_away_from_1(writing: Resident) -> None:
    _, channel = toy_training.run(writing, DPO, settings(), plan(8, {4}))
    told = [report.metrics for report in channel.reports if report.evaluated]
    assert len(told) == 3
    assert all({"eval_length_ratio", "eval_reward", "eval_reward_se"} <= each.keys() for each in told)
    assert told[0]["eval_length_ratio"] == 1.0
    assert told[2]["eval_reward"] != told[0]["eval_reward"]


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_an_untrained_policy_writes_what_the_model_writes(toy_model: Path, shared_prompt: bool) -> None:
    training = settings(learning_rate=1e-30, shared_prompt=shared_prompt)
    resident = toy_training.resident(toy_model, training, completer=completer())
    _, channel = toy_training.run(resident, DPO, training, plan(1))
    first, last = (report.metrics for report in channel.reports)
    assert last["eval_length_ratio"] == 1.0
    assert last["eval_reward"] == first["eval_reward"]


def test_training_is_what_it_is_without_completions(lora_resident: Resident, writing: Resident, tmp_path: Path) -> None:
    weights = []
    for name, resident in (("without", lora_resident), ("with", writing)):
        spec, budget = toy_training.spec(DPO, settings()), plan(8, {2, 4})
        train_trial(resident, spec, budget, toy_training.Recorder(), folder=tmp_path / name)
        newest = newest_checkpoint(tmp_path / name)
        assert newest is not None
        weights.append(load_file(newest.path / "adapter_model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


class Dying(Recorder):
    """Its process ends at step 6."""

    def send(self, report: Report) -> Answer:
        if report.step == 6:
            raise ConnectionError("nobody listens")
        return super().send(report)


def test_a_trial_that_was_killed_reports_the_same_numbers(writing: Resident, tmp_path: Path) -> None:
    spec, budget = toy_training.spec(DPO, settings()), plan(8, {4, 6})
    whole, broken, resumed = Recorder(), Dying(), Recorder()
    train_trial(writing, spec, budget, whole, folder=tmp_path / "whole")
    with pytest.raises(ConnectionError):
        train_trial(writing, spec, budget, broken, folder=tmp_path / "broken")
    train_trial(writing, spec, budget, resumed, folder=tmp_path / "broken")
    assert resumed.reports[0].step == 5
    for metric in ("eval_length_ratio", "eval_reward", "eval_reward_se"):
        told = [report.metrics[metric] for report in (*broken.reports, *resumed.reports) if report.evaluated]
        assert told == [report.metrics[metric] for report in whole.reports if report.evaluated], metric


def test_a_search_without_a_reference_completes_prompts_and_runs_no_reference(toy_model: Path) -> None:
    training = settings()
    resident = toy_training.resident(toy_model, training, with_reference=False, completer=completer())
    _, channel = toy_training.run(resident, ORPO, training, plan(2))
    assert channel.reports[0].metrics["eval_length_ratio"] == 1.0
    assert channel.reports[0].metrics["reference_tokens"] == 0
    assert channel.reports[-1].metrics["eval_length_ratio"] > 0


def test_a_policy_whose_logits_are_not_finite_has_diverged(toy_model: Path) -> None:
    resident = toy_training.resident(toy_model, settings(), completer=Diverging([Completed(5, None)]))
    outcome, channel = toy_training.run(resident, DPO, settings(), plan(2))
    assert outcome is not None and (outcome.state, outcome.reason) == (State.DIVERGED, "step 2: no logits")
    assert "eval_length_ratio" not in channel.reports[-1].metrics


def test_a_reward_of_ones_own_that_has_changed_since_is_refused(writing: Resident) -> None:
    asked = completer(content="sha256 of another file")
    with pytest.raises(InputError, match=r"toy_reward:characters: must stay as it was"):
        asked.complete(writing.model, writing.tokenizer, rank=0, world=1)
