"""Trials that explode, and single steps whose gradient is not finite."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from torch import Tensor
from toy_training import DPO, LEARNABLE, LORA, Recorder, plan, settings

from tune_dlrml.config import TrainingConfig
from tune_dlrml.losses.preference import PairBatch, PreferenceLoss
from tune_dlrml.records import State
from tune_dlrml.training import trial
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trainer import PreferenceTrainer

EXPLODING = 1e20


@pytest.fixture(scope="module")
def padded_full_resident(toy_model: Path) -> Resident:
    """Pairs of one padded batch are ruined together; in a packed row one may come out finite by itself."""
    return toy_training.resident(toy_model, settings(lora=None, shared_prompt=False))


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("nonfinite_step", ["skip", "apply"])
@pytest.mark.parametrize("loss", [DPO, LEARNABLE], ids=["dpo", "learnable"])
def test_an_exploding_learning_rate_ends_as_diverged_in_the_step_that_shows_it(
    lora_resident: Resident,
    padded_full_resident: Resident,
    lora: dict[str, Any] | None,
    nonfinite_step: str,
    loss: dict[str, Any],
) -> None:
    """Step 1 is sound and ruins the weights; step 2 is the one bad step of 20 that is allowed; step 3 is too many."""
    training = settings(learning_rate=EXPLODING, lora=lora, logging_steps=8)
    outcome, channel = toy_training.run(
        lora_resident if lora else padded_full_resident, loss, training, plan(8, {4}, nonfinite_step=nonfinite_step)
    )
    assert outcome is not None and outcome.state is State.DIVERGED
    assert outcome.reason == "step 3: 2 of the last 3 steps were not finite (limit 0.05 x window 20)"
    assert [(report.step, report.evaluated) for report in channel.reports] == [(0, True), (3, False)]
    metrics = channel.reports[-1].metrics
    assert metrics["train_loss"] == pytest.approx(0.6931 if loss is DPO else 0.8466, abs=1e-4)  # of step 1 alone
    assert metrics["nonfinite_loss_fraction"] == pytest.approx(2 / 3)
    # Embeddings of tokens that no pair holds keep a gradient of 0.
    assert metrics["nonfinite_grad_fraction"] == pytest.approx(2 / 3, abs=0.0 if lora else 0.12)


def test_a_policy_that_is_not_finite_at_a_rung_ends_as_diverged(lora_resident: Resident) -> None:
    lenient = plan(8, {2}, nonfinite_fraction=1.0)
    outcome, channel = toy_training.run(lora_resident, DPO, settings(learning_rate=EXPLODING), lenient)
    assert outcome is not None and outcome.state is State.DIVERGED
    assert outcome.reason == "step 2: 16 of 16 held-out margins are not finite, the KL is nan"
    assert [(report.step, report.evaluated) for report in channel.reports] == [(0, True), (1, False), (2, False)]


@pytest.mark.parametrize("nonfinite_step", ["skip", "apply"])
def test_a_learnt_c_that_is_not_finite_ends_as_diverged(lora_resident: Resident, nonfinite_step: str) -> None:
    mix = {"learnable": True, "init": 0.02, "c_bounds": None, "learning_rate": 1e37}
    loss = {"name": "dlrml", "beta_kl": 0.1, "beta_mix": mix}
    lenient = plan(8, {4}, nonfinite_fraction=1.0, loss_factor=1e30, nonfinite_step=nonfinite_step)
    outcome, channel = toy_training.run(lora_resident, loss, settings(), lenient)
    assert outcome is not None and outcome.state is State.DIVERGED
    assert "c" not in channel.reports[-1].metrics


class FaultAt(PreferenceLoss):
    """A loss that is NaN for the first pair of one micro-batch."""

    def __init__(self, inner: PreferenceLoss, call: int) -> None:
        super().__init__(beta_kl=inner.beta_kl, mix=inner.mix)
        self.inner, self.call, self.calls = inner, call, 0

    def forward(self, pairs: PairBatch) -> Tensor:
        self.calls += 1
        loss_B = self.inner(pairs)
        fault = torch.ones_like(loss_B)
        if self.calls == self.call:
            fault[0] = math.nan
        return loss_B * fault

    def geometry(self) -> Any:
        return self.inner.geometry()


def faulty_run(
    resident: Resident, monkeypatch: pytest.MonkeyPatch, training: TrainingConfig, loss: dict[str, Any], mode: str
) -> tuple[list[list[Tensor]], list[list[Tensor]], Recorder]:
    """Weights and Adam's moments after each of 4 steps, the second of them with one NaN in its second micro-batch."""
    build = trial.build_loss
    monkeypatch.setattr(trial, "build_loss", lambda config: FaultAt(build(config), call=4))
    weights, moments = [], []
    last_step = PreferenceTrainer.last_step

    def remember(trainer: PreferenceTrainer, learning_rate: float) -> Any:
        if trainer.state.global_step > len(weights):
            trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
            mix = trainer.preference_loss.mix
            weights.append([tensor.detach().clone() for tensor in (*trained, *(mix.parameters() if mix else ()))])
            states = [*trainer.optimizer.state.values()]
            moments.append([value.clone() for state in states for value in state.values()])
        return last_step(trainer, learning_rate)

    monkeypatch.setattr(PreferenceTrainer, "last_step", remember)
    lenient = plan(4, nonfinite_fraction=1.0, nonfinite_step=mode)
    _, channel = toy_training.run(resident, loss, training, lenient)
    return weights, moments, channel


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("loss", [DPO, LEARNABLE], ids=["dpo", "learnable"])
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_skipped_step_leaves_weights_and_moments_bit_for_bit(
    lora_resident: Resident,
    full_resident: Resident,
    monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, Any] | None,
    loss: dict[str, Any],
) -> None:
    training = settings(lora=lora, weight_decay=0.5, gradient_accumulation_steps=2)
    resident = lora_resident if lora else full_resident
    weights, moments, channel = faulty_run(resident, monkeypatch, training, loss, "skip")
    assert same(weights[1], weights[0]) and same(moments[1], moments[0])
    assert not same(weights[2], weights[1]) and not same(moments[2], moments[1])
    assert all(tensor.isfinite().all() for tensor in weights[3])
    assert channel.curve("nonfinite_loss_fraction") == [0, 1 / 8, 0, 0]
    assert channel.curve("nonfinite_grad_fraction") == [0, 1 if lora else pytest.approx(0.9, abs=0.1), 0, 0]
    assert ["grad_norm" in report.metrics for report in channel.reports[1:]] == [True, False, True, True]


def test_an_applied_step_ruins_the_weights_as_in_trl(lora_resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    training = settings(gradient_accumulation_steps=2)
    weights, _, channel = faulty_run(lora_resident, monkeypatch, training, LEARNABLE, "apply")
    assert not any(tensor.isfinite().any() for tensor in weights[1])
    assert channel.curve("nonfinite_loss_fraction") == [0, 1 / 8, 1, 1]
