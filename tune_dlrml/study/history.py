"""Read access to the study of a search: for status, tables and reports."""

import math
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from tune_dlrml.config.settings import ConstraintConfig
from tune_dlrml.errors import InputError
from tune_dlrml.records import State
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.database import is_sqlite, open_storage
from tune_dlrml.study.feasibility import Constraints, excesses
from tune_dlrml.system.urls import without_password

DRIVER = "driver"
"""Name of the attribute with the driver that runs the search, or ran it last."""
DIVERGED = "diverged"
"""Name of the constraint that a diverged trial breaks."""
CODE = "code"
"""Name of the attribute with the versions that the newest driver ran with."""
SPENT = "spent_s"
"""Name of the attribute with the time for which all drivers have trained the search."""
START = "start_points"
"""Name of the attribute with the points that a search started with, where some are those of an earlier search."""
RACE = "race_seeds"
"""Name of the attribute with the seeds for which a confirmation that is a race was planned."""
CONSTRAINED = "constrained"
"""Name of a trial's attribute with its bounded metrics at its last evaluation."""
VERDICTS = "verdicts"
"""Name of a trial's attribute with the verdict at each rung, by its step."""
Verdict = Literal["continue", "pause", "prune"]
LEAST_FOR_IMPORTANCE = 20
"""Trials below which the importance of a parameter is mostly chance: the evaluator compares the best tenth with all."""
SHUFFLES = 40
"""Number of shuffles from which the importance by chance alone is estimated."""


@dataclass(frozen=True)
class Importance:
    """How much parameters decide whether a trial is among the best tenth (PED-ANOVA, arXiv 2304.10255).

    Attributes:
        step: Where the objectives were compared, the last step that enough trials reached.
        trials: How many did.
        shares: Of each parameter, summing to 1, largest first; empty where the trials do not differ.
        chance: The share that a parameter without effect stays below in 95 % of shuffles of the objectives.
    """

    step: int
    trials: int
    shares: Mapping[str, float]
    chance: Mapping[str, float]


@dataclass(frozen=True)
class TrialRow:
    """One trial as the study knows it.

    Attributes:
        stop_reason: Why it ended; empty while it runs.
        spec: None only if its driver died before it was issued.
        value: The objective where it was last measured; always finite.
        steps: Optimizer steps trained; for a running trial those of the last rung that it reached.
        attempt: How often it was issued again after an interruption or a loss.
        attrs: The other user attributes, such as `exception`, `seconds` and what `set_attribute` wrote.
        feasible: Whether it breaks no bound of `search.constraints`, as far as it was evaluated.
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
    feasible: bool = True


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
        missing = f"there is no search {name!r} in {without_password(url)}; `search` starts one"
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
        """Release the connections to the storage."""
        self._backend.remove_session()
        self._backend.engine.dispose()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the study's URL may hold a password, and Tune pickles what it is given."""
        return {}

    @property
    def optuna_study(self) -> optuna.Study:
        """The study itself."""
        return self._study

    def for_samplers(self) -> optuna.Study:
        """The study as samplers are to see it."""
        return self._study

    @property
    def driver(self) -> Mapping[str, Any]:
        """Host, pid and start of the newest driver; empty before the first."""
        return dict(self._study.user_attrs.get(DRIVER, {}))

    @property
    def spent_s(self) -> float:
        """Seconds for which all drivers together have trained it."""
        return float(self._study.user_attrs.get(SPENT, 0.0))

    @property
    def maximize(self) -> bool:
        """Whether larger values of the objective are better."""
        return bool(self._study.direction == optuna.study.StudyDirection.MAXIMIZE)

    @property
    def stored_full_steps(self) -> int:
        """Full budget of a trial in optimizer steps."""
        return int(self._study.user_attrs["full_steps"])

    @property
    def data_hash(self) -> Mapping[str, str]:
        """Content hashes of the data; empty where the driver recorded none."""
        return dict(self._study.user_attrs.get("data_hash", {}))

    @property
    def code(self) -> Mapping[str, str]:
        """Versions that the newest driver ran with; empty where it recorded none."""
        return dict(self._study.user_attrs.get(CODE, {}))

    @property
    def start_points(self) -> tuple[Mapping[str, Any], ...] | None:
        """The points that it started with; None where none are those of an earlier search."""
        known = self._study.user_attrs.get(START)
        return None if known is None else tuple(known)

    @property
    def race_seeds(self) -> int | None:
        """`search.confirm.seeds` for which a confirmation that is a race was planned; None where it is none."""
        seeds = self._study.user_attrs.get(RACE)
        return None if seeds is None else int(seeds)

    def importance(self) -> Importance | None:
        """Importance of the parameters at the last step that enough trials reached; None if there is no such step.

        All trials that reached the rung count: complete trials alone are few, and selected by the objective itself.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        trials = [trial for trial in self._issued_trials() if trial.params]
        finite = [step for trial in trials for step, value in trial.intermediate_values.items() if math.isfinite(value)]
        step = max((step for step in {*finite} if finite.count(step) >= LEAST_FOR_IMPORTANCE), default=None)
        if step is None:
            return None
        there = [trial for trial in trials if math.isfinite(trial.intermediate_values.get(step, math.nan))]
        values = [trial.intermediate_values[step] for trial in there]
        shares = _shares(there, values, self._study.direction)
        dice, shuffled = random.Random(0), []
        for _ in range(SHUFFLES if shares else 0):
            dice.shuffle(values)
            shuffled.append(_shares(there, values, self._study.direction))
        chance = {name: sorted(one.get(name, 0.0) for one in shuffled)[int(0.95 * SHUFFLES)] for name in shares}
        return Importance(step, len(there), shares, chance)

    def rows(self) -> list[TrialRow]:
        """All trials issued so far, in the order of their numbers."""
        constraints = self._bounded()
        return [row_of(trial, constraints) for trial in self._issued_trials()]

    def row(self, number: int) -> TrialRow:
        """One trial."""
        return row_of(self._issued_trials()[number], self._bounded())

    def _bounded(self) -> Constraints:
        """The constraints of the search, as the study has its settings."""
        stored = self._study.user_attrs.get("config", {}).get("search", {}).get("constraints") or {}
        return {metric: ConstraintConfig.model_validate(ends) for metric, ends in stored.items()}

    def best(self) -> int | None:
        """Number of the best complete trial that breaks no constraint, the earliest among equals."""
        best = ranked(self.rows(), maximize=self.maximize)
        return best[0].number if best else None

    def _issued_trials(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.WAITING]


def row_of(trial: FrozenTrial, constraints: Constraints) -> TrialRow:
    """An Optuna trial as a row of a search with these constraints."""
    attrs = dict(trial.user_attrs)
    stored = attrs.pop("spec", None)
    spec = None if stored is None else TrialSpec.from_json(stored)
    values = {step: value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
    last = max(values, default=0)
    told = {name: excess for name, excess in trial.constraints.items() if name != DIVERGED}  # once it has ended
    measured = excesses(constraints, attrs[CONSTRAINED]) if CONSTRAINED in attrs else {}
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
        feasible=all(excess <= 0 for excess in (told or measured).values()),
    )


def paused_at(trial: FrozenTrial) -> int | None:
    """The step at which a trial is paused; None where it is not. For Optuna a paused trial is running."""
    verdicts = trial.user_attrs.get(VERDICTS, {}) if trial.state == TrialState.RUNNING else {}
    return next((int(step) for step, verdict in verdicts.items() if verdict == "pause"), None)


def ranked(rows: Iterable[TrialRow], *, maximize: bool, infeasible: bool = False) -> list[TrialRow]:
    """The complete trials that break no constraint, the best first, the earlier of equals before the later.

    Args:
        rows: Trials of one search.
        maximize: Whether larger values of the objective are better.
        infeasible: Whether those that break a constraint are ranked, too, as if there were none.
    """
    done = [row for row in rows if row.state is State.COMPLETE and (row.feasible or infeasible)]
    sign = -1.0 if maximize else 1.0
    return sorted(done, key=lambda row: (sign * float(row.value or 0.0), row.number))


def _shares(
    trials: Sequence[FrozenTrial], values: Sequence[float], direction: optuna.study.StudyDirection
) -> dict[str, float]:
    """Importance of each parameter, were these the trials' objectives; empty where no parameter has any."""
    if len({*values}) < 2:
        return {}
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=direction)
    study.add_trials(
        [
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value)
            for trial, value in zip(trials, values, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters that few trials have; their `chance` is large
        return dict(optuna.importance.get_param_importances(study))


def _state(trial: FrozenTrial) -> State:
    if trial.state == TrialState.PRUNED:
        return State.DIVERGED if trial.constraints.get(DIVERGED, 0.0) > 0 else State.PRUNED
    if trial.state == TrialState.RUNNING:
        return State.RUNNING if paused_at(trial) is None else State.PAUSED
    return {TrialState.COMPLETE: State.COMPLETE, TrialState.FAIL: State.FAILED}[trial.state]
