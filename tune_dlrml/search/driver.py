"""A whole search: data and study opened, Ray joined, Tune run over the slots, every end recorded."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from tune_dlrml.config import SearchConfig, to_yaml
from tune_dlrml.data import content_hash
from tune_dlrml.evaluation.jury import Grading
from tune_dlrml.events import EventLog
from tune_dlrml.files import replace_file
from tune_dlrml.records import Report, State
from tune_dlrml.search.cluster import alive_nodes, group_storage, ray_cluster, refuse_sqlite_on_a_cluster
from tune_dlrml.search.confirm import confirmation_of, open_study
from tune_dlrml.search.database import faults_of_storage, is_sqlite
from tune_dlrml.search.evaluation import Evaluation
from tune_dlrml.search.history import TrialRow
from tune_dlrml.search.lock import DriverLock, only_driver
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.result import SearchPlace, SearchResult, read_search
from tune_dlrml.search.scheduler import StudyScheduler
from tune_dlrml.search.scratch import scratch_folder
from tune_dlrml.search.searcher import SearchObserver, StudySearcher
from tune_dlrml.search.slot import TrialSlot
from tune_dlrml.search.study import SearchStudy
from tune_dlrml.search.warming import warm_up_once
from tune_dlrml.search.watchdog import Watchdog
from tune_dlrml.space import TrialSpec
from tune_dlrml.tracking.cursor import MlflowStore, search_id
from tune_dlrml.tracking.outbox import untracked
from tune_dlrml.tracking.tracker import Tracker
from tune_dlrml.training.checkpoint import discard_checkpoints, keep_newest_checkpoint
from tune_dlrml.training.group_spec import GroupSpec, TrialPlan

SLOT_MEMORY = 1 << 20
"""Bytes that a slot asks Ray for: it only waits, and a share of a CPU would keep a worker from a whole node."""


class SearchView(SearchObserver, Protocol):
    """Who shows a search to a person."""

    def on_begin(self, num_trials: int, done: int, full_steps: int) -> None:
        """The study is open; nothing was started yet."""

    def on_notice(self, text: str) -> None:
        """Something that a person should know while the search runs; may come from another thread."""

    def on_judged(self, number: int, grading: Grading) -> None:
        """What judges say of a trial's answers; comes from another thread."""


def run_search(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    """Run a search to its end, or let an interrupted one go on.

    Args:
        prepared: The search.
        view: Told of the search's beginning and of every trial's start, reports and end.

    Raises:
        InputError: The study belongs to other settings or is in use, or the cluster cannot hold the search.
        StorageError: A disk or the study's database does not take what the search writes.
    """
    result = _locked(prepared, view)
    again = None if result.interrupted or result.same_failures else confirmation_of(prepared, result.rows)
    if again is None:
        return result
    view.on_notice(f"the best trials and DPO again, with new seeds: search {again.config.name}")
    for note in set(again.notes) - set(prepared.notes):
        view.on_notice(note)
    confirming = _locked(again, view)
    return replace(
        result,
        interrupted=confirming.interrupted,
        same_failures=confirming.same_failures,
        untracked=result.untracked + confirming.untracked,
        seconds=result.seconds + confirming.seconds,
    )


def _locked(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    config, place = prepared.config, prepared.place
    folder, url = place.folder(config.name), place.study_url(config.name)
    with faults_of_storage(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with only_driver(url, folder, config.name) as lock, scratch_folder(folder) as scratch:
            return _run(prepared, view, lock, scratch)


def _run(prepared: PreparedSearch, view: SearchView, lock: DriverLock, scratch: Path) -> SearchResult:
    began, config, place = time.monotonic(), prepared.config, prepared.place
    pairs, steps, folder = prepared.pairs, prepared.steps, place.folder(config.name)
    hashes = {"train": content_hash(pairs.train), "eval": content_hash(pairs.eval)}
    study = open_study(prepared, hashes)
    study.belong_to(folder, search_id(folder))
    code = code_state()
    study.sign(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), code)
    events = EventLog(folder)
    rows = study.rows()
    _reconcile(rows, events)
    ended = sum(row.state is not State.RUNNING for row in rows)
    view.on_begin(study.num_trials, ended, steps)
    replace_file(folder / "search.yaml", to_yaml(config), durable=True)
    store = MlflowStore(place.mlflow_uri, config.tracking.experiment, place.artifacts)
    evaluation = Evaluation(prepared, study, events)
    if ended == len(rows) >= study.num_trials and untracked(events, store) == 0 and not evaluation.left():
        return read_search(config.name, place)
    tracker = Tracker(store, config.name, code, events)
    if not rows and not is_sqlite(store.uri):
        tracker.require_answer()
    tracker.describe_search(to_yaml(config), _params(config))
    books = _Books(study, events, tracker, view, evaluation)
    searcher = StudySearcher(study, books, expired=_expiry(config, began), allowed=lock.check)
    try:
        evaluation.begin(books.on_judged, view.on_notice)
        if _is_unfinished(study) or evaluation.unanswered():
            with ray_cluster(place.ray_address, config.resources, scratch, view.on_notice):
                if not rows:  # a new SQLite file takes seconds to get its tables, in which Ray has started
                    tracker.require_answer()
                _work(prepared, study, searcher, evaluation, view)
        unjudged = None if _is_unfinished(study) else evaluation.finish()
        result = replace(_result(place, study, searcher, time.monotonic() - began), unjudged=unjudged)
    except BaseException:
        tracker.leave()
        raise
    finally:
        evaluation.leave()
    left = _close(tracker, result)
    shutil.rmtree(folder / "ray", ignore_errors=True)
    study.close()
    return replace(result, untracked=left)


def _work(
    prepared: PreparedSearch, study: SearchStudy, searcher: StudySearcher, evaluation: Evaluation, view: SearchView
) -> None:
    """What needs the cluster: train what is left, then examine who has not been."""
    config = prepared.config
    if is_sqlite(prepared.place.study_url(config.name)):
        refuse_sqlite_on_a_cluster(len(alive_nodes()))
    if _is_unfinished(study):
        warm_up_once(prepared, view.on_notice)
        with Watchdog(searcher, config.resources, view.on_notice):
            _tune(searcher, _group(prepared, study), config)
    if not _is_unfinished(study):
        evaluation.examine()


def _reconcile(rows: Sequence[TrialRow], events: EventLog) -> None:
    """Bring event logs and checkpoints up to the study, where a driver died between the one and the others."""
    for row in rows:
        if row.state is not State.RUNNING and not events.ended(row.number):
            _write_end(row, events)


def _write_end(row: TrialRow, events: EventLog) -> None:
    """Close the books of a trial that trains no more; only a complete one keeps a checkpoint: the model it made."""
    trial_folder = events.path(row.number).parent
    if row.state is State.COMPLETE:
        keep_newest_checkpoint(trial_folder)
    else:
        discard_checkpoints(trial_folder)
    events.end(row.number, row.state, row.stop_reason)


def _group(prepared: PreparedSearch, study: SearchStudy) -> GroupSpec:
    config, folder = prepared.config, prepared.place.folder(prepared.config.name)
    return GroupSpec(
        name=config.name.replace("/", "-"),  # part of the names of Ray's runs, which are folders
        model=prepared.place.model(config),
        pairs=prepared.pairs,
        training=config.training,
        plan=TrialPlan(
            steps=prepared.steps,
            rungs=frozenset(study.rungs),
            workers=config.resources.workers,
            divergence=config.divergence,
            checkpoint=config.checkpoint,
            examination=prepared.examination if _examines_all(config) else None,
        ),
        resources=config.resources,
        storage=group_storage(folder),
        trials=str(folder / "trials"),
        reference=str(prepared.place.reference),
    )


def _examines_all(config: SearchConfig) -> bool:
    return config.evaluation is not None and config.evaluation.when == "final_rung"


def _params(config: SearchConfig) -> dict[str, Any]:
    """The settings of a search for MLflow's parent run, without the address of the tracking store itself."""
    return {key: value for key, value in config.flat().items() if not key.startswith("tracking.")}


def _expiry(config: SearchConfig, began: float) -> Callable[[], bool]:
    budget = config.search.time_budget_s
    return lambda: budget is not None and time.monotonic() - began >= budget


def _tune(searcher: StudySearcher, group: GroupSpec, config: SearchConfig) -> None:
    """Let Tune run the trials; its own files are thrown away, what counts is in the study and the event logs."""
    with tempfile.TemporaryDirectory(prefix="tune_") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(TrialSlot, group=group), tune.PlacementGroupFactory([{"memory": SLOT_MEMORY}])
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=config.resources.concurrent_trials,
                reuse_actors=True,
                time_budget_s=config.search.time_budget_s,
            ),
            run_config=tune.RunConfig(
                name=group.name,
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception:
            # Tune wraps an error of the study or the observer; the cause itself says more.
            if searcher.broken is None:
                raise
    if searcher.broken is not None:
        raise searcher.broken


def _result(place: SearchPlace, study: SearchStudy, searcher: StudySearcher, seconds: float) -> SearchResult:
    return replace(
        read_search(study.config.name, place),
        interrupted=_is_unfinished(study) and not searcher.same_failures,
        same_failures=searcher.same_failures,
        seconds=seconds,
    )


def _is_unfinished(study: SearchStudy) -> bool:
    """Whether trials are still to be trained."""
    rows = study.rows()
    return len(rows) < study.num_trials or any(row.state is State.RUNNING for row in rows)


def _close(tracker: Tracker, result: SearchResult) -> int:
    states = [row.state for row in result.rows]
    summary: dict[str, float] = {f"trials_{state}": float(states.count(state)) for state in State}
    if result.best is not None:
        summary |= {f"best_{name}": value for name, value in result.metrics[result.best].items() if "eval" in name}
    tags = {"best_trial": "none" if result.best is None else str(result.best)}
    return tracker.close(summary, tags, status="KILLED" if result.interrupted else "FINISHED")


def code_state() -> dict[str, str]:
    """The versions that a number rests on: packages, and the commit of this project where it runs from a checkout."""
    packages = ("tune-dlrml", "torch", "transformers", "trl", "peft", "ray", "optuna", "mlflow")
    tags = {f"version.{package}": metadata.version(package) for package in packages}
    if shutil.which("git") is None:
        return tags
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return tags | ({"mlflow.source.git.commit": commit.stdout.strip()} if commit.returncode == 0 else {})


class _Books:
    """Writes down everything that happens, in this order: event log, MLflow, view; and hands answers to the judges."""

    def __init__(
        self, study: SearchStudy, events: EventLog, tracker: Tracker, view: SearchView, evaluation: Evaluation
    ) -> None:
        self._study, self._events, self._tracker, self._view = study, events, tracker, view
        self._evaluation = evaluation
        self._runs: dict[int, str | None] = {}

    def on_start(self, spec: TrialSpec) -> None:
        self._events.start(spec)
        self._tracker.notify(spec.number)
        self._view.on_start(spec)

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        if self._events.report(report):
            self._tracker.notify(spec.number)
            self._note_run(spec.number)
        self._view.on_report(spec, report)

    def _note_run(self, number: int) -> None:
        """Put MLflow's run into the study, once there is one, for those who look at the study alone."""
        run = self._tracker.run_id(number)
        if run != self._runs.get(number):
            self._study.set_attribute(number, "mlflow_run_id", run)
            self._runs[number] = run

    def on_loss(self, spec: TrialSpec, reason: str, left: int) -> None:
        self._view.on_loss(spec, reason, left)

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        _write_end(row, self._events)
        self._tracker.notify(row.number)
        self._view.on_end(spec, row)
        self._evaluation.on_end(row)

    def on_judged(self, number: int, grading: Grading) -> None:
        self._tracker.notify(number)
        self._view.on_judged(number, grading)
