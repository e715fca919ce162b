"""A trial that is killed and goes on equals one that is not: weights, optimizer, reports and how it ends."""

import hashlib
import json
import math
import pickle
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from safetensors.torch import load_file
from toy_training import BCO, DISCOPOP, DPO, LEARNABLE, LORA, plan, settings

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import StorageError
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.records import Answer, Report, State, TrialOutcome
from tune_dlrml.training import checkpoint, trial
from tune_dlrml.training.checkpoint import MARKER, newest_checkpoint
from tune_dlrml.training.group_spec import TrialPlan
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trainer import PreferenceTrainer
from tune_dlrml.training.trial import train_trial


class Killed(BaseException):
    """The process ends here: no handler of the package runs."""


@dataclass
class Driver:
    """A driver's event log, over all attempts of a trial; the process that reports may be killed at a step.

    `acknowledged` is what it says at every step; None is at once.
    """

    log: dict[int, Report] = field(default_factory=dict)
    heard: list[Report] = field(default_factory=list)
    acknowledged: int | None = None
    kill_before: int | None = None
    kill_after: int | None = None
    stop_at: int | None = None

    def send(self, report: Report) -> Answer:
        if report.step == self.kill_before:
            raise Killed
        self.heard.append(report)
        self.log.setdefault(report.step, report)
        if report.step == self.kill_after:
            raise Killed
        return Answer(report.step != self.stop_at, report.step if self.acknowledged is None else self.acknowledged)


def untimed(reports: dict[int, Report]) -> list[tuple[int, bool, bool, dict[str, float]]]:
    """Reports without what the clock and the group's past decide."""
    return [
        (
            report.step,
            report.evaluated,
            report.rung,
            {key: value for key, value in report.metrics.items() if key not in toy_training.OF_THE_GROUP},
        )
        for _, report in sorted(reports.items())
    ]


@pytest.fixture(scope="module")
def other_resident(toy_model: Path) -> Resident:
    """A second process's model and data, under LoRA."""
    return toy_training.resident(toy_model, settings())


@pytest.fixture(scope="module")
def other_full_resident(toy_model: Path) -> Resident:
    """A second process's model and data, with all weights trained."""
    return toy_training.resident(toy_model, settings(lora=None))


def train(
    resident: Resident, loss: dict[str, Any], training: TrainingConfig, budget: TrialPlan, driver: Driver, folder: Path
) -> TrialOutcome | None:
    return train_trial(resident, toy_training.spec(loss, training), budget, driver, folder=folder)


def train_until_killed(*arguments: Any) -> None:
    with pytest.raises(Killed):
        train(*arguments)
    torch.manual_seed(99)  # the next process: its generators stand elsewhere
    random.seed(99)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that a trial's last checkpoint has of its training: weights, moments, beta_mix, what the loss remembers."""
    newest = newest_checkpoint(folder)
    assert newest is not None
    found = {key: value for path in newest.path.glob("*.safetensors") for key, value in load_file(path).items()}
    for name in ("optimizer.pt", "scheduler.pt", "beta_mix.pt", "loss_memory.pt"):
        if (newest.path / name).exists():
            found |= flat(name, torch.load(newest.path / name, weights_only=True))
    return found


def flat(name: str, value: Any) -> dict[str, torch.Tensor]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for inner, part in items for key, leaf in flat(f"{name}/{inner}", part).items()}
    return (
        {name: value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)}
        if isinstance(value, torch.Tensor | int | float)
        else {}
    )


def assert_same_tensors(left: Path, right: Path) -> None:
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


STEPS, RUNG, SAVE_STEPS = 8, 4, 3
BUDGET = plan(STEPS, {RUNG}, save_steps=SAVE_STEPS)
"""Checkpoints behind the steps 3, 4, 6 and 8."""

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dropout": (DISCOPOP, {"lora": {**LORA, "lora_dropout": 0.2}, "disable_dropout": False}),
    "full": (DPO, {"lora": None, "learning_rate": 1e-3, "weight_decay": 0.1}),
    "learnable": (LEARNABLE, {"gradient_accumulation_steps": 2}),
    "running mean": (BCO, {"gradient_accumulation_steps": 2}),
    "cosine": (DPO, {"lr_scheduler_type": "cosine", "warmup_steps": 3}),
    "sgd": (DPO, {"optim": "sgd", "learning_rate": 1.0}),
    "adafactor": (DPO, {"optim": "adafactor", "lr_scheduler_type": "linear"}),
    "fused": (DPO, {"optim": "adamw_torch_fused"}),
    "rarely reported": (DPO, {"logging_steps": 5}),
    "checkpointing": (DPO, {"gradient_checkpointing": True}),
    "bf16": (LEARNABLE, {"bf16": True}),
}
KILLS = [*(("dropout", step) for step in (1, 4, 6, 8)), *((variant, 7) for variant in VARIANTS if variant != "dropout")]


@pytest.fixture(scope="module")
def uninterrupted(
    lora_resident: Resident, full_resident: Resident, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Driver, Path]]:
    done: dict[str, tuple[Driver, Path]] = {}

    def of(variant: str) -> tuple[Driver, Path]:
        if variant not in done:
            loss, changes = VARIANTS[variant]
            driver, folder = Driver(), tmp_path_factory.mktemp("uninterrupted")
            resident = full_resident if variant == "full" else lora_resident
            outcome = train(resident, loss, settings(**changes), BUDGET, driver, folder)
            assert outcome is not None and outcome.state is State.COMPLETE
            done[variant] = driver, folder
        return done[variant]

    return of


@pytest.mark.parametrize(("variant", "step"), KILLS)
def test_a_trial_killed_at_any_step_ends_bit_identical(
    lora_resident: Resident,
    full_resident: Resident,
    other_resident: Resident,
    other_full_resident: Resident,
    uninterrupted: Callable[[str], tuple[Driver, Path]],
    tmp_path: Path,
    variant: str,
    step: int,
) -> None:
    loss, changes = VARIANTS[variant]
    training = settings(**changes)
    expected, folder = uninterrupted(variant)
    driver = Driver(kill_before=min(s for s in expected.log if s >= step))
    first, second = (full_resident, other_full_resident) if variant == "full" else (lora_resident, other_resident)
    train_until_killed(first, loss, training, BUDGET, driver, tmp_path)
    last = newest_checkpoint(tmp_path)
    driver.kill_before = None
    driver.heard.clear()

    outcome = train(second, loss, training, BUDGET, driver, tmp_path)

    assert driver.heard[0].step == min(s for s in expected.log if s > (-1 if last is None else last.step))
    assert outcome is not None and (outcome.state, outcome.reason) == (State.COMPLETE, "all 8 steps done")
    assert untimed(driver.log) == untimed(expected.log)
    assert_same_tensors(tmp_path, folder)


@dataclass
class Pausing(Driver):
    """Stops a trial at the rung, and notes which checkpoint there is when the rung's report comes."""

    folder: Path | None = None
    there: int | None = None

    def send(self, report: Report) -> Answer:
        if report.rung:
            assert self.folder is not None
            newest = newest_checkpoint(self.folder)
            self.there = None if newest is None else newest.step
        return super().send(report)


@pytest.mark.parametrize("variant", ["dropout", "learnable", "running mean"])
def test_a_trial_paused_at_a_rung_has_its_checkpoint_before_the_verdict_and_ends_bit_identical(
    lora_resident: Resident,
    other_resident: Resident,
    uninterrupted: Callable[[str], tuple[Driver, Path]],
    tmp_path: Path,
    variant: str,
) -> None:
    loss, changes = VARIANTS[variant]
    expected, folder = uninterrupted(variant)
    driver, budget = Pausing(stop_at=RUNG, folder=tmp_path), replace(BUDGET, pauses=True)
    assert train(lora_resident, loss, settings(**changes), budget, driver, tmp_path) is None
    assert driver.there == RUNG and driver.heard[-1].step == RUNG

    driver.heard.clear()
    driver.stop_at = None
    outcome = train(other_resident, loss, settings(**changes), budget, driver, tmp_path)

    assert outcome is not None and outcome.state is State.COMPLETE
    assert driver.heard[0] == driver.log[RUNG]  # the group waits for its verdict once more, and then goes on
    assert untimed(driver.log) == untimed(expected.log)
    assert_same_tensors(tmp_path, folder)


def test_a_trial_killed_again_and_again_ends_bit_identical(
    lora_resident: Resident,
    other_resident: Resident,
    uninterrupted: Callable[[str], tuple[Driver, Path]],
    tmp_path: Path,
) -> None:
    loss, changes = VARIANTS["dropout"]
    expected, folder = uninterrupted("dropout")
    driver = Driver()
    for resident, step in zip((lora_resident, other_resident) * 3, (2, 4, 4, 5, 6, 8), strict=True):
        driver.kill_after = step
        train_until_killed(resident, loss, settings(**changes), BUDGET, driver, tmp_path)
    driver.kill_after = None
    train(lora_resident, loss, settings(**changes), BUDGET, driver, tmp_path)
    assert untimed(driver.log) == untimed(expected.log)
    assert_same_tensors(tmp_path, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt-5", "attempt-6", "margins.json"]


@pytest.mark.parametrize("killed_in", ["write_state", "seal", "rename", "prune"])
def test_a_trial_killed_while_it_is_saved_ends_bit_identical(
    lora_resident: Resident,
    other_resident: Resident,
    uninterrupted: Callable[[str], tuple[Driver, Path]],
    tmp_path: Path,
    killed_in: str,
) -> None:
    loss, changes = VARIANTS["dropout"]
    expected, folder = uninterrupted("dropout")
    owner, name = {
        "write_state": (PreferenceTrainer, "write_state"),
        "seal": (checkpoint.Attempt, "seal"),
        "rename": (Path, "rename"),
        "prune": (checkpoint, "_remove"),
    }[killed_in]
    calls = 0
    operation = getattr(owner, name)

    def killing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or killed_in == "prune":
            raise Killed
        return operation(*args)

    driver = Driver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killing)
        train_until_killed(lora_resident, loss, settings(**changes), BUDGET, driver, tmp_path)
    last = newest_checkpoint(tmp_path)
    assert last is not None and last.step == (6 if killed_in == "prune" else 3)
    train(other_resident, loss, settings(**changes), BUDGET, driver, tmp_path)
    assert untimed(driver.log) == untimed(expected.log)
    assert_same_tensors(tmp_path, folder)
    assert not list(tmp_path.glob("*/*.partial"))


def test_checkpoints_come_behind_passed_rungs_every_save_steps_and_at_the_end(
    lora_resident: Resident, tmp_path: Path
) -> None:
    budget = plan(8, {4}, save_steps=3, save_total_limit=9)
    train(lora_resident, DPO, settings(), budget, Driver(), tmp_path / "complete")
    assert sorted(path.name for path in tmp_path.glob("complete/attempt-0/*")) == [
        f"checkpoint-{step}" for step in (3, 4, 6, 8)
    ]
    train(lora_resident, DPO, settings(), budget, Driver(stop_at=4), tmp_path / "pruned")
    assert [path.name for path in tmp_path.glob("pruned/attempt-0/*")] == ["checkpoint-3"]
    exploding = settings(learning_rate=1e20)
    train(lora_resident, DPO, exploding, plan(8, save_steps=1), Driver(), tmp_path / "diverged")
    assert sorted(path.name for path in tmp_path.glob("diverged/attempt-0/*")) == ["checkpoint-1", "checkpoint-2"]


def test_only_as_many_checkpoints_as_configured_stay(lora_resident: Resident, tmp_path: Path) -> None:
    train(lora_resident, DPO, settings(), plan(5, save_steps=1, save_total_limit=3), Driver(), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == [f"checkpoint-{step}" for step in (3, 4, 5)]


@pytest.mark.parametrize(("acknowledged", "again"), [(-1, [0, 1, 2, 3, 4]), (0, [1, 2, 3, 4]), (3, [4]), (4, [])])
def test_unacknowledged_reports_are_sent_again_as_they_were(
    lora_resident: Resident, other_resident: Resident, tmp_path: Path, acknowledged: int, again: list[int]
) -> None:
    driver = Driver(acknowledged=acknowledged, kill_before=6)
    train_until_killed(lora_resident, LEARNABLE, settings(), BUDGET, driver, tmp_path)
    before = {report.step: report for report in driver.heard}
    after = Driver()
    train(other_resident, LEARNABLE, settings(), BUDGET, after, tmp_path)
    assert [report.step for report in after.heard] == [*again, 5, 6, 7, 8]
    assert after.heard[: len(again)] == [before[step] for step in again]


def test_a_report_acknowledged_after_it_was_sent_again_is_not_sent_a_third_time(
    lora_resident: Resident, tmp_path: Path
) -> None:
    arguments = lora_resident, DPO, settings(), BUDGET
    first = Driver(acknowledged=-1, kill_before=5)
    train_until_killed(*arguments, first, tmp_path)
    second = Driver(acknowledged=2, kill_before=7)
    train_until_killed(*arguments, second, tmp_path)
    third = Driver()
    train(*arguments, third, tmp_path)
    heard = [[report.step for report in driver.heard] for driver in (first, second, third)]
    assert heard == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8]]


def test_a_trial_saved_at_its_last_step_ends_without_training(
    lora_resident: Resident, other_resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(lora_resident, DPO, settings(), BUDGET, Driver(acknowledged=6), tmp_path)
    monkeypatch.setattr(PreferenceTrainer, "__init__", lambda *args, **kwargs: pytest.fail("a trainer was made"))
    driver = Driver()
    outcome = train(other_resident, DPO, settings(), BUDGET, driver, tmp_path)
    assert first is not None and outcome is not None
    assert (outcome.state, outcome.reason) == (first.state, first.reason) == (State.COMPLETE, "all 8 steps done")
    assert [report.step for report in driver.heard] == [7, 8]
    assert train(other_resident, DPO, settings(), BUDGET, Driver(stop_at=7), tmp_path) is None


class NotFiniteAt(toy_training.Dpo):
    """DPO that is NaN at some optimizer steps."""

    def __init__(self, steps: set[int], after: int = 0) -> None:
        super().__init__()
        self.steps, self.step = steps, after

    def forward(self, pairs: PairBatch) -> torch.Tensor:
        self.step += 1
        return super().forward(pairs) * (math.nan if self.step in self.steps else 1.0)


def test_a_divergence_that_needs_steps_before_and_after_the_kill_is_judged_at_the_same_step(
    lora_resident: Resident, other_resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = plan(8, save_steps=2, window=5, nonfinite_fraction=0.2)
    steps = {3, 6}
    monkeypatch.setattr(trial, "build_loss", lambda _: NotFiniteAt(steps))
    whole = train(lora_resident, DPO, settings(), budget, Driver(), tmp_path / "whole")
    train_until_killed(lora_resident, DPO, settings(), budget, Driver(kill_before=5), tmp_path / "killed")
    monkeypatch.setattr(trial, "build_loss", lambda _: NotFiniteAt(steps, after=4))
    resumed = train(other_resident, DPO, settings(), budget, Driver(), tmp_path / "killed")
    assert whole is not None and resumed is not None
    assert (resumed.state, resumed.reason) == (whole.state, whole.reason)
    assert whole.reason == "step 6: 2 of the last 5 steps were not finite (limit 0.2 x window 5)"


def test_seconds_and_speed_go_on_where_they_stood(lora_resident: Resident, tmp_path: Path) -> None:
    """On a clock that moves by 1 s a step; the kill comes 3 s after it, and 100 s pass before the trial goes on."""
    now = 0.0

    class Ticking(toy_training.Dpo):
        def forward(self, pairs: PairBatch) -> torch.Tensor:
            nonlocal now
            now += 1.0
            return super().forward(pairs)

    budget, training = plan(8, save_steps=3), settings(logging_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "build_loss", lambda _: Ticking())
        driver, spec = Driver(kill_before=4), toy_training.spec(DPO, training)
        with pytest.raises(Killed):
            train_trial(lora_resident, spec, budget, driver, folder=tmp_path, handed_over_s=-5.0, clock=lambda: now)
        now += 100.0
        driver.kill_before = None
        outcome = train_trial(lora_resident, spec, budget, driver, folder=tmp_path, clock=lambda: now)
    assert [driver.log[step].metrics["steps_per_second"] for step in (4, 8)] == [1.0, 1.0]
    assert outcome is not None and outcome.seconds["to_first_step"] == 6.0


FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "progress.json", MARKER}


@pytest.mark.parametrize(
    ("lora", "weights"),
    [(LORA, {"adapter_model.safetensors", "adapter_config.json"}), (None, {"model.safetensors"})],
    ids=["lora", "full"],
)
def test_a_checkpoint_holds_these_files_and_no_training_arguments(
    lora_resident: Resident,
    full_resident: Resident,
    tmp_path: Path,
    lora: dict[str, Any] | None,
    weights: set[str],
) -> None:
    resident = lora_resident if lora else full_resident
    train(resident, LEARNABLE, settings(lora=lora), plan(1), Driver(), tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    checkpoint = {f"attempt-0/checkpoint-1/{name}" for name in FILES | weights | {"beta_mix.pt"}}
    assert files == checkpoint | {"margins.json"}


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "beta_mix.pt"])
def test_a_pickle_that_runs_code_is_never_run(lora_resident: Resident, tmp_path: Path, name: str) -> None:
    budget, victim, folder = plan(6, save_steps=2), tmp_path / "executed", tmp_path / "trial"
    train_until_killed(lora_resident, LEARNABLE, settings(), budget, Driver(kill_before=5), folder)
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.step == 4
    marker = json.loads((newest.path / MARKER).read_text())
    torch.save(Malicious(victim), newest.path / name)

    found = newest_checkpoint(folder)
    assert found is not None and found.step == 2, "its sha256 is another"

    content = (newest.path / name).read_bytes()
    marker["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (newest.path / MARKER).write_text(json.dumps(marker))
    assert newest_checkpoint(folder) == newest
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(lora_resident, LEARNABLE, settings(), budget, Driver(), folder)
    assert not victim.exists()


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes fails, also those of torch and safetensors, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("size", [0, 13_000, 20_000, 60_000])
def test_a_disk_that_is_full_at_any_file_is_a_storage_error_and_the_trial_goes_on_later(
    lora_resident: Resident, full_resident: Resident, tmp_path: Path, size: int, lora: dict[str, Any] | None
) -> None:
    resident, training = (lora_resident if lora else full_resident), settings(lora=lora)
    budget = plan(4, save_steps=2)
    write_state = PreferenceTrainer.write_state

    def write(trainer: PreferenceTrainer, folder: Path) -> None:
        with files_no_longer_than(size if trainer.state.global_step == 4 else 10**9):
            write_state(trainer, folder)

    driver = Driver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreferenceTrainer, "write_state", write)
        with pytest.raises(StorageError, match=r"checkpoint-4.partial.*: File too large"):
            train(resident, LEARNABLE, training, budget, driver, tmp_path)
    assert [path.name for path in tmp_path.glob("*/*")] == ["checkpoint-2"]
    outcome = train(resident, LEARNABLE, training, budget, driver, tmp_path)
    assert outcome is not None and outcome.state is State.COMPLETE
