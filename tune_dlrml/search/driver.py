"""A whole search: data and study opened, Ray joined, Tune run over the slots, every end recorded."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from ray import tune

from tune_dlrml.config import SearchConfig, to_yaml
from tune_dlrml.data import content_hash
from tune_dlrml.errors import InputError
from tune_dlrml.records import Report, State
from tune_dlrml.search.cluster import group_storage, ray_cluster
from tune_dlrml.search.events import EventLog
from tune_dlrml.search.history import TrialRow
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.result import SearchPlace, SearchResult, read_search
from tune_dlrml.search.scheduler import StudyScheduler
from tune_dlrml.search.searcher import SearchObserver, StudySearcher
from tune_dlrml.search.slot import TrialSlot
from tune_dlrml.search.study import SearchStudy
from tune_dlrml.space import SearchSpace, TrialSpec
from tune_dlrml.tracking import Tracker
from tune_dlrml.training.trial import TrialPlan
from tune_dlrml.training.worker import GroupSpec

SLOT_MEMORY = 1 << 20
"""Bytes that a slot asks Ray for: it only waits, and a share of a CPU would keep a worker from a whole node."""


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
    if ended >= study.num_trials:
        return read_search(config.name, place)
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
        tracker.describe_search(to_yaml(config), _params(config))
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
                name=config.name,
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
    result = read_search(study.config.name, place)
    unfinished = result.interrupted or len(result.rows) < study.num_trials
    return replace(
        result,
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
    return tracker.close(summary, tags, status="KILLED" if result.interrupted else "FINISHED")


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
