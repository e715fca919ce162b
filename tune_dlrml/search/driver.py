"""A whole search: data and study opened, Ray joined, Tune run over the slots, every end recorded."""

import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from ray import tune

from tune_dlrml.config import SearchConfig, load_config, to_yaml
from tune_dlrml.data import content_hash
from tune_dlrml.errors import InputError
from tune_dlrml.records import Report, State
from tune_dlrml.search.cluster import group_storage, ray_cluster
from tune_dlrml.search.events import EventLog
from tune_dlrml.search.history import StudyHistory, TrialRow
from tune_dlrml.search.preparation import PreparedSearch, SearchPlace
from tune_dlrml.search.scheduler import StudyScheduler
from tune_dlrml.search.searcher import SearchObserver, StudySearcher
from tune_dlrml.search.slot import TrialSlot
from tune_dlrml.search.study import SearchStudy
from tune_dlrml.space import SearchSpace, TrialSpec
from tune_dlrml.tracking import Tracker
from tune_dlrml.training.trial import TrialPlan
from tune_dlrml.training.worker import GroupSpec

log = logging.getLogger(__name__)

SLOT_MEMORY = 1 << 20
"""Bytes that a slot asks Ray for: it only waits, and a share of a CPU would keep a worker from a whole node."""


@dataclass(frozen=True)
class SearchResult:
    """What became of a search.

    Attributes:
        rows: All trials.
        best: Number of the best complete one; None if none is.
        metrics: Newest value of every metric, by trial.
        interrupted: The search was ended by a signal or its time budget, and can go on.
        same_failures: Why it ended early, if trials kept failing in the same way.
        untracked: Pieces of work that MLflow never took.
    """

    name: str
    rows: tuple[TrialRow, ...]
    best: int | None
    metrics: Mapping[int, Mapping[str, float]]
    mlflow_uri: str
    interrupted: bool = False
    same_failures: str = ""
    untracked: int = 0
    seconds: float = 0.0


class SearchView(SearchObserver, Protocol):
    """Who shows a search to a person."""

    def on_begin(self, num_trials: int, done: int, full_steps: int) -> None:
        """The study is open; nothing was started yet."""


def run_search(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    """Run a search to its end, or let an interrupted one go on.

    Args:
        prepared: The search.
        view: Told of the search's beginning and of every trial's start, reports and end.

    Raises:
        InputError: The study belongs to other settings or is in use, or the cluster cannot hold the search.
    """
    folder = prepared.place.folder(prepared.config.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            return _run(prepared, view)
    except Timeout:
        name = prepared.config.name
        raise InputError(f"search {name!r} already runs in {folder}; wait, or choose another --name") from None


def _run(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    began, config, place = time.monotonic(), prepared.config, prepared.place
    pairs, steps, folder = prepared.pairs, prepared.steps, place.folder(config.name)
    hashes = {"train": content_hash(pairs.train), "eval": content_hash(pairs.eval)}
    study = SearchStudy(config, SearchSpace(config), place.study_url(config.name), steps, hashes)
    ended = sum(row.state is not State.RUNNING for row in study.rows())
    view.on_begin(study.num_trials, ended, steps)
    (folder / "search.yaml").write_text(to_yaml(config), encoding="utf-8")
    plan = TrialPlan(steps, frozenset(study.rungs), config.resources.workers, config.divergence)
    group = GroupSpec(
        name=config.name,
        model=config.model,
        pairs=pairs,
        training=config.training,
        plan=plan,
        resources=config.resources,
        storage=group_storage(folder),
    )
    with ray_cluster(place.ray_address, config.resources):
        tracker = _tracker(config, place)
        tracker.describe_search(to_yaml(config), config.flat())
        books = _Books(study, EventLog(folder), tracker, view)
        searcher = StudySearcher(study, books, expired=_expiry(config, began))
        _tune(searcher, group, config)
        result = _result(place, study, searcher, time.monotonic() - began)
        untracked = _close(tracker, result)
    shutil.rmtree(folder / "ray", ignore_errors=True)
    study.close()
    return replace(result, untracked=untracked)


def _tracker(config: SearchConfig, place: SearchPlace) -> Tracker:
    artifacts = place.storage / "mlflow-artifacts" if config.tracking.mlflow is None else None
    return Tracker(place.mlflow_uri(config), config.tracking.experiment, artifacts, config.name, code_state())


def _expiry(config: SearchConfig, began: float) -> Callable[[], bool]:
    budget = config.search.time_budget_s
    return lambda: budget is not None and time.monotonic() - began >= budget


def _tune(searcher: StudySearcher, group: GroupSpec, config: SearchConfig) -> None:
    """Let Tune run the trials; its own files are thrown away, what counts is in the study and the event logs."""
    with tempfile.TemporaryDirectory(prefix="tune_") as folder:
        tune.Tuner(
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
                name=config.name,
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()
    if searcher.broken is not None:
        raise searcher.broken


def _result(place: SearchPlace, study: SearchStudy, searcher: StudySearcher, seconds: float) -> SearchResult:
    rows, config = tuple(study.rows()), study.config
    events = EventLog(place.folder(config.name))
    unfinished = len(rows) < study.num_trials or any(row.state is State.RUNNING for row in rows)
    return SearchResult(
        name=config.name,
        rows=rows,
        best=study.best(),
        metrics={row.number: events.last_metrics(row.number) for row in rows},
        mlflow_uri=place.mlflow_uri(config),
        interrupted=unfinished and not searcher.same_failures,
        same_failures=searcher.same_failures,
        seconds=seconds,
    )


def _close(tracker: Tracker, result: SearchResult) -> int:
    states = [row.state for row in result.rows]
    summary: dict[str, float] = {f"trials_{state}": float(states.count(state)) for state in State}
    if result.best is not None:
        summary |= {f"best_{name}": value for name, value in result.metrics[result.best].items() if "eval" in name}
    tags = {"best_trial": "none" if result.best is None else str(result.best)}
    tracker.end_search(summary, tags, status="KILLED" if result.interrupted else "FINISHED")
    return tracker.close()


def read_search(name: str, place: SearchPlace) -> SearchResult:
    """Where a search stands, from its study and event logs; it may be running in another process.

    Raises:
        InputError: There is no such search.
    """
    history = StudyHistory.open(place.study_url(name), name)
    rows = tuple(history.rows())
    events = EventLog(place.folder(name))
    config = load_config(place.folder(name) / "search.yaml")
    result = SearchResult(
        name=name,
        rows=rows,
        best=history.best(),
        metrics={row.number: events.last_metrics(row.number) for row in rows},
        mlflow_uri=place.mlflow_uri(config),
        interrupted=any(row.state is State.RUNNING for row in rows),
    )
    history.close()
    return result


def code_state() -> dict[str, str]:
    """The versions that a number rests on: packages, and the commit of this project where it runs from a checkout."""
    packages = ("tune-dlrml", "torch", "transformers", "trl", "peft", "ray", "optuna", "mlflow")
    tags = {f"version.{package}": metadata.version(package) for package in packages}
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return tags | ({"mlflow.source.git.commit": commit.stdout.strip()} if commit.returncode == 0 else {})


class _Books:
    """Writes down everything that happens, in this order: event log, MLflow, view."""

    def __init__(self, study: SearchStudy, events: EventLog, tracker: Tracker, view: SearchObserver) -> None:
        self._study, self._events, self._tracker, self._view = study, events, tracker, view

    def on_start(self, spec: TrialSpec) -> None:
        self._events.start(spec.number, spec.attempt, spec.settings())
        run = self._tracker.start_trial(spec)
        if run is not None:
            self._study.set_attribute(spec.number, "mlflow_run_id", run)
        self._view.on_start(spec)

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        self._events.report(report)
        self._tracker.log(report)
        self._view.on_report(spec, report)

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        self._events.end(row.number, str(row.state), row.stop_reason)
        self._tracker.end_trial(row.number, row.state, row.stop_reason)
        self._view.on_end(spec, row)
