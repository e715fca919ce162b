"""The whole way on planted learning curves: the search finds the optimum, and its report says where trials diverged."""

import math

import pytest
from made_search import LOSSES, Fate

from tune_dlrml.report import write_report

HOT = 10**-5.5
"""Learning rates above it diverge: the upper half of [1e-7, 1e-4] on its scale."""
BEST_RATE, BEST_BETA, BEST_C = 10**-6.25, 0.05, 4.0


def closeness(value: float, best: float, width: float) -> float:
    return math.exp(-((math.log(value / best) / width) ** 2))


def fate_of(spec):
    """0.9 at best, by dLRML with its c and strength near the planted ones; no other loss exceeds 0.65."""
    if spec.training.learning_rate > HOT:
        return Fate(diverges_at=7)
    rate = closeness(spec.training.learning_rate, BEST_RATE, 1.6)
    if spec.branch != "dlrml_c":
        return Fate(accuracy=0.5 + 0.15 * rate)
    own = closeness(spec.loss.beta_kl, BEST_BETA, 1.0) * closeness(spec.loss.c, BEST_C, 1.0)
    return Fate(accuracy=0.5 + rate * (0.2 + 0.2 * own))


@pytest.mark.parametrize("seed", range(2))
def test_the_optimum_is_found_and_the_diverging_half_is_named(make_search, nothing_drawn, seed):
    search = make_search(LOSSES, num_trials=60, sampler="tpe", n_startup_trials=10, seed=seed, baseline=None).run(
        fate_of
    )
    document = write_report(search.config.name, search.place).document
    first = document["ranking"][0]
    assert (first["loss"], first["value"] > 0.8) == ("dlrml_c", True)
    assert abs(math.log10(first["parameters"]["learning_rate"] / BEST_RATE)) < 0.5
    named = document["diverged"][0]
    assert named["tells_apart"] and named["parameter"] == "learning_rate"
    assert named["sentence"].startswith("learning_rate > ") and "below: 0 of" in named["sentence"]
    sound = [row.spec.training.learning_rate for row in search.study.rows() if row.state != "diverged"]
    diverged = [row.spec.training.learning_rate for row in search.study.rows() if row.state == "diverged"]
    assert max(sound) < named["threshold"] < min(diverged)
    assert max(sound) <= HOT < min(diverged)
