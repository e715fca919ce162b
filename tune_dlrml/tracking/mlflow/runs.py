"""The runs of one search in MLflow."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
from mlflow.exceptions import MlflowException

from tune_dlrml.events import Event
from tune_dlrml.records import State
from tune_dlrml.tracking.backend import ClosedError, Point, RefusedError, RunGoneError
from tune_dlrml.tracking.mlflow.limits import METRICS_A_CALL, TAG_LENGTH, param_calls, short_key, short_text
from tune_dlrml.tracking.mlflow.moved import follow_artifacts
from tune_dlrml.tracking.mlflow.store import MlflowStore

REQUEST_S = 10
"""Time limit of one request to an MLflow server."""
PAGE = 1000
"""Runs per call of a listing."""
SETTLE_S = 3.0
"""Time in which a server that was suspended executes calls that had timed out."""
SEARCH_TAG = "tune_dlrml.search"
SEARCH_ID_TAG = "tune_dlrml.search_id"
ROLE_TAG = "tune_dlrml.role"
TRIAL_TAG = "tune_dlrml.trial"
_PARENT_TAG = "mlflow.parentRunId"
_TABLES_TAG = "mlflow.loggedArtifacts"
_NOTE = "A search of tune_dlrml. Its child runs are the trials; compare them by their `eval_` metrics."
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""Errors about the data itself. BAD_REQUEST is not one: MLflow also returns it while its database is read-only."""
_STATUS = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "FINISHED",
    State.DIVERGED: "FINISHED",
    State.FAILED: "FAILED",
}


class ArtifactError(Exception):
    """The artifact store refused a file."""


class MlflowRuns:
    """A `Backend`: the run of a search and those of its trials below it, found by their tags before they are made.

    MLflow cannot make a run exactly once: a server that was suspended may still execute a call that timed out. So after
    such a call the search by tags is repeated when the server has answered for a while, and `doubtful` requests
    `drop_twins`.

    Args:
        store: The MLflow and the experiment, which is made if it does not exist yet.
        search: Name of the search.
        identity: Unique id among searches of its name.
        tags: On every run that is made here: git commit, package versions.
    """

    title, key, points_a_call = "MLflow", "tracking.mlflow", METRICS_A_CALL

    def __init__(self, store: MlflowStore, search: str, identity: str, tags: Mapping[str, str]) -> None:
        _bound_requests()
        self._store, self._search, self._identity = store, search, identity
        self._tags = {**tags, SEARCH_TAG: search, SEARCH_ID_TAG: identity}
        self._given_up: set[str] = set()
        self._connected: MlflowClient | None = None
        self._experiment = ""
        self.doubtful = False

    @property
    def place(self) -> str:
        """The tracking URI without a password."""
        return self.shown(self._store.uri)

    @property
    def name(self) -> str:
        """The tracking URI without a password, and the experiment."""
        return self._store.name

    @property
    def _client(self) -> MlflowClient:
        # MLflow opens a database when its client is made, so that can fail, too.
        if self._connected is None:
            self._connected = MlflowClient(tracking_uri=self._store.uri)
        return self._connected

    def open(self, known: str | None) -> str:
        """See `Backend.open`."""
        if not self._experiment:
            self._experiment = self._find_experiment()
        own = {ROLE_TAG: "search", "mlflow.note.content": _NOTE}
        run = known if known is not None and self._is_there(known) else None
        run = run or self._find_or_create(self._search, {ROLE_TAG: "search"}, own, int(time.time() * 1000))
        self._client.update_run(run, status="RUNNING")
        return run

    def describe(self, parent: str, config_yaml: str, params: Mapping[str, Any]) -> None:
        """Log the resolved search-space file as an artifact of the parent run, and its params."""
        self._client.log_text(parent, config_yaml, "search.yaml")
        self._describe(parent, params, {})

    def keep_tables(self, parent: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Log tables as artifacts of the parent run, which MLflow shows as tables."""
        for name, table in tables.items():
            self._client.log_text(parent, json.dumps(table, ensure_ascii=False), name)
        known = json.loads(self._client.get_run(parent).data.tags.get(_TABLES_TAG, "[]"))
        names = dict.fromkeys([*(each["path"] for each in known), *tables])
        self._client.set_tag(parent, _TABLES_TAG, json.dumps([{"path": name, "type": "table"} for name in names]))

    def close(
        self, parent: str, summary: Mapping[str, float], tags: Mapping[str, str], status: str, timestamp_ms: int
    ) -> None:
        """Close the parent run; a number that has changed since an earlier close gets the next step."""
        metrics = []
        for name, value in summary.items():
            earlier = self._client.get_metric_history(parent, name)
            if not any(metric.step == len(earlier) - 1 and metric.value == value for metric in earlier):
                metrics.append(Metric(name, value, timestamp_ms, len(earlier)))
        self._client.log_batch(parent, metrics=metrics, tags=[RunTag(name, value) for name, value in tags.items()])
        self._client.set_terminated(parent, status=status, end_time=timestamp_ms)

    def child(self, number: int, event: Event, parent: str) -> str:
        """Id of the run of a trial, which is made from its start event if it does not exist yet."""
        name = f"trial {number:03d} {event['branch']}"
        own = {ROLE_TAG: "trial", TRIAL_TAG: str(number), _PARENT_TAG: parent}
        return self._find_or_create(name, {TRIAL_TAG: str(number)}, own, event["timestamp_ms"])

    def start(self, run: str, event: Event) -> None:
        """Mark a child run as running, with the data of its start event."""
        tags = {
            "loss": event["settings"]["loss"],
            "branch": event["branch"],
            "state": str(State.RUNNING),
            "attempt": str(event["attempt"]),
            **event.get("tags", {}),
        }
        with self._run_errors(run):
            if self._describe(run, event["params"], tags).info.status != "RUNNING":
                self._client.update_run(run, status="RUNNING")

    def log(self, run: str, points: Sequence[Point]) -> None:
        """See `Backend.log`."""
        metrics = [Metric(short_key(name), value, timestamp_ms, step) for name, value, timestamp_ms, step in points]
        with self._run_errors(run):
            self._client.log_batch(run, metrics=metrics)

    def pause(self, run: str) -> None:
        """Mark a child run as paused; for MLflow it goes on running."""
        with self._run_errors(run):
            self._client.log_batch(run, tags=[RunTag("state", State.PAUSED)])

    def end(self, run: str, event: Event) -> None:
        """Close a child run with the end of its trial."""
        reason = RunTag("stop_reason", short_text(event["reason"], TAG_LENGTH))
        with self._run_errors(run):
            self._client.log_batch(run, tags=[RunTag("state", event["state"]), reason])
            self._client.set_terminated(run, status=_STATUS[State(event["state"])], end_time=event["timestamp_ms"])

    def add_files(self, run: str, paths: Sequence[Path]) -> None:
        """Log files as artifacts; a `.json` file is a table, which MLflow shows beside those of other runs.

        Raises:
            ArtifactError: The artifact store refused them; MLflow itself may work.
        """
        there = [path for path in paths if path.exists()]
        tables = [{"path": path.name, "type": "table"} for path in there if path.suffix == ".json"]
        with self._run_errors(run):
            try:
                for path in there:
                    self._client.log_artifact(run, str(path))
            except OSError as error:
                raise ArtifactError(f"{type(error).__name__}: {error}") from error
            self._client.set_tag(run, _TABLES_TAG, json.dumps(tables))

    def keep_folder(self, folder: Path) -> None:
        """Log a folder, under its name, as artifacts of the parent run, in place of earlier ones.

        Raises:
            RunGoneError: The search has no run.
        """
        self._experiment = self._experiment or self._find_experiment()
        found = self._find({ROLE_TAG: "search"})
        if not found:
            raise RunGoneError(f"it has no run of the search {self._search}")
        run = max(found, key=lambda run: len(run.data.metrics)).info.run_id
        self._client.log_artifacts(run, str(folder), folder.name)

    def children(self, parent: str) -> dict[int, list[str]]:
        """See `Backend.children`."""
        found = self._children()
        for run in (run for runs in found.values() for run in runs):
            if run.data.tags.get(_PARENT_TAG) != parent:
                self._client.set_tag(run.info.run_id, _PARENT_TAG, parent)
        return {number: [str(run.info.run_id) for run in runs] for number, runs in found.items()}

    def drop_twins(self, parent: str, kept: Mapping[int, str | None]) -> None:
        """Delete runs that were made by calls that had timed out; MLflow can restore deleted runs."""
        families: list[tuple[str | None, list[Run]]] = [(parent, self._find({ROLE_TAG: "search"}))]
        families += [(kept.get(number), runs) for number, runs in self._children().items()]
        for own, runs in families:
            metrics = next((run.data.metrics.keys() for run in runs if run.info.run_id == own), None)
            for twin in runs:
                if metrics is not None and twin.info.run_id != own and twin.data.metrics.keys() <= metrics:
                    self._client.delete_run(twin.info.run_id)
        self.doubtful = False

    def is_away(self, error: Exception) -> bool:
        """See `Backend.is_away`."""
        return is_away(error)

    def shown(self, error: object) -> str:
        """See `Backend.shown`."""
        return self._store.shown(error)

    @contextmanager
    def _run_errors(self, run: str) -> Iterator[None]:
        """Turn MLflow's answers about a run into this protocol's errors; other errors mean that it is unavailable."""
        try:
            yield
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if not self._is_there(run):
                raise RunGoneError(run) from None
            raise RefusedError(error.message) from error

    def _is_there(self, run: str) -> bool:
        """Whether MLflow has a run that is not deleted."""
        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _children(self) -> dict[int, list[Run]]:
        found: dict[int, list[Run]] = {}
        for run in self._find({ROLE_TAG: "trial"}):
            found.setdefault(int(run.data.tags[TRIAL_TAG]), []).append(run)
        return found

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._store.experiment)
        if found is not None:
            if found.lifecycle_stage == LifecycleStage.DELETED:
                raise ClosedError(
                    "tracking.experiment",
                    f"experiment {self._store.experiment!r} is in MLflow's trash; `mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}` with MLFLOW_TRACKING_URI set brings it back, or name "
                    "another one by tracking.experiment",
                )
            if self._store.artifacts is not None:
                follow_artifacts(self._store.uri, found, self._store.artifacts)
            return str(found.experiment_id)
        place = None if self._store.artifacts is None else self._store.artifacts.resolve().as_uri()
        return str(self._client.create_experiment(self._store.experiment, artifact_location=place))

    def _find(self, tags: Mapping[str, str]) -> list[Run]:
        wanted = {SEARCH_ID_TAG: self._identity, **tags}
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], condition, max_results=PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _find_or_create(self, name: str, keys: Mapping[str, str], tags: Mapping[str, str], start_ms: int) -> str:
        found = self._find(keys)
        if not found and name in self._given_up:
            time.sleep(SETTLE_S)
            found = self._find(keys)
        if found:
            return str(max(found, key=lambda run: len(run.data.metrics)).info.run_id)
        self._given_up.add(name)
        every = {key: short_text(value, TAG_LENGTH) for key, value in {**self._tags, **tags}.items()}
        try:
            run = self._client.create_run(
                self._experiment, start_time=start_ms, tags=every, run_name=short_text(name, TAG_LENGTH)
            )
        except Exception:
            self.doubtful = True
            raise
        self._given_up.discard(name)
        return str(run.info.run_id)

    def _describe(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
        """Log tags, and the params that MLflow does not have yet: it refuses another value later."""
        before = self._client.get_run(run)
        own_tags = [RunTag(key, short_text(value, TAG_LENGTH)) for key, value in tags.items()]
        fresh = {key: value for key, value in params.items() if short_key(key) not in before.data.params}
        for call in [*param_calls(fresh)] or [{}]:
            self._client.log_batch(run, params=[Param(key, text) for key, text in call.items()], tags=own_tags)
        return before


def is_refusal(error: Exception) -> bool:
    """Whether MLflow refused a call in a way that will not change if it is repeated."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def is_away(error: Exception) -> bool:
    """Whether MLflow is unavailable: no connection, no answer in time, or a broken server."""
    return isinstance(error, OSError | MlflowException) and not is_refusal(error)


def _bound_requests() -> None:
    """Limit the time of a request, and leave retries to the outbox, unless the environment sets these values.

    By default MLflow retries for many minutes, and prints the server's address with its password at the end of each
    run.
    """
    for variable, value in ((MLFLOW_HTTP_REQUEST_TIMEOUT, REQUEST_S), (MLFLOW_HTTP_REQUEST_MAX_RETRIES, 0)):
        if not variable.is_set():
            variable.set(value)
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
