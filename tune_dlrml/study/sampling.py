"""Draw the point of a trial: a function of the study's content, the search's seed and the trial's number alone."""

import hashlib
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_dlrml.config import Choice, Domain, SearchSettings
from tune_dlrml.space import BRANCH, Point, SearchSpace


def derived_seed(seed: int, number: int, part: str) -> int:
    """Seed of one part of one trial of a search, below 2**32."""
    digest = hashlib.sha256(f"{seed}/{number}/{part}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


class BranchSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]  # mypy skips optuna, see pyproject.toml
    """Draws the parameters of one trial, without a memory of other trials but the study.

    Parameters that always occur together are drawn jointly: the branch with the shared ones, then those of the chosen
    branch. It is what TPESampler(group=True) infers from all past trials at each draw; but the space knows it, and
    the other branches need not be drawn. Each joint draw, and at start-up each parameter, has a seed of its own, so
    that a draw that was interrupted can be finished by another process.

    Args:
        space: The branches.
        settings: Kind of sampler, seed, and number of trials before the model is used.
        number: The trial.
        others_run: Whether other trials are under way, whose points are then avoided; if none is, the same point comes
            out faster without.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings, number: int, *, others_run: bool = False) -> None:
        self._space, self._settings, self._number, self._others_run = space, settings, number, others_run
        self._joint: dict[str, dict[str, Any]] = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """Nothing beforehand: which parameters a trial has is known once its branch is drawn."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Nothing, see `infer_relative_search_space`."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The value of one parameter, drawn together with those that belong to it."""
        group = self._group(param_name)
        if group not in self._joint:
            self._joint[group] = self._draw_jointly(study, trial, group)
        if param_name in self._joint[group]:
            return self._joint[group][param_name]
        alone = optuna.samplers.RandomSampler(seed=self._seed(param_name))
        return alone.sample_independent(study, trial, param_name, param_distribution)

    def _draw_jointly(self, study: Any, trial: Any, group: str) -> dict[str, Any]:
        """Empty with another sampler than TPE, and while there are too few trials to model."""
        if self._settings.sampler != "tpe":
            return {}
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self._settings.n_startup_trials,
            seed=self._seed(group),
            multivariate=True,
            constant_liar=self._others_run,
        )
        joint: dict[str, Any] = sampler.sample_relative(study, trial, self._distributions(group))
        return joint

    def _group(self, name: str) -> str:
        alone = self._space.choice_of_branch() is None
        return "" if alone or name == BRANCH or name in self._space.shared else name.partition(".")[0]

    def _distributions(self, group: str) -> dict[str, BaseDistribution]:
        choice = self._space.choice_of_branch()
        branch = group or next(iter(self._space.branches))
        domains = self._space.domains(branch) | ({} if choice is None else {BRANCH: choice})
        distributions = {name: _distribution(domain) for name, domain in sorted(domains.items())}
        return {name: d for name, d in distributions.items() if self._group(name) == group and not d.single()}

    def _seed(self, part: str) -> int:
        return derived_seed(self._settings.seed, self._number, part)


def draw(trial: optuna.Trial, space: SearchSpace) -> Point:
    """The point of a trial by the study's sampler, written to the study one by one; what is written is kept."""
    point: dict[str, Any] = {}
    choice = space.choice_of_branch()
    if choice is not None:
        point[BRANCH] = _suggest(trial, BRANCH, choice)
    for name, domain in space.domains(space.branch_of(point)).items():
        point[name] = _suggest(trial, name, domain)
    return point


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.values)
    if domain.integer:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
