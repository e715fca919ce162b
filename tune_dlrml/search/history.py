"""What a study tells about a search to those who only read it: status, tables, reports."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError
from tune_dlrml.records import State
from tune_dlrml.search.database import is_sqlite, open_storage
from tune_dlrml.space import TrialSpec
from tune_dlrml.urls import without_password

DRIVER = "driver"
"""Name of the attribute that says who runs the search, or ran it last."""
DIVERGED = "diverged"
"""Name of the constraint that a diverged trial breaks."""


@dataclass(frozen=True)
class TrialRow:
    """One trial as the study knows it.

    Attributes:
        stop_reason: Why it ended; empty while it runs.
        spec: None only if its driver died before it was handed out.
        value: The objective where it was last measured; always finite.
        steps: Optimizer steps trained; for a running trial those of the last rung that it reached.
        attempt: How often it was issued again.
        attrs: The other user attributes, such as `exception`, `seconds` and what `set_attribute` wrote.
    """

    number: int
    state: State
    stop_reason: str
    params: Mapping[str, Any]
    spec: TrialSpec | None
    value: float | None
    steps: int
    attempt: int
    attrs: Mapping[str, Any]


class StudyHistory:
    """Read access to the study of one search."""

    def __init__(self, study: optuna.Study, backend: optuna.storages.RDBStorage) -> None:
        self._study = study
        self._backend = backend

    @classmethod
    def open(cls, url: str, name: str) -> Self:
        """The history of an existing search.

        Raises:
            InputError: There is no such study, or its storage cannot be reached.
        """
        missing = f"there is no search {name!r} in {without_password(url)}; `search` begins one"
        file = sqlalchemy.make_url(url).database if is_sqlite(url) else None
        if file and not Path(file).exists():
            raise InputError(missing)
        backend = open_storage(url)
        try:
            study = optuna.load_study(study_name=name, storage=backend)
        except KeyError:
            raise InputError(missing) from None
        history = cls.__new__(cls)
        StudyHistory.__init__(history, study, backend)
        return history

    def close(self) -> None:
        """Give the connections to the storage back."""
        self._backend.remove_session()
        self._backend.engine.dispose()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the study's URL may hold a password, and Tune pickles what it is given."""
        return {}

    @property
    def stored_config(self) -> SearchConfig:
        """The search as it was begun or last resumed, but for `tracking`."""
        return SearchConfig.model_validate(self._study.user_attrs["config"])

    @property
    def driver(self) -> Mapping[str, Any]:
        """Host, pid and start of the newest driver; empty before the first."""
        return dict(self._study.user_attrs.get(DRIVER, {}))

    @property
    def maximize(self) -> bool:
        """Whether larger values of the objective are better."""
        return bool(self._study.direction == optuna.study.StudyDirection.MAXIMIZE)

    def rows(self) -> list[TrialRow]:
        """All trials issued so far, in the order of their numbers."""
        return [row_of(trial) for trial in self._issued_trials()]

    def row(self, number: int) -> TrialRow:
        """One trial."""
        return row_of(self._issued_trials()[number])

    def best(self) -> int | None:
        """Number of the best complete trial, the earliest among equals."""
        complete = [trial for trial in self._issued_trials() if trial.state == TrialState.COMPLETE]
        sign = -1.0 if self.maximize else 1.0
        best = min(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number), default=None)
        return None if best is None else best.number

    def _issued_trials(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.WAITING]


def row_of(trial: FrozenTrial) -> TrialRow:
    """What Optuna's trial says in the search's own words."""
    attrs = dict(trial.user_attrs)
    stored = attrs.pop("spec", None)
    spec = None if stored is None else TrialSpec.from_json(stored)
    values = {step: value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
    last = max(values, default=0)
    return TrialRow(
        number=trial.number,
        state=_state(trial),
        stop_reason=attrs.pop("stop_reason", ""),
        params=dict(trial.params),
        spec=spec,
        value=values.get(last),
        steps=attrs.pop("steps", last),
        attempt=0 if spec is None else spec.attempt,
        attrs=attrs,
    )


def _state(trial: FrozenTrial) -> State:
    if trial.state == TrialState.PRUNED:
        return State.DIVERGED if trial.constraints.get(DIVERGED, 0.0) > 0 else State.PRUNED
    ends = {TrialState.RUNNING: State.RUNNING, TrialState.COMPLETE: State.COMPLETE, TrialState.FAIL: State.FAILED}
    return ends[trial.state]
