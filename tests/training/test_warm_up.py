"""The model that a warm-up makes, against a bare loop and as the start of trials."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from torch import Tensor
from toy_training import settings
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from tune_dlrml.errors import InputError
from tune_dlrml.training import warm_up as module
from tune_dlrml.training.arguments import optimizer_of, trl_config
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.warm_up import LOSSES, warm_up

STEPS, PAIRS, RATE = 3, 4, 3e-3


def warmed(
    model: Path, folder: Path, *, lora: dict[str, Any] | None, rate: float = RATE, workers: int = 1, **changes: Any
) -> list[float]:
    rule = {"rule": "brier", "steps": STEPS, "learning_rate": rate}
    training = settings(**{"lora": lora, "warm_up": rule, "max_grad_norm": 0} | changes)
    pairs, threads = toy_training.rows(model, toy.pairs(48)), torch.get_num_threads()
    return warm_up(str(model), pairs, training, folder, workers=workers, threads=threads)


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
    resident = Resident.load(str(tmp_path / "warm"), toy_training.pairs(toy_model), settings())
    _, channel = toy_training.run(resident, {"name": "dpo"}, settings(), toy_training.plan(1))
    assert channel.reports[1].metrics["train_margin"] == pytest.approx(0, abs=1e-3)


def test_one_that_is_not_finite_is_refused_and_leaves_no_model(toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.warm_up: step 2 must be finite"):
        warmed(toy_model, tmp_path / "warm", lora=None, rate=1e30)
    assert not list(tmp_path.iterdir())


def test_each_worker_of_a_trial_adds_its_pairs_to_a_step(toy_model: Path, tmp_path: Path) -> None:
    # Two workers of two pairs are one of four: the same pairs in the same order, the same weights.
    two = warmed(toy_model, tmp_path / "two", lora=None, workers=2, per_device_train_batch_size=PAIRS // 2)
    assert two == pytest.approx(bare_loop(toy_model)[0], rel=1e-5)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_the_optimizer_is_that_of_a_trial(toy_model: Path, optim: str) -> None:
    training = settings(lora=None, optim=optim, weight_decay=0.1, adam_beta1=0.7, adam_beta2=0.8, learning_rate=1e-3)
    policy = AutoModelForCausalLM.from_pretrained(toy_model)
    made = optimizer_of(policy, training)
    trainer = Trainer(policy, trl_config(training, steps=1, output_dir=".", on_cpu=True, gradient_checkpointing=False))
    expected = trainer.create_optimizer()
    assert type(made) is type(expected) and made.defaults == expected.defaults
    for ours, theirs in zip(made.param_groups, expected.param_groups, strict=True):
        assert {id(weight) for weight in ours["params"]} == {id(weight) for weight in theirs["params"]}
        assert ours["weight_decay"] == theirs["weight_decay"]


def test_norms_are_not_decayed_as_they_are_not_in_a_trial(toy_model: Path, tmp_path: Path) -> None:
    warmed(toy_model, tmp_path / "warm", lora=None, rate=1e-9, weight_decay=1e7)  # 1 % of a weight a step
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (toy_model, tmp_path / "warm")
    )
    for name in before:
        kept = 1.0 if "norm" in name else 0.99**STEPS
        torch.testing.assert_close(after[name], kept * before[name], rtol=1e-4, atol=1e-6)


def test_attention_is_that_of_the_trials(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, load = [], module.load_model
    monkeypatch.setattr(module, "load_model", lambda *a, **k: asked.append(k["attn_implementation"]) or load(*a, **k))
    eager = warmed(toy_model, tmp_path / "warm", lora=None, attn_implementation="eager")
    assert asked == ["eager"] and eager == pytest.approx(bare_loop(toy_model)[0], rel=1e-4)


@pytest.mark.parametrize("disable", [True, False])
def test_dropout_acts_where_it_does_in_a_trial(toy_model: Path, tmp_path: Path, disable: bool) -> None:
    dropout = {} if disable else {"lora_dropout": 0.5}
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], **dropout}
    losses = warmed(toy_model, tmp_path / "warm", lora=adapter, rate=0.1, disable_dropout=disable)
    plain = warmed(toy_model, tmp_path / "plain", lora={**adapter, "lora_dropout": 0.0}, rate=0.1)
    assert (losses == pytest.approx(plain, rel=1e-6)) is disable
