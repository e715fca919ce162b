"""Draws of single values, before there are trials enough to model."""

import math
import statistics
from collections import Counter

import optuna
import pytest

from tune_dlrml.config import SearchSettings
from tune_dlrml.domains import Choice, Range
from tune_dlrml.study.sampling import Draw, distribution

DRAWS = 1500


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study()
    for _ in range(DRAWS):
        made.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))
    return made


def drawn(study: optuna.Study, domain: Range | Choice, name: str = "beta") -> list[float]:
    return [Draw(study, number, SearchSettings(seed=3)).near_middle(name, domain) for number in range(DRAWS)]


@pytest.mark.parametrize(
    "domain",
    [
        Range(kind="uniform", low=-2.0, high=6.0),
        Range(kind="log_uniform", low=1e-7, high=1e-1),
        Range(kind="int_uniform", low=1, high=1000),
        Range(kind="log_int_uniform", low=4, high=4096),
    ],
    ids=lambda domain: domain.kind,
)
def test_a_draw_near_the_middle_is_normal_on_the_scale_of_its_domain_and_inside_it(
    study: optuna.Study, domain: Range
) -> None:
    values = drawn(study, domain)
    kind = distribution(domain)
    assert all(kind._contains(kind.to_internal_repr(value)) and type(value) is type(values[0]) for value in values)
    assert isinstance(values[0], int) == domain.integer
    scale = math.log if domain.log else float
    low, high = scale(domain.low), scale(domain.high)
    units = [(scale(value) - low) / (high - low) for value in values]
    assert statistics.mean(units) == pytest.approx(0.5, abs=0.02)
    assert sum(abs(unit - 0.5) < 1 / 6 for unit in units) / DRAWS == pytest.approx(0.683, abs=0.04)
    assert len({*values}) > 100


def test_a_choice_has_no_middle_and_one_value_is_that_value(study: optuna.Study) -> None:
    counts = Counter(drawn(study, Choice(values=(1.0, 2.0, 5.0))))
    assert {*counts} == {1.0, 2.0, 5.0} and min(counts.values()) > DRAWS / 3 * 0.85
    assert {*drawn(study, Range(kind="uniform", low=0.5, high=0.5))} == {0.5}


def test_parameters_of_a_trial_are_drawn_apart_and_again_alike(study: optuna.Study) -> None:
    domain = Range(kind="uniform", low=0.0, high=1.0)
    beta, rate = drawn(study, domain), drawn(study, domain, "learning_rate")
    assert beta == drawn(study, domain)
    assert abs(statistics.correlation(beta, rate)) < 0.1
