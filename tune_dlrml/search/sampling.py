"""Draw the point of a trial: a function of the study's content, the search's seed and the trial's number alone."""

import hashlib
import warnings
from typing import Any

import optuna
from optuna.trial import TrialState

from tune_dlrml.config import Choice, Domain, SearchSettings
from tune_dlrml.space import BRANCH, Point, SearchSpace


def derived_seed(seed: int, number: int, name: str = "") -> int:
    """Seed of one trial of a search, or of one parameter of that trial; below 2**32."""
    digest = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sampler_for(
    settings: SearchSettings, number: int, name: str = "", *, others_run: bool = False
) -> optuna.samplers.BaseSampler:
    """A sampler without a past: whatever it knows, it reads from the study.

    With `others_run` it keeps away from the points of trials under way; where there are none, the same point comes
    out faster without.
    """
    seed = derived_seed(settings.seed, number, name)
    if settings.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`, which branches need
        return optuna.samplers.TPESampler(
            n_startup_trials=settings.n_startup_trials,
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=others_run,
        )


def draw(study: optuna.Study, trial: optuna.Trial, space: SearchSpace, settings: SearchSettings) -> Point:
    """The point of a trial, written to the study parameter by parameter.

    Parameters that an interrupted draw has written are kept, and the others come out as they would have then: the
    joint draw has the trial's seed, and each parameter drawn by itself a seed of its own.
    """
    others_run = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) > 1
    study.sampler = sampler_for(settings, trial.number, others_run=others_run)
    _ = trial.relative_params  # the joint draw; Optuna makes it at the first access
    point: dict[str, Any] = {}

    def suggest(name: str, domain: Domain) -> None:
        study.sampler = sampler_for(settings, trial.number, name, others_run=others_run)
        point[name] = _suggest(trial, name, domain)

    choice = space.choice_of_branch()
    if choice is not None:
        suggest(BRANCH, choice)
    for name, domain in space.domains(space.branch_of(point)).items():
        suggest(name, domain)
    return point


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.values)
    if domain.integer:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)
