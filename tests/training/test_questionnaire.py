"""A trial that has used up its budget is asked, and is the same trial as one that nobody asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from safetensors.torch import load_file
from toy_training import DPO, Recorder, plan, settings

from tune_dlrml.errors import StorageError
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Question
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial

QUESTIONS = (Question(1, "writing", ("review 1:", "and 2:")), Question(2, "math", ("review 3:", "and 4:")))
STEPS = 8


class Asked:
    """An questionnaire that notes when it comes, and what it finds in the trial's folder then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints: list[int] = []

    def answer(self, policy: Any, tokenizer: Any, *, rank: int, world: int, **_: Any) -> tuple[int, int]:
        newest = newest_checkpoint(self.folder)
        self.checkpoints.append(0 if newest is None else newest.step)
        return rank, world

    def keep(self, folder: Path, shares: Any) -> None:
        (folder / "answers").write_text(str(list(shares)))


class Failing(Asked):
    def answer(self, policy: Any, tokenizer: Any, *, rank: int, world: int, **_: Any) -> tuple[int, int]:
        raise torch.OutOfMemoryError("the cache does not fit")


class Full(Asked):
    def keep(self, folder: Path, shares: Any) -> None:
        raise OSError(28, "No space left on device", str(folder))


def trained(resident: Resident, folder: Path, questionnaire: Any, save_steps: int = 4) -> TrialOutcome | None:
    budget = replace(plan(STEPS, save_steps=save_steps), questionnaire=questionnaire)
    return train_trial(resident, toy_training.spec(DPO, settings()), budget, Recorder(), folder=folder)


def test_a_trial_is_asked_once_at_its_full_budget_before_its_last_checkpoint_is_made(lora_resident, tmp_path):
    asked = Asked(tmp_path)
    outcome = trained(lora_resident, tmp_path, asked)
    assert outcome is not None and outcome.state is State.COMPLETE
    assert asked.checkpoints == [4]
    assert (tmp_path / "answers").read_text() == "[(0, 1)]"
    assert outcome.seconds["answering"] >= 0
    again = trained(lora_resident, tmp_path, asked)
    assert again is not None and again.state is State.COMPLETE
    assert asked.checkpoints == [4], "what is complete was asked before its checkpoint was"


def test_the_weights_are_those_of_a_trial_without_questions(lora_resident, tmp_path):
    questionnaire = Questionnaire(QUESTIONS, max_new_tokens=4, batch_size=2, seed=0)
    weights = []
    for name, asked in (("asked", questionnaire), ("left", None)):
        folder = tmp_path / name
        trained(lora_resident, folder, asked)
        newest = newest_checkpoint(folder)
        assert newest is not None and newest.step == STEPS
        weights.append(load_file(newest.path / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [len(answers.turns) for answers in questionnaire.answers(tmp_path / "asked") or []] == [2, 2]


def test_a_trial_that_cannot_answer_is_complete_by_its_metric_all_the_same(lora_resident, tmp_path, caplog):
    outcome = trained(lora_resident, tmp_path, Failing(tmp_path))
    assert outcome is not None and outcome.state is State.COMPLETE
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == STEPS
    assert "has no answers" in caplog.text and "the cache does not fit" in caplog.text
    assert "answering" not in outcome.seconds


def test_a_full_disk_is_no_trials_fault(lora_resident, tmp_path):
    with pytest.raises(StorageError, match="No space left on device"):
        trained(lora_resident, tmp_path, Full(tmp_path))


def test_answers_to_other_questions_are_no_answers_to_these(tmp_path):
    asked = Questionnaire(QUESTIONS, max_new_tokens=4, batch_size=2, seed=0)
    tmp_path.joinpath(asked.path(tmp_path).name).write_text("")
    for other in (replace(asked, questions=QUESTIONS[:1]), replace(asked, max_new_tokens=5), replace(asked, seed=1)):
        assert other.answers(tmp_path) is None
    assert replace(asked, batch_size=1).path(tmp_path) == asked.path(tmp_path)
