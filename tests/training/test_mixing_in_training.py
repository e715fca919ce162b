"""A learnable beta_mix against a bare loop: full logits, the product form of the loss, both optimizers written out."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from torch import Tensor
from toy_training import plan, settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trainer import PreferenceTrainer

STEPS, BETA_KL, TAU, C_INIT, MIX_RATE = 4, 0.1, 0.05, 4.0, 0.05
BOUNDED = {"c_init": C_INIT, "c_bounds": [1, 9.1]}
RAW = {"init": C_INIT * TAU * BETA_KL, "c_bounds": None}


def learnable(mix: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "dlrml",
        "beta_kl": BETA_KL,
        "tau": TAU,
        "beta_mix": {"learnable": True, "learning_rate": MIX_RATE, **mix},
    }


def matching(**changes: Any) -> TrainingConfig:
    schedule = {"lr_scheduler_type": "linear", "learning_rate": 1e-3}
    return settings(lora=None, weight_decay=0.1, gradient_accumulation_steps=2, **schedule, **changes)


@dataclass
class Trace:
    gradients: list[float] = field(default_factory=list)
    thetas: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def beta_mix_of(theta: Tensor, mix: dict[str, Any]) -> Tensor:
    if mix["c_bounds"] is None:
        return theta
    low, high = mix["c_bounds"]
    return TAU * BETA_KL * (low + (high - low) * torch.sigmoid(theta))


def bare_loop(model_folder: Path, training: TrainingConfig, mix: dict[str, Any]) -> Trace:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def log_prob(scored: Any, pair: dict[str, str], side: str) -> Tensor:
        start = len(tokenizer(pair["prompt"])["input_ids"])
        ids = torch.tensor([tokenizer(pair["prompt"] + pair[side] + tokenizer.eos_token)["input_ids"]])
        rows = torch.log_softmax(scored(input_ids=ids).logits[0], dim=-1)[start - 1 : -1]
        return rows.gather(1, ids[0, start:, None]).sum()

    def margin(pair: dict[str, str]) -> Tensor:
        with torch.no_grad():
            reference = log_prob(base, pair, "chosen") - log_prob(base, pair, "rejected")
        return log_prob(model, pair, "chosen") - log_prob(model, pair, "rejected") - reference

    low_high = mix["c_bounds"]
    start = mix["init"] if low_high is None else math.log((C_INIT - low_high[0]) / (low_high[1] - C_INIT))
    theta = torch.tensor(start, requires_grad=True)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(  # transformers leaves the weights of norms undecayed
        [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.0,
        eps=training.adam_epsilon,
    )
    first_moment = second_moment = 0.0
    rows = toy.pairs(48)
    order = toy_training.order(model_folder, rows, steps=STEPS, pairs_per_step=8, seed=training.seed)
    trace = Trace()
    for step in range(1, STEPS + 1):
        pairs = [rows[index] for index in order[8 * step - 8 : 8 * step]]
        rho = torch.stack([margin(pair) for pair in pairs])
        z, m = BETA_KL * rho, torch.sigmoid(beta_mix_of(theta, mix) * rho / TAU)
        loss = ((1 - m) * torch.log1p(torch.exp(-z)) + m * torch.exp(-z)).mean()
        optimizer.zero_grad()
        theta.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1 - (step - 1) / STEPS)
        optimizer.step()
        gradient = theta.grad.item()
        first_moment = 0.9 * first_moment + 0.1 * gradient
        second_moment = 0.999 * second_moment + 0.001 * gradient**2
        unbiased = first_moment / (1 - 0.9**step), second_moment / (1 - 0.999**step)
        with torch.no_grad():
            theta -= MIX_RATE * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        trace.gradients.append(gradient)
        trace.thetas.append(theta.item())
        trace.losses.append(loss.item())
    return trace


@pytest.mark.parametrize(
    ("mix", "changes"),
    [(BOUNDED, {}), (RAW, {}), (BOUNDED, {"max_grad_norm": 0.05})],
    ids=["bounded", "raw", "policy clipped hard"],
)
def test_gradient_and_value_of_beta_mix_equal_a_bare_loops(
    full_resident: Resident,
    toy_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    mix: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    ours = Trace()
    step_both = PreferenceTrainer.before_optimizer_step

    def traced(trainer: PreferenceTrainer) -> None:
        theta = trainer.preference_loss.mix.theta
        ours.gradients.append(theta.grad.item())
        step_both(trainer)
        ours.thetas.append(theta.item())

    monkeypatch.setattr(PreferenceTrainer, "before_optimizer_step", traced)
    ours.losses = toy_training.run(full_resident, learnable(mix), matching(**changes), plan(STEPS))[1].curve()
    bare = bare_loop(toy_model, matching(**changes), mix)
    assert ours.losses == pytest.approx(bare.losses, rel=1e-5)
    assert ours.gradients == pytest.approx(bare.gradients, rel=1e-4, abs=1e-7)
    assert ours.thetas == pytest.approx(bare.thetas, rel=1e-4)
    assert all(abs(gradient) > 1e-3 for gradient in bare.gradients[1:])


@pytest.mark.parametrize("mix", [BOUNDED, RAW], ids=["bounded", "raw"])
def test_every_report_has_beta_mix_and_c_after_its_step(
    full_resident: Resident, toy_model: Path, mix: dict[str, Any]
) -> None:
    reports = toy_training.run(full_resident, learnable(mix), matching(), plan(STEPS))[1].reports
    thetas = bare_loop(toy_model, matching(), mix).thetas
    start = C_INIT * TAU * BETA_KL
    expected = [start, *(beta_mix_of(torch.tensor(theta), mix).item() for theta in thetas)]
    assert [report.metrics["beta_mix"] for report in reports] == pytest.approx(expected, rel=1e-4)
    assert [report.metrics["c"] for report in reports] == pytest.approx(
        [b / (TAU * BETA_KL) for b in expected], rel=1e-4
    )


def test_weight_decay_does_not_pull_at_beta_mix(lora_resident: Resident) -> None:
    """In the first step every margin is 0, so that nothing but decay could move it."""
    _, channel = toy_training.run(lora_resident, learnable(RAW), settings(weight_decay=1.0), plan(1))
    assert channel.reports[-1].metrics["c"] == channel.reports[0].metrics["c"] == pytest.approx(C_INIT)


def test_a_fixed_beta_mix_stays_as_configured(lora_resident: Resident) -> None:
    loss = {"name": "dlrml", "beta_kl": BETA_KL, "beta_mix": 0.02, "tau": TAU}
    reports = toy_training.run(lora_resident, loss, settings(), plan(3))[1].reports
    assert [report.metrics["beta_mix"] for report in reports] == pytest.approx([0.02] * 4)
    assert [report.metrics["c"] for report in reports] == pytest.approx([4.0] * 4)
