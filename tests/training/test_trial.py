"""One trial after another in one process: nothing leaks, and what each reports."""

import gc
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import toy
import toy_training
from torch import Tensor, nn
from toy_training import DISCOPOP, DPO, LEARNABLE, LORA, Recorder, plan, settings

from tune_dlrml.config import TrainingConfig
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.records import Answer, Report, State
from tune_dlrml.training import trial
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trainer import PreferenceTrainer

EXPLODING = 1e20
WITH_DROPOUT = {"lora": {**LORA, "lora_dropout": 0.2}, "disable_dropout": False}


def untimed(reports: list[Report]) -> list[tuple[int, bool, bool, dict[str, float]]]:
    """Reports without what the clock and the group's past decide."""
    return [
        (
            report.step,
            report.evaluated,
            report.rung,
            {key: value for key, value in report.metrics.items() if key not in toy_training.OF_THE_GROUP},
        )
        for report in reports
    ]


@pytest.mark.parametrize("changes", [WITH_DROPOUT, {"lora": None}], ids=["lora", "full"])
def test_a_trial_is_bit_identical_first_in_a_fresh_group_and_after_every_end_in_a_used_one(
    toy_model: Path, changes: dict[str, Any]
) -> None:
    training = settings(**changes)
    fresh, used = (toy_training.resident(toy_model, training) for _ in range(2))
    budget = plan(8, {4})
    _, first = toy_training.run(fresh, DISCOPOP, training, budget)

    states = [
        toy_training.run(used, DPO, training, budget)[0],
        toy_training.run(used, DPO, training.at({"learning_rate": EXPLODING}), plan(8, nonfinite_step="apply"))[0],
        toy_training.run(used, LEARNABLE, training.at({"seed": 7, "gradient_accumulation_steps": 2}), budget)[0],
        toy_training.run(used, DPO, training, budget, stop_at=4)[0],
    ]
    assert [outcome and outcome.state for outcome in states] == [State.COMPLETE, State.DIVERGED, State.COMPLETE, None]
    raising(used, training)
    unprepared(used, training)
    _, last = toy_training.run(used, DISCOPOP, training, budget)

    assert untimed(last.reports) == untimed(first.reports)
    assert first.curve()[-1] != first.curve()[0]


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All of a model that a trial could change, but the weights and the buffers."""
    found: dict[str, Any] = {
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "parameters": {
            name: (parameter.requires_grad, parameter.grad, parameter.dtype, parameter.data_ptr())
            for name, parameter in model.named_parameters()
        },
    }
    for name, module in model.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if "hook" in key and hasattr(value, "__len__")}
        found[name] = (type(module), module.training, vars(module).get("forward"), hooks, sorted(vars(module)))
    return found


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


class Broken(Recorder):
    """A channel that fails at the report of step 3."""

    def send(self, report: Report) -> Answer:
        if report.step == 3:
            raise ConnectionError("nobody listens")
        return super().send(report)


def raising(resident: Resident, training: TrainingConfig) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ConnectionError, match="nobody listens"):
        trial.train_trial(resident, toy_training.spec(DPO, training), plan(), Broken(), folder=Path(folder))


def resumed(resident: Resident, training: TrainingConfig) -> None:
    """A trial that was killed at step 3 and goes on from step 2."""
    budget, spec = plan(save_steps=2), toy_training.spec(LEARNABLE, training)
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ConnectionError, match="nobody listens"):
            trial.train_trial(resident, spec, budget, Broken(), folder=Path(folder))
        channel = Recorder()
        trial.train_trial(resident, spec, budget, channel, folder=Path(folder))
    assert [report.step for report in channel.reports] == [3, 4, 5, 6, 7, 8]


def unprepared(resident: Resident, training: TrainingConfig) -> None:
    """TRL refuses the output layer as a target after PEFT has wrapped it."""
    if training.lora is None:
        return
    with pytest.raises(ValueError, match="lm_head"):
        toy_training.run(resident, DPO, training.at({"lora.target_modules": ["q_proj", "lm_head"]}))


ENDS: dict[str, Callable[[Resident, TrainingConfig], Any]] = {
    "complete": lambda model, training: toy_training.run(model, DPO, training),
    "learnable": lambda model, training: toy_training.run(model, LEARNABLE, training),
    "stopped": lambda model, training: toy_training.run(model, DPO, training, stop_at=2),
    "diverged": lambda model, training: toy_training.run(
        model, DPO, training.at({"learning_rate": EXPLODING}), plan(nonfinite_step="apply")
    ),
    "checkpointing": lambda model, training: toy_training.run(
        model, DPO, training.at({"gradient_checkpointing": True}), plan(3)
    ),
    "raised": raising,
    "resumed": resumed,
    "unprepared": unprepared,
}


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("end", ENDS)
def test_the_base_model_is_the_same_before_and_after(
    lora_resident: Resident, full_resident: Resident, end: str, lora: dict[str, Any] | None
) -> None:
    resident = lora_resident if lora else full_resident
    probe = torch.arange(3, 43).reshape(2, 20)

    def state() -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
        with torch.no_grad():
            return fingerprint(resident.model), tensors(resident.model), resident.model(probe).logits

    marks, weights, logits = state()
    ENDS[end](resident, settings(lora=lora))
    marks_after, weights_after, logits_after = state()
    assert marks_after == marks
    assert weights.keys() == weights_after.keys()
    assert all(torch.equal(weights_after[name], tensor) for name, tensor in weights.items())
    assert torch.equal(logits_after, logits)


@pytest.mark.parametrize(
    "training",
    [settings(), settings(lora=None), settings(bf16=True)],
    ids=["lora", "full", "bf16"],
)
def test_nothing_of_a_trial_stays_in_memory(toy_model: Path, training: TrainingConfig) -> None:
    resident = toy_training.resident(toy_model, training)

    def alive() -> tuple[int, int]:
        # As train_trial leaves it: what it did not collect itself counts.
        objects = gc.get_objects()
        return (
            sum(issubclass(type(thing), Tensor) for thing in objects),
            sum(issubclass(type(thing), nn.Module) for thing in objects),
        )

    toy_training.run(resident, DPO, training, plan(1))
    gc.collect()
    before = alive()
    for loss in (DPO, LEARNABLE, DISCOPOP):
        toy_training.run(resident, loss, training, plan(3, {2}))
        assert alive() == before
    resumed(resident, training)
    assert alive() == before


def test_step_zero_is_reported_before_any_forward_pass(
    lora_resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreferenceTrainer, "train", lambda trainer: pytest.fail("training began"))
    outcome, channel = toy_training.run(lora_resident, DISCOPOP, settings(), stop_at=0)
    assert outcome is None
    (report,) = channel.reports
    assert (report.step, report.evaluated, report.rung) == (0, True, False)
    assert (
        report.metrics
        == {
            "eval_accuracy": 0.5,
            "eval_accuracy_se": 0.0,
            "eval_accuracy_lc": 0.5,
            "eval_accuracy_lc_se": 0.0,
            "eval_auc": 0.5,
            "eval_auc_se": 0.0,
            "eval_margin": 0.0,
            "eval_separation": 0.0,
            "eval_separation_se": 0.0,
            "eval_kl": 0.0,
            **{f"eval_margin_p{percent}": 0.0 for percent in ("00", "05", "25", "50", "75", "95", "100")},
            "c": pytest.approx(20.0),
            "beta_mix": pytest.approx(0.1),
            "reference_tokens": ANY,
            "reference_tokens_saved": ANY,
            "gradient_checkpointing": 0.0,
            "activation_gib": lora_resident.activations.needed(4) / 2**30,
        }
        | lora_resident.counts
    )


def test_reports_come_at_logging_steps_and_evaluations_at_rungs_and_the_last_step_only(
    lora_resident: Resident,
) -> None:
    outcome, channel = toy_training.run(lora_resident, DPO, settings(logging_steps=3), plan(8, {4, 6}))
    found = [(r.step, r.evaluated, r.rung, "eval_accuracy" in r.metrics) for r in channel.reports]
    assert found == [
        (0, True, False, True),
        (3, False, False, False),
        (4, True, True, True),
        (6, True, True, True),
        (8, True, False, True),
    ]
    assert outcome is not None
    assert (outcome.number, outcome.state, outcome.reason) == (0, State.COMPLETE, "all 8 steps done")
    assert outcome.seconds.keys() == {"evaluation", "waiting", "saving", "to_first_step"}


@pytest.mark.parametrize("rung", [2, 5])
def test_a_stop_at_a_rung_is_obeyed_before_the_next_step(
    lora_resident: Resident, monkeypatch: pytest.MonkeyPatch, rung: int
) -> None:
    forwards = []
    score = PreferenceTrainer._compute_loss

    def counting(trainer: PreferenceTrainer, *args: Any) -> Tensor:
        forwards.append(trainer.state.global_step)
        return score(trainer, *args)

    monkeypatch.setattr(PreferenceTrainer, "_compute_loss", counting)
    outcome, channel = toy_training.run(lora_resident, DPO, settings(), plan(8, {rung}), stop_at=rung)
    assert outcome is None
    assert channel.reports[-1].step == rung
    assert forwards == list(range(rung))


TRAINING_METRICS = {
    "train_loss",
    "train_accuracy",
    "train_margin",
    "train_chosen_logps",
    "train_rejected_logps",
    "grad_norm",
    "nonfinite_loss_fraction",
    "nonfinite_grad_fraction",
    "learning_rate",
    "tokens",
    "steps_per_second",
}
OBJECTIVES = ("eval_accuracy", "eval_accuracy_lc", "eval_auc", "eval_margin", "eval_separation")
HELD_OUT_METRICS = {
    *(f"{name}{end}" for name in OBJECTIVES for end in ("", "_se")),
    *(f"eval_margin_p{percent}" for percent in ("00", "05", "25", "50", "75", "95", "100")),
    "eval_chosen_logps",
    "eval_rejected_logps",
    "eval_kl",
    "eval_trap_fraction",
}


@pytest.mark.parametrize(
    ("loss", "shape"), [(DPO, set()), (DISCOPOP, {"c", "beta_mix"}), (LEARNABLE, {"c", "beta_mix"})]
)
def test_every_report_carries_every_metric(lora_resident: Resident, loss: dict[str, Any], shape: set[str]) -> None:
    _, channel = toy_training.run(lora_resident, loss, settings(), plan(4, {2}))
    for report in channel.reports[1:]:
        held_out = HELD_OUT_METRICS if report.step in (2, 4) else set()
        assert report.metrics.keys() == TRAINING_METRICS | shape | held_out
        assert all(math.isfinite(value) for value in report.metrics.values())


def test_a_report_averages_the_steps_since_the_last_one(lora_resident: Resident) -> None:
    by_step = toy_training.run(lora_resident, DPO, settings(), plan(8))[1].reports
    by_three = toy_training.run(lora_resident, DPO, settings(logging_steps=3), plan(8, {4}))[1].reports
    for report, steps in zip(by_three[1:], [(1, 2, 3), (4,), (5, 6), (7, 8)], strict=True):
        for name in TRAINING_METRICS - {"learning_rate", "tokens", "steps_per_second"}:
            mean = sum(by_step[step].metrics[name] for step in steps) / len(steps)
            assert report.metrics[name] == pytest.approx(mean, rel=1e-12)
        assert report.metrics["tokens"] == by_step[steps[-1]].metrics["tokens"]


def test_the_learning_rate_is_the_one_the_step_used(lora_resident: Resident) -> None:
    training = settings(lr_scheduler_type="linear", warmup_steps=2, learning_rate=4e-3)
    _, channel = toy_training.run(lora_resident, DPO, training, plan(6))
    assert channel.curve("learning_rate") == pytest.approx([0, 2e-3, 4e-3, 3e-3, 2e-3, 1e-3])


def test_tokens_count_prompts_and_completions_without_padding(lora_resident: Resident) -> None:
    _, channel = toy_training.run(lora_resident, DPO, settings(gradient_accumulation_steps=2), plan(3))
    rows, tokenizer = toy.pairs(48), lora_resident.tokenizer
    lengths = [
        sum(len(tokenizer(row["prompt"] + row[side] + "</s>")["input_ids"]) for side in ("chosen", "rejected"))
        for row in rows
    ]
    assert len(set(lengths)) > 1
    order = lora_resident.plan(settings(gradient_accumulation_steps=2), steps=3, workers=1)
    assert channel.curve("tokens") == [sum(lengths[index] for index in order[: 8 * step]) for step in (1, 2, 3)]


def test_steps_per_second_leave_evaluation_waiting_and_saving_out(lora_resident: Resident, tmp_path: Path) -> None:
    """On a clock that stands still but for 100 s a report, 50 s an evaluation, 10 s a checkpoint and 2 s a step."""
    now = 0.0

    class Slow(Recorder):
        def send(self, report: Report) -> Answer:
            nonlocal now
            now += 100.0
            return super().send(report)

    class Ticking(toy_training.Dpo):
        def forward(self, pairs: PairBatch) -> Tensor:
            nonlocal now
            now += 2.0
            return super().forward(pairs)

    evaluate = lora_resident.held_out.evaluate

    def evaluating(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal now
        now += 50.0
        return evaluate(*args, **kwargs)

    write_state = PreferenceTrainer.write_state

    def saving(*args: Any) -> None:
        nonlocal now
        now += 10.0
        write_state(*args)

    channel = Slow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_resident.held_out, "evaluate", evaluating)
        patch.setattr(PreferenceTrainer, "write_state", saving)
        patch.setattr(trial, "build_loss", lambda _: Ticking())
        outcome = trial.train_trial(
            lora_resident,
            toy_training.spec(DISCOPOP, settings(logging_steps=2)),
            plan(6, {3}, save_steps=1),
            channel,
            folder=tmp_path,
            clock=lambda: now,
        )
    assert outcome is not None
    assert channel.curve("steps_per_second") == [0.5] * 4
    assert outcome.seconds == {"evaluation": 100.0, "waiting": 500.0, "saving": 60.0, "to_first_step": 102.0}
