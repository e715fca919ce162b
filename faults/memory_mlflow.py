"""MLflow without a database: as much of its client as tune_dlrml uses, with MLflow's own rules for what is kept."""

import itertools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

Point = tuple[str, int, int, float]
"""Name, step, timestamp in milliseconds, value."""
READS = ("get_experiment_by_name", "get_run", "search_runs", "get_metric_history", "active")


class MemoryMlflow:
    """The server; `client` is what a client of it does.

    Args:
        fails: Asked before each change. A change that is to fail is carried out every other time, so that only its
            answer is lost.
    """

    def __init__(self, fails: Callable[[str], bool]) -> None:
        self._fails = fails
        self._ids = itertools.count()
        self._executed = itertools.cycle((True, False))
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.points: dict[str, list[Point]] = {}

    def client(self, tracking_uri: str) -> "MemoryMlflow":
        return self

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_") or name in ("client", *READS) or not callable(found):
            return found

        def change(*args: Any, **options: Any) -> Any:
            if not self._fails(f"mlflow.{name}"):
                return found(*args, **options)
            if next(self._executed):
                found(*args, **options)
            raise MlflowException("API request failed with timeout", TEMPORARILY_UNAVAILABLE)

        return change

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        made = SimpleNamespace(
            experiment_id=str(next(self._ids)), lifecycle_stage="active", artifact_location=artifact_location
        )
        identity: str = self.experiments.setdefault(name, made).experiment_id
        return identity

    def create_run(self, experiment_id: str, *, start_time: int, tags: dict[str, str], run_name: str) -> Any:
        run_id = f"run{next(self._ids)}"
        self.runs[run_id] = SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, status="RUNNING", lifecycle_stage="active", run_name=run_name),
            data=SimpleNamespace(tags=dict(tags), params={}, metrics={}),
        )
        self.points[run_id] = []
        return self.runs[run_id]

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise MlflowException(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def search_runs(self, experiment_ids: list[str], condition: str, *, max_results: int, page_token: Any) -> Any:
        wanted = re.findall(r"tags\.`(.+?)` = '(.*?)'", condition)
        found = [run for run in self.active() if all(run.data.tags.get(key) == value for key, value in wanted)]
        page = type("Page", (list,), {"token": None})
        return page(found[::-1])

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        data = self.get_run(run_id).data
        for param in params:
            assert data.params.setdefault(param.key, param.value) == param.value, "MLflow takes no other value"
        data.tags |= {tag.key: tag.value for tag in tags}
        for metric in metrics:
            point = (metric.key, metric.step, metric.timestamp, metric.value)
            if point not in self.points[run_id]:
                self.points[run_id].append(point)
            data.metrics[metric.key] = metric.value

    def get_metric_history(self, run_id: str, name: str) -> list[Metric]:
        return [Metric(key, value, stamp, step) for key, step, stamp, value in self.points[run_id] if key == name]

    def update_run(self, run_id: str, *, status: str) -> None:
        self.get_run(run_id).info.status = status

    def set_terminated(self, run_id: str, *, status: str, end_time: int) -> None:
        self.get_run(run_id).info.status = status

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.get_run(run_id).data.tags[key] = value

    def delete_run(self, run_id: str) -> None:
        self.get_run(run_id).info.lifecycle_stage = "deleted"

    def active(self) -> list[Any]:
        return [run for run in self.runs.values() if run.info.lifecycle_stage == "active"]
