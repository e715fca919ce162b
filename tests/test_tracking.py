import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import InputError
from tune_dlrml.events import EventLog
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.records import Report, State
from tune_dlrml.space import TrialSpec
from tune_dlrml.tracking.cursor import search_id
from tune_dlrml.tracking.mlflow.runs import TRIAL_TAG, MlflowRuns, is_away, is_refusal
from tune_dlrml.tracking.mlflow.store import MlflowStore
from tune_dlrml.tracking.outbox import Outbox, untracked
from tune_dlrml.tracking.tracker import Tracker

CLOSING = ({"trials_complete": 1.0}, {"best_trial": "0"}, "FINISHED", 10**13)


def spec(number: int = 0, attempt: int = 0) -> TrialSpec:
    training = TrainingConfig(learning_rate=1e-5, max_steps=40)
    params = {"loss": "dpo", "dpo.beta": 0.1}
    return TrialSpec(
        number=number,
        attempt=attempt,
        branch="dpo",
        loss=DpoLoss(name="dpo", beta=0.1),
        training=training,
        params=params,
    )


def report(number: int, step: int, **metrics: float) -> Report:
    own = metrics or {"train_loss": 0.7 - step / 100, "train_margin": step / 10}
    return Report(number=number, step=step, timestamp_ms=10**12 + 1000 * number + step, metrics=own)


def write_trial(events: EventLog, number: int, steps: int = 3) -> None:
    events.start(spec(number))
    for step in range(steps):
        events.report(report(number, step))
    events.end(number, State.COMPLETE, f"all {steps} steps done")


class Faults:
    """A real client whose calls can fail, and are then not carried out, or (`late`) when the server goes on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []
        self.plan: dict[str, list[str]] = {}
        self.at: int | None = None
        self.how = ""
        self.late: list = []

    def client(self, tracking_uri: str) -> "Faults":
        self._real = MlflowClient(tracking_uri=tracking_uri)
        return self

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            how = self.how if len(self.calls) == self.at else next(iter(self.plan.get(name, [])), "")
            if self.plan.get(name):
                self.plan[name].pop(0)
            if how == "late":
                self.late.append(lambda: getattr(self._real, name)(*args, **kwargs))
            if how in ("before", "late"):
                raise MlflowException("API request failed with timeout", databricks_pb2.TEMPORARILY_UNAVAILABLE)
            return getattr(self._real, name)(*args, **kwargs)

        return call

    def wake(self) -> None:
        """The server goes on, and carries out what was given up meanwhile."""
        while self.late:
            self.late.pop(0)()

    def count(self) -> Counter:
        return Counter(name for name, _, _ in self.calls)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> MlflowStore:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "searches", tmp_path / "artifacts")


@pytest.fixture
def events(tmp_path: Path) -> EventLog:
    (tmp_path / "toy").mkdir()
    return EventLog(tmp_path / "toy")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    made = Faults()
    monkeypatch.setattr("tune_dlrml.tracking.mlflow.runs.MlflowClient", made.client)
    return made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_dlrml.tracking.mlflow.runs.SETTLE_S", 0.0)
    for name in ("FLUSH_S", "RETRY_S"):
        monkeypatch.setattr(f"tune_dlrml.tracking.tracker.{name}", 0.02)


def outbox(events: EventLog, store: MlflowStore) -> Outbox:
    return Outbox(events, MlflowRuns(store, "toy", search_id(events.folder), {"version.trl": "1.16"}))


def send(events: EventLog, store: MlflowStore, *, tries: int = 3, close: bool = True) -> Outbox:
    """One driver's outbox, which tries again like the tracker's thread."""
    box = outbox(events, store)
    for last in range(tries - 1, -1, -1):
        try:
            box.open()
            for number in events.numbers():
                box.deliver(number)
            if close:
                box.drop_twins()
                box.close(*CLOSING)
            return box
        except MlflowException:
            if not last:
                raise
    raise AssertionError


def runs_of(store: MlflowStore) -> dict[str, list[mlflow.entities.Run]]:
    """Active runs by trial; the parent's under the empty string."""
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name(store.experiment)
    found: dict[str, list[mlflow.entities.Run]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        found.setdefault(run.data.tags.get(TRIAL_TAG, ""), []).append(run)
    return found


def points(store: MlflowStore, run: mlflow.entities.Run) -> Counter:
    client = MlflowClient(tracking_uri=store.uri)
    names = run.data.metrics
    return Counter(
        (name, point.step, point.timestamp, point.value)
        for name in names
        for point in client.get_metric_history(run.info.run_id, name)
    )


def expected_points(events: EventLog, number: int) -> Counter:
    return Counter(
        (name, one.step, one.timestamp_ms, value)
        for one in events.reports(number)
        for name, value in one.metrics.items()
    )


def assert_mlflow_has_it_once(events: EventLog, store: MlflowStore) -> None:
    runs = runs_of(store)
    assert {trial: len(found) for trial, found in runs.items()} == {"": 1} | {str(n): 1 for n in events.numbers()}
    for number in events.numbers():
        assert points(store, runs[str(number)][0]) == expected_points(events, number)


def test_mlflow_shows_a_search_as_its_logs_have_it(events, store):
    write_trial(events, 0)
    events.start(spec(1, attempt=2))
    events.report(report(1, 0))
    events.end(1, State.FAILED, "ValueError: " + "x" * 9000)
    send(events, store)
    assert_mlflow_has_it_once(events, store)
    runs = runs_of(store)
    (parent,), (first,), (second,) = runs[""], runs["0"], runs["1"]
    assert first.data.tags["mlflow.parentRunId"] == second.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.info.run_name == "trial 000 dpo" and parent.info.run_name == "toy"
    assert {key: first.data.tags[key] for key in ("loss", "branch", "state", "attempt", "version.trl")} == {
        "loss": "dpo",
        "branch": "dpo",
        "state": "complete",
        "attempt": "0",
        "version.trl": "1.16",
    }
    assert first.data.params["beta"] == "0.1" and first.data.params["max_steps"] == "40"
    assert (second.info.status, second.data.tags["attempt"]) == ("FAILED", "2")
    assert second.data.tags["stop_reason"].startswith("ValueError: xxx")
    assert (parent.info.status, parent.info.end_time, parent.data.metrics) == (
        "FINISHED",
        10**13,
        {"trials_complete": 1},
    )
    assert untracked(events, store.name) == 0


def test_a_paused_trial_is_one_run_that_mlflow_sees_running(events, store):
    events.start(spec())
    events.report(report(0, 1))
    events.pause(0, 1)
    send(events, store, close=False)
    ((run,),) = (runs for trial, runs in runs_of(store).items() if trial)
    assert (run.info.status, run.data.tags["state"]) == ("RUNNING", "paused")
    events.start(spec())
    send(events, store, close=False)
    assert runs_of(store)["0"][0].data.tags["state"] == "running"
    events.report(report(0, 2))
    events.pause(0, 2)
    events.end(0, State.PRUNED, "successive halving at step 2")
    send(events, store)
    assert_mlflow_has_it_once(events, store)
    run = runs_of(store)["0"][0]
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "pruned")


def test_a_run_has_the_times_of_its_events_and_not_those_of_their_delivery(events, store, monkeypatch):
    monkeypatch.setattr("tune_dlrml.events.time.time", lambda: 1.5e9)
    write_trial(events, 0)
    monkeypatch.undo()
    send(events, store)
    (run,) = runs_of(store)["0"]
    assert (run.info.start_time, run.info.end_time) == (1_500_000_000_000, 1_500_000_000_000)


def test_metrics_go_in_few_calls_of_at_most_a_thousand(events, store, faults):
    events.start(spec())
    for step in range(500):
        events.report(report(0, step, a=1.0, b=2.0, c=3.0))
    send(events, store)
    sizes = [len(kwargs["metrics"]) for name, _, kwargs in faults.calls if name == "log_batch" and "metrics" in kwargs]
    assert sizes[:2] == [999, 501]
    assert_mlflow_has_it_once(events, store)


def test_the_next_driver_goes_on_behind_what_mlflow_has(events, store, faults):
    write_trial(events, 0)
    events.start(spec(1))
    events.report(report(1, 0))
    first = send(events, store, close=False)
    assert untracked(events, store.name) == 1  # the parent run
    faults.calls.clear()
    events.start(spec(1, attempt=1))
    events.report(report(1, 0))
    events.report(report(1, 1))
    assert untracked(events, store.name) == 3
    second = send(events, store)
    sent = [
        metric.step for name, _, kwargs in faults.calls if name == "log_batch" for metric in kwargs.get("metrics", ())
    ]
    assert sent == [1, 1, 0]  # two metrics of step 1 of trial 1, and the summary of the parent run
    assert faults.count()["create_run"] == 0
    assert [second.run_id(number) for number in (0, 1)] == [first.run_id(number) for number in (0, 1)]
    assert second.parent == first.parent
    assert_mlflow_has_it_once(events, store)


@pytest.mark.parametrize("left", ["", "{", '{"store": 1}', '{"store": "a", "run": null, "offset": 0, "more": 1}'])
def test_a_lost_cursor_only_means_sending_again(events, store, left):
    write_trial(events, 0)
    before = send(events, store)
    for path in (events.path(0).with_name("mlflow.json"), events.folder / "mlflow.json"):
        path.unlink() if not left else path.write_text(left)
    after = send(events, store)
    assert (after.parent, after.run_id(0)) == (before.parent, before.run_id(0))
    assert_mlflow_has_it_once(events, store)


def test_a_log_that_lost_its_end_in_a_power_cut_is_sent_from_its_beginning(events, store):
    write_trial(events, 0)
    send(events, store)
    lines = events.path(0).read_bytes().splitlines(keepends=True)
    events.path(0).write_bytes(b"".join(lines[:-1]))
    EventLog(events.folder).end(0, State.FAILED, "")
    send(events, store)
    assert runs_of(store)["0"][0].data.tags["state"] == "failed"
    assert_mlflow_has_it_once(events, store)


def test_no_call_that_fails_or_is_given_up_loses_or_doubles_anything(tmp_path, empty_database, faults, monkeypatch):
    at, done = 0, False
    while not done:
        at += 1
        for how in ("before", "late"):
            folder = tmp_path / f"{how}-{at}"
            folder.mkdir()
            shutil.copy(empty_database, folder / "mlflow.db")
            store = MlflowStore(f"sqlite:///{folder}/mlflow.db", "searches", folder)
            log = EventLog(folder)
            write_trial(log, 0)
            faults.calls.clear()
            faults.at, faults.how = at, how
            try:
                send(log, store, tries=1, close=False)
                done = len(faults.calls) < at
            except MlflowException:
                # Between a call that was given up and its repetition, the server carries it out.
                faults.at = None
                faults.wake()
            send(log, store)
            assert_mlflow_has_it_once(log, store)
    assert at > 8


@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_run_that_is_made_late_is_removed_again(events, store, faults, calls_before):
    write_trial(events, 0)
    faults.plan["create_run"] = [""] * calls_before + ["late"]
    box = send(events, store, close=False)
    made = faults.count()["create_run"]
    assert made == 3  # the parent's, the trial's, and the one that was given up
    faults.wake()
    runs = runs_of(store)
    assert sorted(len(found) for found in runs.values()) == [1, 2]
    box.drop_twins()
    assert_mlflow_has_it_once(events, store)
    assert runs_of(store)["0"][0].info.run_id == box.run_id(0)
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name("searches").experiment_id
    assert len(client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)) == 1


def test_a_run_made_by_a_call_that_was_given_up_is_found_when_the_server_has_settled(
    events, store, faults, monkeypatch
):
    write_trial(events, 0)
    slept = []
    monkeypatch.setattr(
        "tune_dlrml.tracking.mlflow.runs.time.sleep", lambda seconds: (slept.append(seconds), faults.wake())
    )
    faults.plan["create_run"] = ["", "late"]
    send(events, store)
    assert len(slept) == 1 and faults.count()["create_run"] == 2
    assert_mlflow_has_it_once(events, store)


def test_a_deleted_run_is_made_again_with_everything(events, store):
    write_trial(events, 0)
    events.start(spec(1))
    events.report(report(1, 0))
    box = send(events, store, close=False)
    client = MlflowClient(tracking_uri=store.uri)
    client.delete_run(box.run_id(1))
    events.report(report(1, 1))
    box.deliver(1)  # while the search runs
    assert_mlflow_has_it_once(events, store)
    client.delete_run(box.run_id(0))
    send(events, store)  # at its resume
    assert_mlflow_has_it_once(events, store)


def test_a_deleted_parent_run_is_made_again_above_the_runs_that_are_left(events, store):
    write_trial(events, 0)
    first = send(events, store)
    MlflowClient(tracking_uri=store.uri).delete_run(first.parent)
    second = send(events, store)
    assert second.parent != first.parent and second.run_id(0) == first.run_id(0)
    assert runs_of(store)["0"][0].data.tags["mlflow.parentRunId"] == second.parent
    assert_mlflow_has_it_once(events, store)


def test_another_mlflow_gets_everything(events, store, tmp_path, empty_database):
    write_trial(events, 0)
    send(events, store)
    shutil.copy(empty_database, tmp_path / "other.db")
    other = MlflowStore(f"sqlite:///{tmp_path}/other.db", "searches", tmp_path)
    assert untracked(events, other.name) == 6  # start, three reports, end, and the parent run
    send(events, other)
    assert_mlflow_has_it_once(events, other)


def test_searches_of_one_name_in_two_places_have_runs_of_their_own_and_a_moved_one_keeps_its(events, store, tmp_path):
    write_trial(events, 0)
    first = send(events, store)
    twin = EventLog(tmp_path / "elsewhere")
    twin.folder.mkdir()
    write_trial(twin, 0)
    second = send(twin, store)
    assert second.parent != first.parent and second.run_id(0) != first.run_id(0)
    run = first.run_id(0)
    moved = EventLog(events.folder.rename(tmp_path / "moved"))
    third = send(moved, store)
    assert (third.parent, third.run_id(0)) == (first.parent, run)


def test_listings_of_many_pages_are_read_to_their_end(events, store, monkeypatch):
    monkeypatch.setattr("tune_dlrml.tracking.mlflow.runs.PAGE", 2)
    for number in range(5):
        write_trial(events, number, steps=1)
    first = send(events, store)
    (events.folder / "mlflow.json").unlink()
    second = send(events, store)
    assert second.parent == first.parent
    assert_mlflow_has_it_once(events, store)


def test_a_metric_that_mlflow_refuses_is_counted_and_holds_nothing_up(events, store, caplog):
    events.start(spec())
    events.report(report(0, 0))
    events.report(report(0, 1, **{"no?name": 1.0, "train_loss": 0.5}))
    events.report(report(0, 2))
    events.end(0, State.COMPLETE, "")
    box = send(events, store)
    assert box.refused == 1
    (run,) = runs_of(store)["0"]
    assert points(store, run) == expected_points(events, 0) - Counter([("no?name", 1, 10**12 + 1, 1.0)])
    assert run.data.tags["state"] == "complete"
    assert "no?name at step 1" in caplog.text


@pytest.mark.parametrize(
    "line", ["no event", '{"kind": "report"}', '{"kind": "start", "timestamp_ms": 5}', '{"kind": "end"}', '["end"]']
)
def test_a_line_that_is_no_event_is_counted_and_holds_nothing_up(events, store, line):
    events.start(spec())
    with events.path(0).open("a") as file:
        file.write(f"{line}\n")
        file.write('{"kind": "end", "timestamp_ms": 5, "state": "complete", "reason": ""}\n')
    assert send(events, store).refused == 1
    assert runs_of(store)["0"][0].data.tags["state"] == "complete"


def test_refused_metrics_are_not_searched_for_a_tracker_that_was_left(events, store, monkeypatch):
    write_trial(events, 0, steps=64)
    box = outbox(events, store)
    box.open()
    refused = MlflowException("no", databricks_pb2.INVALID_PARAMETER_VALUE)
    tried = []

    def log_batch(*_: Any, metrics: Sequence[Any] = (), **__: Any) -> None:
        if metrics:
            tried.append(len(metrics))
            box.abandoned = len(tried) == 2
            raise refused

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    box.deliver(0)
    assert tried == [128, 64]
    assert box.refused == 0, "what no cursor moved behind is sent again"
    assert untracked(events, store.name) == 66  # 64 reports, end, and the parent run


def test_the_run_of_a_trial_is_known_without_a_look_at_the_disk(events, store, monkeypatch):
    write_trial(events, 0)
    own = send(events, store)
    later = outbox(events, store)
    expected = runs_of(store)["0"][0].info.run_id
    with monkeypatch.context() as patch:
        for method in ("stat", "open", "exists"):
            patch.setattr(Path, method, raising(AssertionError("the disk was asked")))
        known = [box.run_id(number) for box in (own, later) for number in (0, 1)]
    assert known == [expected, None] * 2


def test_a_text_that_no_database_stores_holds_nothing_up(events, store):
    """PostgreSQL refuses NUL, which SQLite takes; half a surrogate pair is taken by neither."""
    events.start(spec())
    events.end(0, State.FAILED, "ValueError: a\0b \ud800")
    send(events, store)
    assert runs_of(store)["0"][0].data.tags["stop_reason"] == "ValueError: ab ?"


def test_a_number_of_the_summary_gets_a_point_where_it_changed(events, store):
    write_trial(events, 0)
    for value in (1.0, 1.0, 4.0):
        box = outbox(events, store)
        box.open()
        box.close({"trials_complete": value}, {}, "KILLED", 7)
    (parent,) = runs_of(store)[""]
    history = MlflowClient(tracking_uri=store.uri).get_metric_history(parent.info.run_id, "trials_complete")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 4.0)]


def track(events: EventLog, store: MlflowStore, *, must_answer: bool = False) -> Tracker:
    tracker = Tracker(MlflowRuns(store, "toy", search_id(events.folder), {}), events)
    if must_answer:
        tracker.require_answer()
    return tracker


def test_a_tracker_keeps_mlflow_up_with_a_search_and_describes_it(events, store):
    tracker = track(events, store, must_answer=True)
    tracker.describe_search("name: toy\n", {"search.num_trials": 1})
    events.start(spec(), {"proposal": "7"})
    tracker.notify(0)
    events.report(report(0, 0))
    tracker.notify(0)
    events.end(0, State.PRUNED, "successive halving at step 0")
    tracker.notify(0)
    assert tracker.close({"trials_pruned": 1.0}, {"best_trial": "none"}, status="FINISHED") == 0
    assert_mlflow_has_it_once(events, store)
    (parent,), (run,) = runs_of(store)[""], runs_of(store)["0"]
    assert parent.data.params == {"search.num_trials": "1"} and parent.data.tags["best_trial"] == "none"
    assert (tracker.run_id(0), run.data.tags["proposal"]) == (run.info.run_id, "7")
    client = MlflowClient(tracking_uri=store.uri)
    assert client.list_artifacts(parent.info.run_id)[0].path == "search.yaml"


def test_what_was_found_in_the_data_is_a_table_of_the_parent_run(events, store):
    table = {"columns": ["set", "kind"], "data": [["dataset.train", "repeated"]]}
    tracker = track(events, store, must_answer=True)
    tracker.describe_search("name: toy\n", {})
    tracker.keep_table("dataset.json", table)
    assert tracker.close({}, {}, status="FINISHED") == 0
    (parent,) = runs_of(store)[""]
    assert json.loads(mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/dataset.json")) == table
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [{"path": "dataset.json", "type": "table"}]


def test_a_table_is_shown_once_as_it_was_last_beside_those_of_earlier_drivers(events, store):
    for name, rows in (("dataset.json", [[1]]), ("proposals.json", [[1]]), ("proposals.json", [[1], [2]])):
        tracker = track(events, store, must_answer=True)
        tracker.keep_table(name, {"columns": ["number"], "data": rows})
        assert tracker.close({}, {}, status="FINISHED") == 0
    (parent,) = runs_of(store)[""]
    shown = mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/proposals.json")
    assert json.loads(shown) == {"columns": ["number"], "data": [[1], [2]]}
    tables = json.loads(parent.data.tags["mlflow.loggedArtifacts"])
    assert [table["path"] for table in tables] == ["dataset.json", "proposals.json"]


def test_a_tracker_catches_up_with_what_earlier_drivers_left(events, store):
    write_trial(events, 0)
    write_trial(events, 1)
    tracker = track(events, store)
    assert tracker.close({}, {}, status="FINISHED") == 0
    assert_mlflow_has_it_once(events, store)


def test_a_search_goes_on_while_mlflow_is_away_and_the_next_driver_delivers(events, store, faults, caplog):
    away = ["before"] * 10**4
    faults.plan["get_experiment_by_name"] = away
    tracker = track(events, store)
    write_trial(events, 0)
    tracker.notify(0)
    assert tracker._tried.wait(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_dlrml.tracking.tracker.CLOSE_S", 0.2)
        assert tracker.close({}, {}, status="FINISHED") == 6
    assert tracker.run_id(0) is None
    assert [record.message[:21] for record in caplog.records if record.name.startswith("tune_dlrml")] == [
        "MLflow is unavailable"
    ]
    tracker._thread.join()
    away.clear()
    assert track(events, store).close({}, {}, status="FINISHED") == 0
    assert_mlflow_has_it_once(events, store)


def test_a_server_that_hangs_holds_up_neither_the_search_nor_its_end(events, store, monkeypatch):
    release, entered = threading.Event(), threading.Event()

    def hang(tracking_uri: str) -> MlflowClient:
        entered.set()
        release.wait()
        return MlflowClient(tracking_uri=tracking_uri)

    monkeypatch.setattr("tune_dlrml.tracking.mlflow.runs.MlflowClient", hang)
    monkeypatch.setattr("tune_dlrml.tracking.tracker.CLOSE_S", 0.1)
    tracker = track(events, store)
    write_trial(events, 0)
    tracker.notify(0)
    assert entered.wait(60)
    assert tracker.close({}, {}, status="FINISHED") == 6
    assert tracker._thread.daemon
    release.set()
    tracker._thread.join()
    assert untracked(events, store.name) == 6, "a tracker that was left moves no cursor"


def test_a_search_does_not_begin_without_mlflow_and_shows_no_password(events, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    store = MlflowStore("http://me:canary%21@127.0.0.1:1", "searches")
    with pytest.raises(
        InputError, match=r"tracking\.mlflow: MLflow must answer .* http://me@127\.0\.0\.1:1 "
    ) as caught:
        track(events, store, must_answer=True)
    assert "canary" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__} {caplog.text} {store!r}"
    tracker = track(events, store)
    write_trial(events, 0)
    tracker.leave()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"canary" in path.read_bytes()]


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:canary@host:5000",
        "http://me:can/ary@host:5000",
        "http://me:can%40ary@host:5000",
        "postgresql://host/mlflow?user=me&password=canary",
    ],
)
def test_no_password_is_in_the_name_of_a_store_or_in_what_is_shown_of_an_error(uri):
    store = MlflowStore(uri, "searches")
    texts = [store.name, repr(store), store.shown(f"API request to {uri} failed")]
    texts += [
        store.shown(f"no user with {password}")
        for password in ("canary", "can/ary", "can@ary")
        if password in unquote(uri)
    ]
    assert len(texts) == 4
    assert not [
        text for text in texts for password in ("canary", "can/ary", "can%40ary", "can@ary") if password in text
    ]
    assert texts[2].startswith("API request to") and store.name.endswith(" searches")


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (databricks_pb2.INVALID_PARAMETER_VALUE, True),
        (databricks_pb2.RESOURCE_DOES_NOT_EXIST, True),
        (databricks_pb2.BAD_REQUEST, False),
        (databricks_pb2.INTERNAL_ERROR, False),
        (databricks_pb2.TEMPORARILY_UNAVAILABLE, False),
        (databricks_pb2.REQUEST_LIMIT_EXCEEDED, False),
        (databricks_pb2.UNAUTHENTICATED, False),
        (databricks_pb2.PERMISSION_DENIED, False),
    ],
)
def test_an_answer_about_the_data_differs_from_an_unavailable_server(code, refusal):
    error = MlflowException("no", code)
    assert (is_refusal(error), is_away(error)) == (refusal, not refusal)
    assert is_away(ConnectionResetError()) and not is_away(KeyError())


def test_a_proxy_that_finds_no_server_is_no_sign_of_a_deleted_run(events, store):
    write_trial(events, 0)
    box = send(events, store, close=False)
    cursor = events.path(0).with_name("mlflow.json")
    cursor.write_text(json.dumps(json.loads(cursor.read_text()) | {"offset": 0}))
    missing = MlflowException("<html>404</html>", databricks_pb2.ENDPOINT_NOT_FOUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", raising(missing))
        patch.setattr(MlflowClient, "get_run", raising(missing))
        with pytest.raises(MlflowException, match="404"):
            box.deliver(0)
    assert box.refused == 0
    box.deliver(0)
    assert_mlflow_has_it_once(events, store)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def test_artifacts_that_cannot_be_written_hold_up_no_trial(events, store, faults):
    faults.plan["log_text"] = ["before"] * 10**4
    tracker = track(events, store)
    tracker.describe_search("name: toy\n", {})
    write_trial(events, 0)
    tracker.notify(0)
    # The description, and the run that is not whole without it.
    assert tracker.close({}, {}, status="FINISHED") == 2
    assert_mlflow_has_it_once(events, store)
    faults.plan.clear()
    again = track(events, store)
    again.describe_search("name: toy\n", {})
    assert again.close({}, {}, status="FINISHED") == 0
    assert_mlflow_has_it_once(events, store)


def test_a_disk_that_takes_no_cursor_costs_nothing_but_sending_again(events, store, monkeypatch):
    write_trial(events, 0)
    box = outbox(events, store)
    box.open()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", raising(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            box.deliver(0)
    assert not list(events.folder.rglob("*.partial"))
    send(events, store)
    assert_mlflow_has_it_once(events, store)


class Server:
    """An `mlflow server` on a loopback port, in a process group of its own."""

    def __init__(self, database: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri, self._database = f"http://127.0.0.1:{self._port}", database
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
                *("--backend-store-uri", f"sqlite:///{self._database}", "--workers", "1"),
                *("--artifacts-destination", str(self._database.with_name("artifacts"))),
            ],
            start_new_session=True,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=self._database.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def signal(self, what: signal.Signals) -> None:
        os.killpg(self._process.pid, what)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_may_stop_and_die_while_events_arrive(events, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr("tune_dlrml.tracking.tracker.RETRY_S", 0.5)
    monkeypatch.setattr("tune_dlrml.tracking.mlflow.runs.SETTLE_S", 1.0)
    server = Server(Path(store.uri.removeprefix("sqlite:///")))
    try:
        remote = MlflowStore(server.uri, store.experiment)
        tracker = track(events, remote)  # before the server is up
        tracker.describe_search("name: toy\n", {})
        write(tracker, events, 0)
        eventually(lambda: tracker.run_id(0) and tracker._error is None)
        server.signal(signal.SIGSTOP)
        write(tracker, events, 1)
        eventually(lambda: tracker._error is not None)
        server.signal(signal.SIGCONT)
        write(tracker, events, 2)
        eventually(lambda: tracker.run_id(2))
        server.kill()
        write(tracker, events, 3)
        eventually(lambda: tracker._error is not None)
        server.start()
        write(tracker, events, 4)
        monkeypatch.setattr("tune_dlrml.tracking.tracker.CLOSE_S", 120.0)
        assert tracker.close({"trials_complete": 5.0}, {}, status="FINISHED") == 0
    finally:
        server.kill()
    assert_mlflow_has_it_once(events, store)
    assert {run.info.status for runs in runs_of(store).values() for run in runs} == {"FINISHED"}


def write(tracker: Tracker, events: EventLog, number: int) -> None:
    write_trial(events, number, steps=30)
    tracker.notify(number)


# The place of the storage folder, and experiments that were deleted.


def judged(events: EventLog, number: int) -> None:
    """A trial with a file that MLflow keeps."""
    events.start(spec(number))
    (events.path(number).parent / "answers.json").write_text("{}")
    events.judged(number, 0, {"judge": 7.0}, ["answers.json"])
    events.end(number, State.COMPLETE, "all steps done")


def artifacts_by_trial(store: MlflowStore) -> dict[str, list[str]]:
    client = MlflowClient(tracking_uri=store.uri)
    return {
        trial: [item.path for run in found for item in client.list_artifacts(run.info.run_id)]
        for trial, found in runs_of(store).items()
    }


@pytest.mark.parametrize("names", [("x_y", "ü%41"), ("q?now", "h#x")])
def test_artifacts_follow_a_storage_folder_that_was_moved(tmp_path, empty_database, names):
    from tune_dlrml.search.result import SearchPlace

    def opened(storage: Path) -> tuple[EventLog, MlflowStore]:
        place = SearchPlace(storage)
        return EventLog(storage / "toy"), MlflowStore(place.mlflow_uri, "searches", place.artifacts)

    before, after = (tmp_path / name for name in names)
    (before / "toy").mkdir(parents=True)
    shutil.copy(empty_database, before / "mlflow.db")
    events, store = opened(before)
    judged(events, 0)
    send(events, store)
    assert artifacts_by_trial(store)["0"] == ["answers.json"]
    before.rename(after)
    mlflow.tracking._tracking_service.utils._artifact_repos_cache.clear()  # as in another process
    events, store = opened(after)
    judged(events, 1)
    send(events, store)
    kept = artifacts_by_trial(store)
    assert (kept["0"], kept["1"]) == (["answers.json"], ["answers.json"])
    assert [path.name for path in tmp_path.iterdir()] == [after.name]


@pytest.mark.parametrize("place", ["s3://bucket/artifacts2", "mlflow-artifacts:/", "/elsewhere/of-somebody"])
def test_artifacts_that_were_never_in_a_storage_folder_stay_where_they_are(events, store, place):
    client = MlflowClient(tracking_uri=store.uri)
    number = client.create_experiment("searches", artifact_location=place)
    kept = client.get_experiment(number).artifact_location
    write_trial(events, 0)
    send(events, store)
    assert client.get_experiment(number).artifact_location == kept
    assert all(run.info.artifact_uri.startswith(kept) for found in runs_of(store).values() for run in found)


def test_artifacts_that_were_left_behind_are_still_found_there(events, store, tmp_path):
    judged(events, 0)
    send(events, store)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "copy" / "mlflow.db")
    shutil.copytree(events.folder, tmp_path / "copy" / "toy")
    copy = MlflowStore(f"sqlite:///{tmp_path}/copy/mlflow.db", "searches", tmp_path / "copy" / "artifacts")
    there = EventLog(tmp_path / "copy" / "toy")
    (there.folder / "mlflow.json").unlink()
    for run in runs_of(store)[""]:
        assert run.info.artifact_uri.startswith(store.artifacts.as_uri())
    judged(there, 1)
    box = send(there, copy)
    client = MlflowClient(tracking_uri=copy.uri)
    assert client.get_run(box.run_id(1)).info.artifact_uri.startswith(copy.artifacts.as_uri())
    assert artifacts_by_trial(copy)["0"] == ["answers.json"]


def test_a_search_does_not_begin_in_a_deleted_experiment_and_the_remedy_is_named(events, store):
    client = MlflowClient(tracking_uri=store.uri)
    number = client.create_experiment("searches")
    client.delete_experiment(number)
    remedy = rf"mlflow experiments restore --experiment-id {number}.*tracking\.experiment"
    with pytest.raises(InputError, match=rf"^tracking\.experiment: .*'searches' is in MLflow's trash.*{remedy}"):
        track(events, store, must_answer=True)


def test_a_search_that_goes_on_in_a_deleted_experiment_names_the_remedy_and_keeps_everything(events, store, caplog):
    write_trial(events, 0)
    send(events, store)
    client = MlflowClient(tracking_uri=store.uri)
    number = client.get_experiment_by_name("searches").experiment_id
    client.delete_experiment(number)
    write_trial(events, 1)
    tracker = track(events, store)
    assert tracker._tried.wait(60)
    tracker.leave()
    assert f"mlflow experiments restore --experiment-id {number}" in tracker.trouble
    assert "MLflow is unavailable" not in caplog.text and tracker.trouble in caplog.text
    client.restore_experiment(number)
    send(events, store)
    assert_mlflow_has_it_once(events, store)
