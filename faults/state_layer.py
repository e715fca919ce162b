"""The state layer alone: study, event logs, outbox and checkpoints of a small search, without Ray and without torch.

A failure is injected at the first write, at the second, and so on, until a run has none left: once as a single failure
and once as a disk that stays full until the driver ends. After it a new driver goes on in the same folder. Then the
study must be that of an undisturbed search, and every event that was acknowledged in its log and in MLflow once.

Run: PYTHONPATH=tests python -m faults.state_layer [--short]
"""

import argparse
import itertools
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from faults.injection import Writes
from faults.memory_mlflow import MemoryMlflow
from tune_dlrml.config import SearchConfig, parse_config
from tune_dlrml.events import EventLog
from tune_dlrml.records import Report, State, TrialOutcome
from tune_dlrml.search.books import reconcile
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.tracking.cursor import search_id
from tune_dlrml.tracking.mlflow.runs import TRIAL_TAG, MlflowRuns
from tune_dlrml.tracking.mlflow.store import MlflowStore
from tune_dlrml.tracking.outbox import Outbox, untracked
from tune_dlrml.training.checkpoint import (
    Attempt,
    discard_checkpoints,
    keep_newest_checkpoint,
    newest_checkpoint,
)

STEPS = 8
ACCURACY = (0.6, 0.8, 0.95, 0.9, 0.55, 0.7, 0.65)
"""Held-out accuracy that each trial comes to; halving at steps 2 and 4 decides by it: the last three are paused, one of
them is promoted once."""
DIVERGES, FAILS = 2, 3
"""Trials that end so, at step 3 and at step 1."""
SHORT_STRIDE = 31
STORE = MlflowStore("memory://", "searches")


@dataclass
class World:
    """What is left when a driver dies, and what it was told before.

    Attributes:
        acknowledged: Reports that the event log has taken, as (trial, step, timestamp).
    """

    folder: Path
    writes: Writes
    seed: int
    mlflow: MemoryMlflow = field(init=False)
    acknowledged: list[tuple[int, int, int]] = field(default_factory=list)
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(10**12))

    def __post_init__(self) -> None:
        self.mlflow = MemoryMlflow(self.writes.fails)

    def config(self) -> SearchConfig:
        document = {
            "name": "small",
            "model": "any",
            "dataset": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "training": {"learning_rate": 1e-6, "max_steps": STEPS},
            "search": {
                "num_trials": len(ACCURACY),
                "seed": self.seed,
                "scheduler": {"grace_period": 2, "reduction_factor": 2},
            },
            "space": {"losses": [{"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}}]},
        }
        return parse_config(document, source="state_layer.py")

    def open_study(self) -> SearchStudy:
        config = self.config()
        return SearchStudy(config, proposer_of(config), f"sqlite:///{self.folder}/study.db", STEPS)

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / str(number)


class Driver:
    """The life of one driver, in the order in which the search's own writes things down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._study = world.open_study()
        self._events = EventLog(world.folder)
        runs = MlflowRuns(STORE, "small", search_id(world.folder), {})
        self._outbox = Outbox(self._events, runs)

    def run(self) -> None:
        reconcile(self._study.rows(), self._events)
        for number in self._study.interrupted():
            step = self._study.pruned_at(number)
            if step is None:
                self._train(self._study.reissue(number))
            else:
                self._finish(TrialOutcome(number, State.PRUNED, f"successive halving at step {step}"), step)
        while (spec := self._study.ask()) is not None:
            self._train(spec)
        for number, step in self._study.paused.items():
            self._finish(TrialOutcome(number, State.PRUNED, f"successive halving at step {step}"), step)
        self._deliver(close=True)

    def die(self) -> None:
        self._study.close()

    def _train(self, spec: TrialSpec) -> None:
        self._events.start(spec)
        self._deliver()
        attempt = Attempt.begin(self._world.trial_folder(spec.number), keep=2)
        saved = -1 if attempt.resumed is None else attempt.resumed.step
        # The report of a rung comes again: its checkpoint was there before its verdict.
        for step in range(saved if self._study.is_rung(saved) else saved + 1, STEPS + 1):
            if self._study.is_rung(step) and step > saved:
                self._save(attempt, step)
            end = self._step(spec.number, step)
            if end == "pause":
                self._events.pause(spec.number, step)
                keep_newest_checkpoint(self._world.trial_folder(spec.number))
                return self._deliver()
            if end is not None:
                return self._finish(end, step)
            if step % 2 == 0 and step > 0 and not self._study.is_rung(step):
                self._save(attempt, step)
        return self._finish(TrialOutcome(spec.number, State.COMPLETE, f"all {STEPS} steps done"), STEPS)

    def _step(self, number: int, step: int) -> TrialOutcome | Literal["pause"] | None:
        if (number, step) == (DIVERGES, 3):
            return TrialOutcome(number, State.DIVERGED, "step 3: the loss is not finite")
        if (number, step) == (FAILS, 1):
            return TrialOutcome(number, State.FAILED, "ValueError: planted", exception="ValueError: planted")
        rung = self._study.is_rung(step)
        accuracy = 0.5 + (ACCURACY[number] - 0.5) * step / STEPS
        evaluated = rung or step in (0, STEPS)
        metrics = {"train_loss": 1 / (1 + step)} | ({"eval_accuracy": accuracy} if evaluated else {})
        report = Report(number, step, next(self._world.clock), metrics, evaluated, rung)
        if self._events.report(report):
            self._world.acknowledged.append((number, step, report.timestamp_ms))
        if rung or step == STEPS:
            self._study.record(number, step, accuracy)
            if self._study.verdict(number, step) == "pause":
                return "pause"
        return None

    def _save(self, attempt: Attempt, step: int) -> None:
        partial = attempt.partial(step)
        (partial / "weights").write_bytes(weights(step))
        (partial / "optimizer").write_bytes(weights(-step))
        attempt.seal(partial)

    def _finish(self, outcome: TrialOutcome, steps: int) -> None:
        self._write_end(self._study.finish(outcome, steps))
        self._deliver()

    def _write_end(self, row: TrialRow) -> None:
        folder = self._world.trial_folder(row.number)
        if row.state is State.COMPLETE:
            keep_newest_checkpoint(folder)
        else:
            discard_checkpoints(folder)
        self._events.end(row.number, row.state, row.stop_reason)

    def _deliver(self, *, close: bool = False) -> None:
        """What the tracker's thread does, at moments that are the same in each run."""
        for _ in range(3 if close else 1):
            try:
                self._outbox.open()
                for number in self._events.numbers():
                    self._outbox.deliver(number)
                if close:
                    self._outbox.drop_twins()
                    self._outbox.close({"trials": float(len(ACCURACY))}, {}, "FINISHED", next(self._world.clock))
                return
            except Exception:
                logging.debug("delivered later", exc_info=True)


def weights(step: int) -> bytes:
    return f"weights of step {step}".encode() * 20


def live(world: World) -> None:
    """Drivers one after another, until one ends by itself and MLflow has everything; only the first meets failures."""
    causes = []
    for _ in range(4):
        driver = None
        try:
            with world.writes.watched():
                driver = Driver(world)
                driver.run()
        except Exception as error:
            causes.append(repr(error))
            ended = False
        else:
            ended = untracked(EventLog(world.folder), STORE.name) == 0
        world.writes.end()
        if driver is not None:
            driver.die()
        if ended:
            return
    raise RuntimeError(f"four drivers did not bring the search to its end: {causes}")


def faults_of(world: World, expected: list[TrialRow]) -> Iterator[str]:
    """What is wrong with a search that has ended."""
    study = world.open_study()
    rows = study.rows()
    study.close()
    if [comparable(row) for row in rows] != [comparable(row) for row in expected]:
        yield f"the study differs: {[comparable(row) for row in rows]}"
    for row in rows:
        yield from _faults_of_trial(world, row)
    runs = world.mlflow.active()
    parents = [run for run in runs if TRIAL_TAG not in run.data.tags]
    if len(runs) != len(rows) + 1 or len(parents) != 1 or {run.info.status for run in runs} - {"FINISHED", "FAILED"}:
        yield f"MLflow has the runs {[(run.info.run_name, run.info.status) for run in runs]}"
    yield from (f"left over: {path}" for path in world.folder.rglob("*") if path.name.endswith((".partial", ".tmp")))


def _faults_of_trial(world: World, row: TrialRow) -> Iterator[str]:
    number, folder = row.number, world.trial_folder(row.number)
    text = (folder / "events.jsonl").read_text()
    try:
        events = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        yield f"trial {number}: its log has a line that is no JSON: {error}"
        return
    reports = [event for event in events if event["kind"] == "report"]
    logged = [(number, event["step"], event["timestamp_ms"]) for event in reports]
    if not text.endswith("\n") or [event["kind"] for event in events].count("end") != 1 or events[-1]["kind"] != "end":
        yield f"trial {number}: its log does not end with its one end"
    if [step for _, step, _ in logged] != list(range(len(logged))):
        yield f"trial {number}: its log has the steps {[step for _, step, _ in logged]}"
    lost = [event for event in world.acknowledged if event[0] == number and event not in logged]
    if lost:
        yield f"trial {number}: acknowledged and lost: {lost}"
    points = sorted(
        (name, event["step"], event["timestamp_ms"], value)
        for event in reports
        for name, value in event["metrics"].items()
    )
    runs = [run for run in world.mlflow.active() if run.data.tags.get(TRIAL_TAG) == str(number)]
    if [sorted(world.mlflow.points[run.info.run_id]) for run in runs] != [points]:
        yield f"trial {number}: MLflow has not its points once, in one run"
    if [run.data.tags["state"] for run in runs] != [str(row.state)]:
        yield f"trial {number}: MLflow shows {[run.data.tags['state'] for run in runs]} and not {row.state}"
    kept = newest_checkpoint(folder)
    whole = kept is not None and (kept.path / "weights").read_bytes() == weights(STEPS)
    if whole != (row.state is State.COMPLETE) or (kept is not None and not whole):
        yield f"trial {number} ({row.state}): its checkpoint is {kept}"


def comparable(row: TrialRow) -> tuple[Any, ...]:
    """What does not depend on how many drivers it took."""
    return row.number, row.state, row.stop_reason, dict(row.params), row.value, row.steps


def run(*, short: bool = False, seed: int = 0) -> dict[str, Any]:
    """Every n-th write of the search fails, for n = 1, 2, 3, ...; the short version takes some of them."""
    tried, wrong = 0, []
    with (
        tempfile.TemporaryDirectory(prefix="fault_state_") as name,
        mock.patch("tune_dlrml.tracking.mlflow.runs.SETTLE_S", 0.0),
    ):
        undisturbed = World(Path(name) / "undisturbed", Writes(Path(name)), seed)
        undisturbed.folder.mkdir()
        found, expected = _lived(undisturbed, None)
        assert not found, f"the search that nothing disturbs: {found}"
        total = undisturbed.writes.count
        for turn, at in enumerate(range(1, total + 1, SHORT_STRIDE if short else 1)):
            for stays in (turn % 2 == 1,) if short else (False, True):
                folder = Path(name) / f"{at}-{stays}"
                folder.mkdir()
                world = World(folder, Writes(folder, at, stays=stays), seed)
                found, _ = _lived(world, expected)
                shutil.rmtree(folder)
                tried += 1
                if not world.writes.failed:
                    found.append("no write failed")
                if found:
                    wrong.append(f"write {at} ({', '.join(world.writes.failed[:1])}, stays: {stays}): {found[0]}")
    detail = f"{total} writes; {tried} failures injected, of one write or of all from one on"
    return {"name": "state_layer", "tried": tried, "failed": len(wrong), "detail": "; ".join([detail, *wrong[:5]])}


def _lived(world: World, expected: list[TrialRow] | None) -> tuple[list[str], list[TrialRow]]:
    """Let a search live; what is wrong with it then, and its trials."""
    try:
        with mock.patch("tune_dlrml.tracking.mlflow.runs.MlflowClient", world.mlflow.client):
            live(world)
        study = world.open_study()
        rows = study.rows()
        study.close()
        return list(faults_of(world, rows if expected is None else expected)), rows
    except Exception as error:
        return [f"{error!r}"], []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(short=arguments.short, seed=arguments.seed), indent=2))
