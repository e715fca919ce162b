"""The model that a warm-up makes, against a bare loop and as the start of trials."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from datasets import Dataset
from torch import Tensor
from toy_training import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.errors import InputError
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.warm_up import LOSSES, warm_up

STEPS, PAIRS, RATE = 3, 4, 3e-3


def warmed(model: Path, folder: Path, *, lora: dict[str, Any] | None, **changes: Any) -> list[float]:
    rule = {"rule": "brier", "steps": STEPS, "learning_rate": RATE} | changes
    training = settings(lora=lora, warm_up=rule, max_grad_norm=0)
    return warm_up(str(model), Dataset.from_list(toy.pairs(48)), training, folder, threads=torch.get_num_threads())


def bare_loop(model_folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Mean Brier loss per token before each step of AdamW on whole sequences, and the weights at the end."""
    policy = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = toy.pairs(48)
    order = toy_training.order(model_folder, rows, steps=STEPS, pairs_per_step=PAIRS, seed=0)
    optimizer, means = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0), []
    for step in range(STEPS):
        losses: list[Tensor] = []
        for index in order[step * PAIRS : (step + 1) * PAIRS]:
            start = len(tokenizer(rows[index]["prompt"])["input_ids"])
            text = rows[index]["prompt"] + rows[index]["chosen"] + tokenizer.eos_token
            ids = torch.tensor(tokenizer(text)["input_ids"])
            p_TV = torch.softmax(policy(input_ids=ids[None]).logits[0, start - 1 : -1], dim=1)
            losses.append((p_TV**2).sum(dim=1) - 2 * p_TV.gather(1, ids[start:, None])[:, 0])
        mean = torch.cat(losses).mean()
        mean.backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(mean.item())
    return means, policy.state_dict()


def test_all_weights_are_those_of_a_bare_loop(toy_model: Path, tmp_path: Path) -> None:
    losses = warmed(toy_model, tmp_path / "warm", lora=None)
    expected, weights = bare_loop(toy_model)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert json.loads((tmp_path / "warm" / LOSSES).read_text()) == losses
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "warm", dtype=torch.float32).state_dict()
    # Adam divides by the size of a gradient, so that one near 0 may turn its step around; all others agree.
    close = [torch.isclose(found[name], weights[name], atol=1e-4).double().mean() for name in weights]
    assert min(close) > 0.98


def test_an_adapter_is_merged_into_what_it_was_put_on_and_nothing_else_changes(toy_model: Path, tmp_path: Path) -> None:
    warmed(toy_model, tmp_path / "warm", lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (toy_model, tmp_path / "warm")
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed == {name for name in before if "q_proj" in name}


def test_trials_start_at_its_result(toy_model: Path, tmp_path: Path) -> None:
    warmed(toy_model, tmp_path / "warm", lora=None)
    resident = Resident.load(str(tmp_path / "warm"), toy_training.pairs(), settings())
    _, channel = toy_training.run(resident, {"name": "dpo"}, settings(), toy_training.plan(1))
    assert channel.reports[1].metrics["train_margin"] == pytest.approx(0, abs=1e-3)


def test_one_that_is_not_finite_is_refused_and_leaves_no_model(toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.warm_up: step 2 must be finite"):
        warmed(toy_model, tmp_path / "warm", lora=None, learning_rate=1e30)
    assert not list(tmp_path.iterdir())
