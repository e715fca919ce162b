"""The whole loop of suggestions, rungs, verdicts and ends, on learning curves whose best point is known."""

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tune_dlrml.config import SearchConfig
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.study import SearchStudy

TRIALS, FULL_STEPS, STARTUP = 60, 40, 10
MIDDLE = 10**-5.5
"""Geometric middle of the learning rates, [1e-7, 1e-4]."""
OUTWARD = 10**-4.6
"""At four fifths of their range, 1.8 standard deviations from where TPE begins."""
HALVING = {"type": "stopping", "grace_period": 4, "reduction_factor": 3}
Open = Callable[..., SearchStudy]
Config = Callable[..., SearchConfig]


def closeness(value: float, best: float, width: float) -> float:
    """1 at the best value, falling off with the distance in powers of e."""
    return math.exp(-((math.log(value / best) / width) ** 2))


def final_accuracy(spec: TrialSpec, best_rate: float) -> float:
    """0.9 at best: dLRML with c near 4 and beta_kl near 0.05; no other branch exceeds 0.65."""
    rate = closeness(spec.training.learning_rate, best_rate, 1.6)
    if spec.branch != "dlrml_c":
        return 0.5 + 0.15 * rate
    loss: Any = spec.loss
    return 0.5 + rate * (0.2 + 0.2 * closeness(loss.beta_kl, 0.05, 1.0) * closeness(loss.c, 4.0, 1.0))


@dataclass
class Found:
    accuracy: float
    spec: TrialSpec
    share_of_steps: float


def search(
    study: SearchStudy,
    best_rate: float,
    diverges: Callable[[TrialSpec], bool] = lambda _: False,
    told: State = State.DIVERGED,
) -> list[TrialSpec]:
    """Run a search to its end; the curve of a trial approaches its final accuracy, with noise of sd 0.01."""
    noise = random.Random(study.config.search.seed)
    specs = []
    while (spec := study.ask()) is not None:
        specs.append(spec)
        if diverges(spec):
            study.finish(TrialOutcome(spec.number, told, "planted"), steps=3)
            continue
        state = State.COMPLETE
        for step in (*study.rungs, FULL_STEPS):
            learned = 1 - math.exp(-3 * step / FULL_STEPS)
            gain = (final_accuracy(spec, best_rate) - 0.5) * learned
            study.record(spec.number, step, 0.5 + gain + noise.gauss(0, 0.01))
            if study.verdict(spec.number, step) == "prune":
                state = State.PRUNED
                break
        study.finish(TrialOutcome(spec.number, state, "planted"), step)
    return specs


def test_the_loop_finds_the_planted_optimum_sooner_than_chance_and_saves_most_of_the_training(
    config_with: Config, open_study: Open
) -> None:
    found: dict[str, list[Found]] = {"tpe": [], "random": []}
    for sampler, runs in found.items():
        for seed in range(7):
            config = config_with(
                num_trials=TRIALS, sampler=sampler, seed=seed, n_startup_trials=STARTUP, scheduler=HALVING
            )
            study = open_study(config, "memory")
            search(study, OUTWARD)
            rows, best = study.rows(), study.best()
            assert len(rows) == TRIALS and best is not None
            assert all(row.value is not None and math.isfinite(row.value) for row in rows)
            spec = rows[best].spec
            assert spec is not None
            share = sum(row.steps for row in rows) / (TRIALS * FULL_STEPS)
            runs.append(Found(final_accuracy(spec, OUTWARD), spec, share))

    accuracy = {sampler: statistics.median(run.accuracy for run in runs) for sampler, runs in found.items()}
    assert accuracy["tpe"] > 0.8
    assert accuracy["tpe"] > accuracy["random"] + 0.05
    assert [run.spec.branch for run in found["tpe"]] == ["dlrml_c"] * 7
    decades_off = [abs(math.log10(run.spec.training.learning_rate / OUTWARD)) for run in found["tpe"]]
    assert statistics.median(decades_off) < 0.3
    # Halving saves most where trials are alike on average; TPE's later ones are good, and go on.
    shares = {sampler: [run.share_of_steps for run in runs] for sampler, runs in found.items()}
    assert max(shares["random"]) < 0.4
    assert statistics.median(shares["tpe"]) < 0.5 and max(shares["tpe"]) < 0.6


@pytest.mark.parametrize(
    ("told", "lowest", "highest"),
    [(State.DIVERGED, 0.0, 0.25), (State.FAILED, 0.6, 1.0)],
    ids=["told as diverged", "not if they were told as failed"],
)
def test_the_sampler_avoids_the_half_of_the_box_in_which_trials_diverge(
    config_with: Config, open_study: Open, told: State, lowest: float, highest: float
) -> None:
    hot: list[bool] = []
    for seed in range(5):
        study = open_study(config_with(num_trials=TRIALS, seed=seed, n_startup_trials=STARTUP, baseline=None), "memory")
        specs = search(study, 10**-6.25, lambda spec: spec.training.learning_rate > MIDDLE, told)
        where = [spec.training.learning_rate > MIDDLE for spec in specs]
        assert [row.state is told for row in study.rows()] == where
        hot += where[STARTUP:]
    assert lowest < sum(hot) / len(hot) < highest
