"""The places of a search and its state, from its study and event logs alone. Imports no ray, torch or mlflow."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tune_dlrml.config import NAME_LENGTH, NAME_PATTERN, SearchConfig, load_config
from tune_dlrml.errors import InputError, TuneDlrmlError
from tune_dlrml.events import EventLog
from tune_dlrml.models.loading import parse_model_reference
from tune_dlrml.pareto import pareto_front
from tune_dlrml.study.database import sqlite_url, study_database
from tune_dlrml.study.history import StudyHistory, TrialRow, ranked
from tune_dlrml.system.urls import without_password
from tune_dlrml.tracking.cursor import run_of
from tune_dlrml.tracking.mlflow.store import MlflowStore

MLFLOW_FILE, MLFLOW_ARTIFACTS = "mlflow.db", "mlflow-artifacts"
REPLIES = "replies.jsonl"
"""Cached replies of judges, for all searches of a storage folder: no judge is asked the same twice."""
JUDGED = "judged.json"
"""File of a trial with the scores of its judged answers."""
RANKING = "ranking.json"
"""File of a search with the questionnaire and the judges by which its trials are ranked."""
EVALUATIONS = "evaluations"
"""Folder of evaluations outside a search."""
WARM_UP = "warm-up"
"""Folder of a search with its warmed-up model."""
REFERENCE = "reference"
"""Folder with the log-probs that reference models give to pairs: no search of a storage folder computes one twice."""
RESERVED_NAMES = (MLFLOW_FILE, MLFLOW_ARTIFACTS, REPLIES, f"{REPLIES}.lock", EVALUATIONS, REFERENCE)


@dataclass(frozen=True)
class SearchPlace:
    """The places of a search. Its addresses may hold passwords, which are in no configuration, file or message.

    Attributes:
        storage: Folder of all searches; the search has `<storage>/<name>/`.
        ray_address: A running cluster; None starts Ray on this machine.
        study: PostgreSQL database of the study; None is SQLite in the search's folder.
        mlflow: Tracking URI; None is `<storage>/mlflow.db`.
    """

    storage: Path
    ray_address: str | None = None
    study: str | None = field(default=None, repr=False)
    mlflow: str | None = field(default=None, repr=False)

    def of(self, config: SearchConfig) -> tuple["SearchPlace", SearchConfig]:
        """This place with the addresses that a search's file names and, without their passwords, the file.

        Raises:
            InputError: The study's address is not one of PostgreSQL.
        """
        study, mlflow = self.study or config.search.study_url, self.mlflow or config.tracking.mlflow
        place = replace(
            self,
            ray_address=None if self.ray_address in ("", "local") else self.ray_address,
            study=None if study is None else study_database(study),
            mlflow=mlflow,
        )
        bare = {"study_url": None if study is None else without_password(study)}
        return place, config.model_copy(
            update={
                "search": config.search.model_copy(update=bare),
                "tracking": config.tracking.model_copy(
                    update={"mlflow": None if mlflow is None else without_password(mlflow)}
                ),
            }
        )

    def folder(self, name: str) -> Path:
        """Folder of one search.

        Raises:
            InputError: The name is not valid for a search; it might lead out of the storage folder.
        """
        if name in RESERVED_NAMES:
            raise InputError(f"--name {name!r}: the storage folder reserves this name; choose another")
        if not re.fullmatch(NAME_PATTERN, name) or len(name) > NAME_LENGTH:
            raise InputError(
                f"--name {name[:NAME_LENGTH]!r}: a search's name has at most {NAME_LENGTH} letters, digits, '.', '_' "
                "and '-', begins with a letter or a digit and does not end with '.'"
            )
        return self.storage.resolve() / name

    def study_url(self, name: str) -> str:
        """The study's storage."""
        return self.study or sqlite_url(self.folder(name) / "study.db")

    def warm_up(self, name: str) -> Path:
        """Folder of the model that a search's warm-up makes."""
        return self.folder(name) / WARM_UP

    def model(self, config: SearchConfig) -> str:
        """Reference of the model that every trial starts from: the file's, or what the warm-up has made of it."""
        if config.training.warm_up is not None:
            return str(self.warm_up(config.name))
        return str(parse_model_reference(config.model))  # absolute: workers run in another folder

    @property
    def replies(self) -> Path:
        """File with the cached replies of judges."""
        return self.storage.resolve() / REPLIES

    @property
    def reference(self) -> Path:
        """Folder with the log-probs of reference models."""
        return self.storage.resolve() / REFERENCE

    @property
    def artifacts(self) -> Path | None:
        """Folder of the runs' artifacts; an MLflow server keeps its own."""
        return self.storage.resolve() / MLFLOW_ARTIFACTS if self.mlflow is None else None

    @property
    def mlflow_uri(self) -> str:
        """The tracking store."""
        return self.mlflow or sqlite_url(self.storage.resolve() / MLFLOW_FILE)

    def mlflow_store(self, config: SearchConfig) -> MlflowStore:
        """The experiment that the search has its runs in."""
        return MlflowStore(self.mlflow_uri, config.tracking.experiment, self.artifacts)


@dataclass(frozen=True)
class SearchResult:
    """The state of a search.

    Attributes:
        rows: All trials.
        metric: The objective.
        best: Number of the best complete one that breaks no constraint; None if there is none.
        best_infeasible: Number of the one that would be best without `search.constraints`; None if it is the best.
        front: Numbers of the complete ones that break no constraint and that no other one beats in both the metric and
            KL, by rising KL.
        metrics: Newest value of every metric, by trial.
        runs: MLflow's run, by trial; None while MLflow has no run of the trial.
        interrupted: Its driver was ended by a signal, and it can be resumed; only the driver knows.
        out_of_time: Its time budget is spent and trials are left that a larger one would train; only the driver knows.
        same_failures: Why it ended early, if trials kept failing in the same way.
        spent_s: Seconds for which all drivers together have trained it, which `search.time_budget_s` bounds.
        untracked: Events that were not logged to MLflow.
        untracked_cause: Why, as far as it is known.
        unjudged: Why the judging is incomplete; None if it is complete.
        judged: Results of judging by trial: `scores`, `differences` from the baseline and `pairs` won against it, each
            with an entry for each judge; the trial that the first judge rates best comes first.
    """

    name: str
    rows: tuple[TrialRow, ...]
    metric: str
    best: int | None
    metrics: Mapping[int, Mapping[str, float]]
    runs: Mapping[int, str | None]
    mlflow_uri: str
    interrupted: bool = False
    out_of_time: bool = False
    same_failures: str = ""
    spent_s: float = 0.0
    untracked: int = 0
    untracked_cause: str = ""
    seconds: float = 0.0
    unjudged: TuneDlrmlError | None = None
    judged: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    best_infeasible: int | None = None
    front: tuple[int, ...] = ()


def read_judged(events: EventLog, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The results of all trials that were judged in the same way, ranked by the first judge.

    Trials with other questions are left out; a missing score comes last.
    """
    ranking = events.folder / RANKING
    if not ranking.exists():
        return {}
    wanted = json.loads(ranking.read_bytes())
    found: dict[int, dict[str, Any]] = {}
    for number in numbers:
        path = events.path(number).parent / JUDGED
        known = json.loads(path.read_bytes()) if path.exists() else {}
        if known.get("questionnaire") == wanted.get("questionnaire"):
            found[number] = {name: known[name] for name in ("scores", "differences", "pairs")}

    def rank(number: int) -> tuple[float, int]:
        first = [each["score"] for each in found[number]["scores"] if each["judge"] == wanted["judges"][0]]
        return (math.inf if not first or first[0] is None else -first[0], number)

    return {number: found[number] for number in sorted(found, key=rank)}


def read_search(name: str, place: SearchPlace) -> SearchResult:
    """The state of a search, from its study and event logs; it may be running in another process.

    Raises:
        InputError: There is no such search.
    """
    resolved = place.folder(name) / "search.yaml"
    if not resolved.exists():
        raise InputError(f"there is no search {name!r} in {place.storage.resolve()}; `search` starts one")
    place, config = place.of(load_config(resolved))
    history = StudyHistory.open(place.study_url(name), name)
    rows = tuple(history.rows())
    events = EventLog(place.folder(name))
    store = place.mlflow_store(config).name
    metrics = {row.number: events.last_metrics(row.number) for row in rows}
    feasible = ranked(rows, maximize=history.maximize)
    best, above = (
        next((row.number for row in each), None)
        for each in (feasible, ranked(rows, maximize=history.maximize, infeasible=True))
    )
    result = SearchResult(
        name=name,
        rows=rows,
        metric=config.search.metric,
        best=best,
        best_infeasible=None if above == best else above,
        front=_front(feasible, metrics, maximize=history.maximize),
        metrics=metrics,
        runs={row.number: run_of(events, row.number, store) for row in rows},
        mlflow_uri=without_password(place.mlflow_uri),
        spent_s=history.spent_s,
        judged=read_judged(events, [row.number for row in rows]),
    )
    history.close()
    return result


def _front(rows: Sequence[TrialRow], metrics: Mapping[int, Mapping[str, float]], *, maximize: bool) -> tuple[int, ...]:
    places = {
        row.number: (metrics[row.number]["eval_kl"], row.value)
        for row in rows
        if row.value is not None and "eval_kl" in metrics[row.number]
    }
    numbers = list(places)
    return tuple(numbers[index] for index in pareto_front(list(places.values()), maximize=maximize))
