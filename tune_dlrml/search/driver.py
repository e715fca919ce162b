"""Drives a whole search: opens data and study, joins Ray, runs Tune over the slots, records how every trial ends."""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from tune_dlrml.cluster.cluster import (
    alive_nodes,
    group_storage,
    kept_cluster,
    ray_cluster,
    refuse_sqlite_on_a_cluster,
    waited_for,
)
from tune_dlrml.cluster.driver_tmp import scratch_folder
from tune_dlrml.config import ResourcesConfig, SearchConfig, to_yaml
from tune_dlrml.data import as_table
from tune_dlrml.discovery.table import TABLE, proposals_table
from tune_dlrml.events import EventLog
from tune_dlrml.models.loading import files_of
from tune_dlrml.records import State
from tune_dlrml.search.books import Books, SearchView, reconcile
from tune_dlrml.search.clock import SearchClock, TimeIsUp
from tune_dlrml.search.confirm.prepared import confirmation_of
from tune_dlrml.search.discovering import Discovering
from tune_dlrml.search.judging.stage import Evaluation
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.result import SearchResult, read_search
from tune_dlrml.search.timings import is_loading
from tune_dlrml.search.tune.keeper import keeper_of, kept_groups
from tune_dlrml.search.tune.scheduler import StudyScheduler
from tune_dlrml.search.tune.searcher import StudySearcher
from tune_dlrml.search.tune.slot import TrialSlot
from tune_dlrml.search.tune.watchdog import Watchdog
from tune_dlrml.search.warm_up import warm_up_once
from tune_dlrml.study.database import faults_of_storage, is_sqlite
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.lock import DriverLock, only_driver
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.system.code_state import code_state
from tune_dlrml.system.files import replace_file
from tune_dlrml.system.signals import kept_handlers
from tune_dlrml.system.timings import mark
from tune_dlrml.tracking.cursor import search_id
from tune_dlrml.tracking.mlflow.runs import MlflowRuns
from tune_dlrml.tracking.outbox import untracked
from tune_dlrml.tracking.tracker import Tracker, keep_folder
from tune_dlrml.training.group_spec import GroupSpec, TrialPlan

SLOT_MEMORY = 1 << 20
"""Bytes that a slot requests from Ray: it only waits, and a share of a CPU would block a worker that needs a node."""


def run_search(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    """Run a search to its end, or resume an interrupted one; its confirmation follows in the same cluster.

    Args:
        prepared: The search.
        view: Notified when the search starts, and of every trial's start, reports and end.

    Raises:
        InputError: The study belongs to other settings or is in use, or the cluster cannot hold the search.
        StorageError: A disk or the study's database refuses a write of the search.
    """
    if prepared.config.search.confirm is None:
        return _locked(prepared, view)
    with kept_cluster(view.on_notice), kept_groups():
        return _with_confirmation(prepared, view)


def _with_confirmation(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    result = _locked(prepared, view)
    if result.interrupted or result.same_failures:
        return result
    again = confirmation_of(prepared, result.rows)
    if again is None:
        view.on_notice(
            "nothing is confirmed: beside the best DPO none is among the best search.confirm.top trials that are "
            "complete and feasible"
        )
        return result
    view.on_notice(f"confirming the best trials against DPO with new seeds: search {again.config.name}")
    for note in set(again.notes) - set(prepared.notes):
        view.on_notice(note)
    confirming = _locked(again, view)
    return replace(
        result,
        interrupted=confirming.interrupted,
        same_failures=confirming.same_failures,
        untracked=result.untracked + confirming.untracked,
        untracked_cause=result.untracked_cause or confirming.untracked_cause,
        seconds=result.seconds + confirming.seconds,
    )


def _locked(prepared: PreparedSearch, view: SearchView) -> SearchResult:
    config, place = prepared.config, prepared.place
    folder, url = place.folder(config.name), place.study_url(config.name)
    with faults_of_storage(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with only_driver(url, folder, config.name) as lock, scratch_folder(folder, view.on_notice) as scratch:
            return _run(prepared, view, lock, scratch)


@dataclass(frozen=True)
class _Turn:
    """What one driver holds while it drives a search.

    Attributes:
        code: Versions that it runs with.
        rows: The trials as they were when it started.
        out_of_time: Whether the search's time was up by then.
    """

    prepared: PreparedSearch
    view: SearchView
    study: SearchStudy
    events: EventLog
    clock: SearchClock
    evaluation: Evaluation
    discovering: Discovering
    code: Mapping[str, str]
    rows: Sequence[TrialRow]
    out_of_time: bool

    def trains(self) -> bool:
        """Whether trials are still to be trained, and there is time for it."""
        return _is_unfinished(self.study) and not self.clock.is_up()


def _run(prepared: PreparedSearch, view: SearchView, lock: DriverLock, scratch: Path) -> SearchResult:
    began, config, place = time.monotonic(), prepared.config, prepared.place
    turn = _begin(prepared, view)
    runs = MlflowRuns(place.mlflow_store(config), config.name, search_id(turn.events.folder), turn.code)
    if not turn.trains() and untracked(turn.events, runs.name) == 0 and not turn.evaluation.left():
        turn.study.close()
        return replace(read_search(config.name, place), out_of_time=turn.out_of_time)
    tracker = Tracker(runs, turn.events)
    if not turn.rows and not is_sqlite(place.mlflow_uri):
        tracker.require_answer()
    tracker.describe_search(to_yaml(config), _params(config))
    _keep_tables(prepared, tracker)
    try:
        result = replace(_drive(turn, tracker, lock, scratch), seconds=time.monotonic() - began)
    except BaseException:
        tracker.leave()
        raise
    finally:
        turn.discovering.leave()
        turn.evaluation.leave()
    left = _close(tracker, result, *prepared.conclusion(result.rows))
    if prepared.archive is not None and left == 0:
        refused = keep_folder(runs, prepared.archive.folder)
        if refused is not None:
            view.on_notice(f"the proposals were not logged to MLflow: {refused}; they are in {prepared.archive.folder}")
    shutil.rmtree(place.folder(config.name) / "ray", ignore_errors=True)
    turn.study.close()
    logged = {row.number: tracker.run_id(row.number) for row in result.rows}  # the last trials got theirs just now
    return replace(result, runs=logged, untracked=left, untracked_cause=tracker.trouble)


def _keep_tables(prepared: PreparedSearch, tracker: Tracker) -> None:
    """What was found in the data, and the proposals whenever one changes."""
    if prepared.found:
        tracker.keep_table("dataset.json", as_table(prepared.found))
    if prepared.archive is not None:
        prepared.archive.follow(lambda records: tracker.keep_table(TABLE, proposals_table(records)))


def _begin(prepared: PreparedSearch, view: SearchView) -> _Turn:
    """Open the study and the event logs, reconcile them, and show how far the search is."""
    config, folder, checked_s = prepared.config, prepared.place.folder(prepared.config.name), time.time()
    study, events, code = prepared.open_study(), EventLog(folder), code_state()
    study.belong_to(folder, search_id(folder))
    study.sign(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), code)
    mark(folder, "command", checked_s if prepared.began_s is None else prepared.began_s)
    if prepared.began_s is not None:
        mark(folder, "checked", checked_s)
    mark(folder, "study")
    clock, rows = SearchClock(study, config.search.time_budget_s), study.rows()
    reconcile(rows, events)
    out_of_time = _check_time(study, clock, view)
    if not out_of_time:
        view.on_begin(study.num_trials, sum(row.state.ended for row in rows), prepared.steps, study.paused)
    replace_file(folder / "search.yaml", to_yaml(config), durable=True)
    evaluation = Evaluation(prepared, study, events)
    discovering = Discovering(prepared)
    return _Turn(prepared, view, study, events, clock, evaluation, discovering, code, rows, out_of_time)


def _drive(turn: _Turn, tracker: Tracker, lock: DriverLock, scratch: Path) -> SearchResult:
    """Train and judge what is left, within the time budget."""
    prepared, study, clock, evaluation = turn.prepared, turn.study, turn.clock, turn.evaluation
    place, notice = prepared.place, turn.view.on_notice
    books = Books(study, turn.events, tracker, turn.view, evaluation, turn.discovering, prepared.tags_of)
    searcher = StudySearcher(study, books, expired=clock.is_up, allowed=lock.check, waiting=turn.discovering.on_wait)
    evaluation.begin(books.on_judged, notice)
    trains = turn.trains()
    if trains:
        turn.discovering.begin(notice)
    if trains or evaluation.unanswered():
        with clock.running(trains), ray_cluster(place.ray_address, prepared.config.resources, scratch, notice):
            mark(turn.events.folder, "ray")
            if not turn.rows:  # a new SQLite file takes seconds to get its tables, in which Ray has started
                tracker.require_answer()
            _work(turn, searcher)
    unjudged = None if turn.trains() else evaluation.finish()
    turn.discovering.finish()  # with all ratings
    out_of_time = turn.out_of_time or _check_time(study, clock, turn.view)
    return replace(
        read_search(study.config.name, place),
        interrupted=_is_unfinished(study) and not searcher.same_failures and not out_of_time,
        out_of_time=out_of_time,
        same_failures=searcher.same_failures,
        unjudged=unjudged,
    )


def _work(turn: _Turn, searcher: StudySearcher) -> None:
    """The part that needs the cluster: train what is left, then collect missing answers."""
    prepared, config, notice = turn.prepared, turn.prepared.config, turn.view.on_notice
    if is_sqlite(prepared.place.study_url(config.name)):
        refuse_sqlite_on_a_cluster(len(alive_nodes()))
    if turn.trains():
        warm_up_once(prepared, notice)
        with Watchdog(searcher, config.resources, notice, partial(_waits_for, turn.events.folder)):
            _tune(searcher, _group(prepared, turn.study), config, turn.clock)
    turn.clock.stop()
    if not turn.trains():
        turn.evaluation.ask()


def _waits_for(folder: Path, resources: ResourcesConfig) -> str:
    """What a trial without a first report may be waiting for."""
    if is_loading(folder):
        return "its workers are up, and load the model, compute the reference's log-probs of the pairs, or hang"
    return waited_for(resources)


def _group(prepared: PreparedSearch, study: SearchStudy) -> GroupSpec:
    config, folder = prepared.config, prepared.place.folder(prepared.config.name)
    return GroupSpec(
        name=config.name.replace("/", "-"),  # part of the names of Ray's runs, which are folders
        model=prepared.place.model(config),
        files=files_of(prepared.place.model(config)),
        pairs=prepared.pairs,
        training=config.training,
        plan=TrialPlan(
            steps=prepared.steps,
            rungs=frozenset(study.rungs),
            workers=config.resources.workers,
            divergence=config.divergence,
            checkpoint=config.checkpoint,
            questionnaire=prepared.questionnaire if _asks_all(config) else None,
            pauses=study.pauses,
        ),
        resources=config.resources,
        storage=group_storage(folder),
        trials=str(folder / "trials"),
        reference=str(prepared.place.reference) if config.needs_reference() else None,
        completer=prepared.completer,
        beyond=config.weighs_length(),
    )


def _asks_all(config: SearchConfig) -> bool:
    return config.evaluation is not None and config.evaluation.when == "final_rung"


def _params(config: SearchConfig) -> dict[str, Any]:
    """The settings of a search for MLflow's parent run, without the address of the tracking store itself."""
    return {key: value for key, value in config.flat().items() if not key.startswith("tracking.")}


def _tune(searcher: StudySearcher, group: GroupSpec, config: SearchConfig, clock: SearchClock) -> None:
    """Let Tune run the trials; its own files are deleted, since the study and the event logs have everything."""
    # The death of a keeper's node would end its groups on all nodes.
    keeper = keeper_of(group.shape) if len(alive_nodes()) == 1 else None
    with tempfile.TemporaryDirectory(prefix="tune_") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(TrialSlot, group=group, keeper=keeper),
                tune.PlacementGroupFactory([{"memory": SLOT_MEMORY}]),
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=config.resources.concurrent_trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=group.name,
                storage_path=folder,
                stop=TimeIsUp(clock),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            with kept_handlers(signal.SIGINT, signal.SIGUSR1):  # Tune's own note a Ctrl-C for this run, and stay
                tuner.fit()
        except Exception:
            # Tune wraps an error of the study or the observer; the cause itself is clearer.
            if searcher.broken is None:
                raise
    if searcher.broken is not None:
        raise searcher.broken


def _is_unfinished(study: SearchStudy) -> bool:
    """Whether trials are still to be trained."""
    rows = study.rows()
    return len(rows) < study.num_trials or not all(row.state.ended for row in rows)


def _check_time(study: SearchStudy, clock: SearchClock, view: SearchView) -> bool:
    """Whether the time is up before all trials have ended; then the view shows that, and how to continue."""
    if not _is_unfinished(study) or not clock.is_up():
        return False
    states = [row.state for row in study.rows()]
    ended, running = sum(state.ended for state in states), states.count(State.RUNNING)
    paused = f", {states.count(State.PAUSED)} are paused" if State.PAUSED in states else ""
    view.on_notice(
        f"search.time_budget_s: the {study.config.search.time_budget_s:g} s of search {study.config.name!r} are spent, "
        f"so training stops: {ended} of {study.num_trials} trials have ended{paused} and {running} were "
        "interrupted; the same command with a larger budget resumes it"
    )
    return True


def _close(tracker: Tracker, result: SearchResult, own: Mapping[str, float], own_tags: Mapping[str, str]) -> int:
    states = [row.state for row in result.rows]
    summary: dict[str, float] = {f"trials_{state}": float(states.count(state)) for state in State}
    if result.best is not None:
        summary |= {f"best_{name}": value for name, value in result.metrics[result.best].items() if "eval" in name}
    tags = {"best_trial": "none" if result.best is None else str(result.best)}
    return tracker.close(
        {**summary, **own}, {**tags, **own_tags}, status="KILLED" if result.interrupted else "FINISHED"
    )
