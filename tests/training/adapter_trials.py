"""Trials that show whether a kind of adapter or base starts at its reference, leaves nothing behind and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from safetensors.torch import load_file
from toy_training import DPO, Recorder, plan

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial

STEPS, SAVED, STOP = 6, 3, 4


def trained(resident: Resident, training: TrainingConfig, folder: Path, stop_at: int | None = None) -> Recorder:
    channel, budget = Recorder(stop_at), plan(STEPS, {STOP}, save_steps=SAVED)
    train_trial(resident, toy_training.spec(DPO, training), budget, channel, folder=folder)
    return channel


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.step == STEPS
    return load_file(newest.path / "adapter_model.safetensors")


def assert_starts_at_its_reference_and_repeats(resident: Resident, training: TrainingConfig, folder: Path) -> Recorder:
    """Once whole, and once more in the used group, ended in the middle."""
    whole = trained(resident, training, folder / "whole")
    assert whole.curve("train_margin")[0] == pytest.approx(0, abs=2e-5 if not training.bf16 else 0.1)
    assert abs(whole.curve("train_margin")[-1]) > 0.05
    trained(resident, training, folder / "ended", stop_at=STOP)
    rest = trained(resident, training, folder / "ended")
    assert rest.curve() == whole.curve()[SAVED:]
    ours, theirs = weights(folder / "whole"), weights(folder / "ended")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert not [name for name, _ in resident.model.named_modules() if "lora" in name or "modules_to_save" in name]
    return whole


def plain_margins(policy: Any, tokenizer: Any) -> list[float]:
    """Of the toy's held-out pairs, sequence by sequence, in nats."""

    def log_prob(prompt: str, answer: str) -> float:
        given, following = (tokenizer(text)["input_ids"] for text in (prompt, answer + "</s>"))
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([given + following])).logits[0].double()
        scored = torch.log_softmax(logits, -1)[len(given) - 1 : -1]
        return float(scored.gather(1, torch.tensor(following)[:, None]).sum())

    def ratio(pair: dict[str, str]) -> float:
        return log_prob(pair["prompt"], pair["chosen"]) - log_prob(pair["prompt"], pair["rejected"])

    margins = []
    for pair in toy.pairs(16, seed=1):
        with policy.disable_adapter():
            reference = ratio(pair)
        margins.append(ratio(pair) - reference)
    return margins
