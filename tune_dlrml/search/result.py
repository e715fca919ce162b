"""Where a search lives and where it stands, from its study and event logs alone. Imports no ray, torch or mlflow."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tune_dlrml.config import SearchConfig, load_config
from tune_dlrml.records import State
from tune_dlrml.search.events import EventLog
from tune_dlrml.search.history import StudyHistory, TrialRow


@dataclass(frozen=True)
class SearchPlace:
    """Where a search lives.

    Attributes:
        storage: Folder of all searches; the search has `<storage>/<name>/`.
        ray_address: A running cluster; None starts Ray on this machine.
    """

    storage: Path
    ray_address: str | None = None

    def folder(self, name: str) -> Path:
        """Folder of one search."""
        return self.storage.resolve() / name

    def study_url(self, name: str) -> str:
        """The study's storage."""
        return f"sqlite:///{self.folder(name) / 'study.db'}"

    def mlflow_uri(self, config: SearchConfig) -> str:
        """The tracking store, `<storage>/mlflow.db` unless the file names one."""
        return config.tracking.mlflow or f"sqlite:///{self.storage.resolve() / 'mlflow.db'}"


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
