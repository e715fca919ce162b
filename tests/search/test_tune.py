import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.config import SearchConfig
from tune_dlrml.records import Report, State
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.study import SearchStudy


def fake_slot() -> type:
    """A class Trainable that keeps TrialSlot's contract and trains nothing; inside a function, to be pickled whole."""
    from ray import tune

    class FakeSlot(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.number, self.attempt = new_config["spec"]["number"], new_config["spec"]["attempt"]
            self.rate = new_config["spec"]["training"]["learning_rate"]
            self.left = [0, "heartbeat", 1, 5, 7, 10, 15, 20, 33, 40]
            return True

        def step(self) -> dict[str, Any]:
            step = self.left.pop(0)
            result: dict[str, Any] = {"number": self.number, "reports": [], "outcome": None, "done": False}
            if step == "heartbeat":
                return result
            if self.number == 3 and step == 7:
                raise RuntimeError("out of paper")
            if self.number == 7 and step == 1 and self.attempt == 0:
                os._exit(1)
            rung = step in (5, 10, 20)
            evaluated = rung or step in (0, 40)
            accuracy = 0.5 + step * self.rate * 100  # a larger learning rate is better
            metrics = {"train_loss": 0.7, "pid": float(os.getpid())} | (
                {"eval_accuracy": accuracy} if evaluated else {}
            )
            result["reports"] = [Report(self.number, step, step, metrics, evaluated, rung).as_json()]
            if self.number == 5 and step == 1:
                self.end(result, "diverged", "mean margin -600 nats at step 1")
            if step == 40:
                self.end(result, "complete", "all 40 steps done")
            return result

        def end(self, result: dict[str, Any], state: str, reason: str) -> None:
            outcome = {"number": self.number, "state": state, "reason": reason, "exception": "", "fault": "trial"}
            outcome |= {"seconds": {"x": 1.0}}
            result |= {"outcome": outcome, "done": True}

    return FakeSlot


class Log:
    def __init__(self) -> None:
        self.reports: dict[int, list[int]] = {}
        self.pids: list[float] = []
        self.ended: list[int] = []
        self.lost: list[int] = []

    def on_start(self, spec: TrialSpec) -> None:
        self.reports[spec.number] = []

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        self.reports[spec.number].append(report.step)
        self.pids.append(report.metrics["pid"])

    def on_pause(self, spec: TrialSpec, step: int) -> None:
        self.lines.append(f"pause {spec.number} {step}")

    def on_loss(self, spec: TrialSpec, reason: str, left: int) -> None:
        self.lost.append(spec.number)

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        self.ended.append(row.number)


@pytest.mark.slow
def test_a_search_through_ray_tune_ends_every_trial_as_the_study_decided(
    local_ray: str,
    config_with: Callable[..., SearchConfig],
    open_study: Callable[..., SearchStudy],
    tmp_path: Path,
) -> None:
    from ray import tune

    from tune_dlrml.search.tune.scheduler import StudyScheduler
    from tune_dlrml.search.tune.searcher import StudySearcher

    (tmp_path / "canary").mkdir()
    study = open_study(config_with(num_trials=12, sampler="random"), f"sqlite:///{tmp_path}/canary/study.db")
    log = Log()
    searcher = StudySearcher(study, log)
    tune.Tuner(
        tune.with_resources(fake_slot(), tune.PlacementGroupFactory([{"memory": 2**20}])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(searcher),
            num_samples=-1,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()

    rows = study.rows()
    assert [row.number for row in rows] == log.ended == list(range(12))
    assert (rows[3].state, rows[3].stop_reason, rows[3].steps) == (State.FAILED, "RuntimeError: out of paper", 5)
    assert (rows[5].state, rows[5].stop_reason, rows[5].steps) == (State.DIVERGED, "mean margin -600 nats at step 1", 1)
    for row in rows:
        assert row.spec is not None
        steps = log.reports[row.number]
        assert steps == [step for step in (0, 1, 5, 7, 10, 15, 20, 33, 40) if step <= row.steps]
        if row.state is State.COMPLETE:
            assert row.steps == 40 and row.value == pytest.approx(0.5 + 4000 * row.spec.training.learning_rate)
        elif row.state is State.PRUNED:
            assert row.steps in (5, 10, 20)
            assert row.stop_reason == f"successive halving at step {row.steps}"
    states = [row.state for row in rows]
    assert states.count(State.PRUNED) >= 4 and states.count(State.COMPLETE) >= 2
    assert log.lost == [7] and rows[7].attempt == 1 and rows[7].state in (State.COMPLETE, State.PRUNED)
    assert len(set(log.pids)) == 3  # the actor is kept between trials, and replaced where one failed or was lost
    kept = [path for path in (tmp_path / "tune").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"canary" in path.read_bytes()]
