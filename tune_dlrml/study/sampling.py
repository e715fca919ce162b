"""Draw the values of a trial: a function of the study's content, the search's seed and the trial's number alone."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tune_dlrml.config import SearchSettings
from tune_dlrml.domains import Choice, Domain
from tune_dlrml.space_points import values_at

SPREAD = 1 / 6
"""Standard deviation of a draw near the middle, as a share of the domain on its scale."""


class Draw:
    """Draws the values of one trial; all state is in the study.

    Each joint draw, and each parameter that is drawn alone, has a seed of its own, so that another process can repeat
    an interrupted draw.

    Args:
        study: Has the trial as running.
        number: The trial.
        settings: Seed, and number of trials before the model is used.
    """

    def __init__(self, study: optuna.Study, number: int, settings: SearchSettings) -> None:
        trials = study.get_trials(deepcopy=False)
        self._study, self._trial, self._settings = study, trials[number], settings
        self._others_run = any(trial.state == TrialState.RUNNING for trial in trials if trial.number != number)

    def alone(self, name: str, domain: Domain) -> Any:
        """A value of one parameter, uniform on the scale of its domain."""
        kind = distribution(domain)
        if kind.single():
            return domain.extremes()[0]
        sampler = optuna.samplers.RandomSampler(seed=self._seed(name))
        return sampler.sample_independent(self._study, self._trial, name, kind)

    def near_middle(self, name: str, domain: Domain) -> Any:
        """A value of one parameter near the middle of its domain, on its scale; of a choice each alike.

        A range is mostly set around what its author expects. Where the best values lie further out, TPE finds them in
        about as many tokens as from anywhere (docs/results.md, samplers and schedulers).
        """
        if isinstance(domain, Choice) or distribution(domain).single():
            return self.alone(name, domain)
        unit = np.random.default_rng(self._seed(name)).normal(0.5, SPREAD, size=1)
        value = np.clip(values_at(domain, np.clip(unit, 0, 1)), domain.low, domain.high)[0]
        return int(value) if domain.integer else float(value)

    def jointly(self, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        """Values of parameters that always occur together, by TPE; nothing while there are too few trials to model.

        Args:
            group: Name of the group; the seed follows from it.
            domains: Of the group. A parameter with one value alone is not drawn.
        """
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self._settings.n_startup_trials,
            seed=self._seed(group),
            multivariate=True,
            constant_liar=self._others_run,  # without running trials the same point is found faster with False
        )
        kinds = {name: distribution(domain) for name, domain in sorted(domains.items())}
        free = {name: kind for name, kind in kinds.items() if not kind.single()}
        drawn: dict[str, Any] = sampler.sample_relative(self._study, self._trial, free)
        return drawn

    def _seed(self, part: str) -> int:
        return derived_seed(self._settings.seed, self._trial.number, part)


def with_running_pruned(study: optuna.Study, constraints: Mapping[int, Mapping[str, float]]) -> optuna.Study:
    """A copy of a study in memory, in which some running trials have been pruned where they were measured last.

    Args:
        study: Has them as running.
        constraints: Of these trials, by number.
    """
    copy = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=study.direction)
    for trial in study.get_trials(deepcopy=False):
        own = constraints.get(trial.number)
        copy.add_trial(
            trial
            if own is None
            else optuna.trial.create_trial(
                state=TrialState.PRUNED,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                constraints=dict(own),
            )
        )
    return copy


class Given(optuna.samplers.BaseSampler):  # type: ignore[misc]  # mypy skips optuna, see pyproject.toml
    """Returns given values: how a point is recorded in a study.

    Args:
        values: By parameter.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """Nothing is drawn."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Nothing is drawn."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The given value."""
        return self._values[param_name]


def record(trial: optuna.Trial, values: Mapping[str, Any], domains: Mapping[str, Domain]) -> None:
    """Record given values as the parameters of a trial."""
    trial.study.sampler = Given(values)
    for name, domain in domains.items():
        if isinstance(domain, Choice):
            trial.suggest_categorical(name, domain.values)
        elif domain.integer:
            trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
        else:
            trial.suggest_float(name, domain.low, domain.high, log=domain.log)


def derived_seed(seed: int, number: int, part: str) -> int:
    """Seed of one part of one trial of a search, below 2**32."""
    digest = hashlib.sha256(f"{seed}/{number}/{part}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def distribution(domain: Domain) -> BaseDistribution:
    """A domain as an Optuna distribution."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
