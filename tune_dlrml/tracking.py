"""MLflow: one parent run a search, one nested child run a trial. Nothing here can stop a training.

Everything about trials goes through one thread, in order, metrics in batches and with the timestamps of the reports:
sent twice, a point is still one point. While MLflow is away the work waits and is done later; `close` says what is
left.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tune_dlrml.errors import InputError
from tune_dlrml.records import Report, State
from tune_dlrml.space import TrialSpec

log = logging.getLogger(__name__)

METRICS_A_CALL = 1000
"""Limit of MLflow's log_batch."""
PARAM_LENGTH = 6000
"""Limit of MLflow for the text of a param."""
TAG_LENGTH = 5000
FLUSH_S = 2.0
START_S = 20.0
RETRY_S = 5.0
CLOSE_S = 60.0
SEARCH_TAG = "tune_dlrml.search"
TRIAL_TAG = "tune_dlrml.trial"
_STATUS = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "FINISHED",
    State.DIVERGED: "FINISHED",
    State.FAILED: "FAILED",
}


@dataclass(frozen=True)
class _Start:
    spec: TrialSpec
    created: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Log:
    number: int
    metrics: list[Metric]


@dataclass(frozen=True)
class _End:
    number: int
    state: State
    reason: str


_Work = _Start | _Log | _End


class Tracker:
    """The runs of one search.

    Args:
        uri: Tracking URI of MLflow.
        experiment: Name of the experiment; made with its artifacts under `artifacts` if there is none yet.
        artifacts: Folder for the artifacts of a new experiment; None leaves the place to an MLflow server.
        search: Name of the search.
        tags: On every run: git commit, package versions.

    Raises:
        InputError: MLflow cannot be reached when the search starts.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, search: str, tags: Mapping[str, str]) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._search = search
        self._tags = dict(tags)
        self._work: deque[_Work] = deque()
        self._open_logs: dict[int, _Log] = {}
        self._runs: dict[int, str] = {}
        self._changed = threading.Condition()
        self._hurry = self._closing = False
        try:
            self._experiment = self._find_experiment(experiment, artifacts)
            self.parent = self._find_or_create(search, {SEARCH_TAG: search, "mlflow.note.content": _NOTE})
        except (MlflowException, OSError) as error:
            raise InputError(
                f"tracking.mlflow: MLflow at {uri} does not answer ({type(error).__name__}); start it or change the URI"
            ) from error
        self._thread = threading.Thread(target=self._work_forever, name="mlflow", daemon=True)
        self._thread.start()

    def describe_search(self, config_yaml: str, params: Mapping[str, Any]) -> None:
        """The resolved search-space file as an artifact of the parent run, and its settings as params."""
        self._client.log_text(self.parent, config_yaml, "search.yaml")
        self._log_params(self.parent, params)

    def start_trial(self, spec: TrialSpec, *, wait_s: float = START_S) -> str | None:
        """Open the child run of a trial, found by its tags or made; its run id, or None while MLflow is away."""
        start = _Start(spec)
        self._put(start, hurry=True)
        start.created.wait(wait_s)
        return self._runs.get(spec.number)

    def log(self, report: Report) -> None:
        """Queue the metrics of a report."""
        metrics = [Metric(name, value, report.timestamp_ms, report.step) for name, value in report.metrics.items()]
        self._put(_Log(report.number, metrics), hurry=False)

    def end_trial(self, number: int, state: State, reason: str) -> None:
        """Close a child run, behind its last metric, with what became of its trial."""
        self._put(_End(number, state, reason), hurry=False)

    def close(self, summary: Mapping[str, float], tags: Mapping[str, str], *, status: str) -> int:
        """Do what is left, for up to `CLOSE_S` seconds, and close the parent run with the numbers of the whole search.

        Returns:
            How many pieces of work MLflow never took.
        """
        with self._changed:
            self._closing = self._hurry = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        try:
            self._close_parent(summary, tags, status)
        except (MlflowException, OSError) as error:
            log.warning("MLflow is away, the parent run stays open: %s", error)
            return len(self._work) + 1
        return len(self._work)

    def _close_parent(self, summary: Mapping[str, float], tags: Mapping[str, str], status: str) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.parent,
            metrics=[Metric(name, value, now, 0) for name, value in summary.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        self._client.set_terminated(self.parent, status=status)

    def _find_experiment(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None if artifacts is None else artifacts.resolve().as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def _find_or_create(self, name: str, tags: Mapping[str, str]) -> str:
        keys = {key: value for key, value in tags.items() if key in (SEARCH_TAG, TRIAL_TAG)}
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in keys.items())
        for run in self._client.search_runs([self._experiment], condition, max_results=100):
            if (TRIAL_TAG in run.data.tags) == (TRIAL_TAG in keys):
                run_id = str(run.info.run_id)
                self._client.update_run(run_id, status="RUNNING")
                self._client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
                return run_id
        every = {key: str(value) for key, value in {**self._tags, **tags}.items()}
        return str(self._client.create_run(self._experiment, tags=every, run_name=name).info.run_id)

    def _log_params(self, run: str, params: Mapping[str, Any]) -> None:
        known = self._client.get_run(run).data.params
        fresh = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), 100):
            self._client.log_batch(run, params=fresh[start : start + 100])

    def _put(self, work: _Work, *, hurry: bool) -> None:
        with self._changed:
            waiting = self._open_logs.get(work.number) if isinstance(work, _Log) else None
            if isinstance(work, _Log) and waiting is not None:
                waiting.metrics.extend(work.metrics)
                return
            self._work.append(work)
            if isinstance(work, _Log):
                self._open_logs[work.number] = work
            elif isinstance(work, _End):
                self._open_logs.pop(work.number, None)
            self._hurry = self._hurry or hurry
            self._changed.notify_all()

    def _work_forever(self) -> None:
        pause_s = FLUSH_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hurry or (self._closing and not self._work), pause_s)
                if self._closing and not self._work:
                    return
                self._hurry = False
            pause_s = FLUSH_S if self._do_all() else RETRY_S

    def _do_all(self) -> bool:
        while self._work:
            with self._changed:
                work = self._work[0]
                if isinstance(work, _Log) and self._open_logs.get(work.number) is work:
                    del self._open_logs[work.number]
            try:
                self._do(work)
            except (MlflowException, OSError) as error:
                log.warning("MLflow is away, %d pieces of work wait for it: %s", len(self._work), error)
                return False
            with self._changed:
                self._work.popleft()
        return True

    def _do(self, work: _Work) -> None:
        if isinstance(work, _Start):
            self._runs[work.spec.number] = self._child(work.spec)
            work.created.set()
        elif isinstance(work, _Log):
            while work.metrics:
                self._client.log_batch(self._runs[work.number], metrics=work.metrics[:METRICS_A_CALL])
                del work.metrics[:METRICS_A_CALL]
        else:
            run = self._runs[work.number]
            reason = RunTag("stop_reason", work.reason[:TAG_LENGTH])
            self._client.log_batch(run, tags=[RunTag("state", str(work.state)), reason])
            self._client.set_terminated(run, status=_STATUS[work.state])

    def _child(self, spec: TrialSpec) -> str:
        own = {
            SEARCH_TAG: self._search,
            TRIAL_TAG: str(spec.number),
            "mlflow.parentRunId": self.parent,
            "loss": spec.loss.name,
            "branch": spec.branch,
            "state": str(State.RUNNING),
            "attempt": str(spec.attempt),
        }
        run = self._find_or_create(f"trial {spec.number:03d} {spec.branch}", own)
        self._log_params(run, spec.training.flat() | spec.settings())
        return run


_NOTE = "A search of tune_dlrml. Its child runs are the trials; compare them by `eval_accuracy` and `eval_kl`."
