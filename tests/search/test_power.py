"""What a search can tell apart: the promise against simulated confirmations, estimates of the noise, halving."""

import math

import numpy as np
import pytest

from tune_dlrml.config.settings import ConfirmConfig
from tune_dlrml.metrics import METRICS
from tune_dlrml.search.confirm import power
from tune_dlrml.search.confirm.paired import crossed_difference, holm, paired_difference, verdict
from tune_dlrml.search.confirm.power import Noise, Power, confirmed, power_of_shares, single
from tune_dlrml.search.confirm.race import Standing, after_round

COMPARISONS = 2000


def drawn(noise, rng, seeds, pairs, difference=0.0):
    """Outcomes of every pair under every seed."""
    of_seeds = rng.normal(0, math.sqrt(noise.seed), (seeds, 1))
    of_pairs = rng.normal(0, math.sqrt(noise.pair), (1, pairs))
    return difference + of_seeds + of_pairs + rng.normal(0, math.sqrt(noise.rest), (seeds, pairs))


@pytest.mark.parametrize(
    ("noise", "seeds", "pairs", "finalists"),
    [
        (Noise(seed=0.0005, pair=0.1, rest=0.2), 5, 64, 1),
        (Noise(seed=0.002, pair=0.05, rest=0.3), 5, 64, 3),
        (Noise(seed=0.003, pair=0.0, rest=0.2), 3, 200, 2),
        (Noise(seed=0.0, pair=0.25, rest=0.0), 5, 64, 7),
        (Noise(seed=0.01, pair=0.02, rest=0.2), 10, 40, 3),
        (Noise(seed=2.0, pair=9.0, rest=30.0), 4, 128, 3),
    ],
)
def test_of_2000_differences_of_the_stated_size_four_fifths_are_shown(noise, seeds, pairs, finalists):
    rng = np.random.default_rng(11)
    difference = confirmed(noise, seeds=seeds, pairs=pairs, finalists=finalists)
    shown = 0
    for _ in range(COMPARISONS):
        found = crossed_difference(drawn(noise, rng, seeds, pairs, difference))
        # The other finalists are equal to the baseline, whose p-values leave this one the first step of Holm's.
        raised = holm([found.p, *[1.0] * (finalists - 1)])
        shown += verdict(found.mean, raised[0], maximize=True) == "better"
    assert 0.75 <= shown / COMPARISONS <= 0.85


def test_two_trainings_whose_noise_is_known_are_told_apart_four_times_of_five():
    rng, noise, pairs = np.random.default_rng(5), Noise(seed=0.002, pair=0.1, rest=0.1), 100
    difference, error = single(noise, pairs), math.sqrt(noise.seed + (noise.pair + noise.rest) / pairs)
    means = np.array([drawn(noise, rng, 1, pairs, difference).mean() for _ in range(COMPARISONS)])
    assert 0.75 <= (means > 1.96 * error).mean() <= 0.85


def test_the_noise_is_found_in_the_outcomes():
    rng, noise = np.random.default_rng(3), Noise(seed=0.04, pair=0.3, rest=0.2)
    found = Noise.mean([drawn(noise, rng, 12, 150) for _ in range(200)])
    assert found.seed == pytest.approx(noise.seed, rel=0.1)
    assert found.pair == pytest.approx(noise.pair, rel=0.05)
    assert found.rest == pytest.approx(noise.rest, rel=0.02)


def test_a_size_stated_from_few_seeds_leaves_room_for_what_they_do_not_show(monkeypatch):
    """Each comparison has a size that two seeds of its own state; with their estimate as it is half would be shown."""
    monkeypatch.setattr(power, "DRAWS", 2000)
    rng, noise, shown, comparisons = np.random.default_rng(4), Noise(seed=0.01, pair=0.02, rest=0.1), 0, 400
    for _ in range(comparisons):
        stated = Noise.of(drawn(noise, rng, 2, 64))
        difference = confirmed(stated, seeds=5, pairs=64, finalists=3)
        found = crossed_difference(drawn(noise, rng, 5, 64, difference))
        shown += verdict(found.mean, min(1.0, 3 * found.p), maximize=True) == "better"
    assert 0.75 <= shown / comparisons <= 0.88


def test_noise_without_a_part_of_its_own_has_none():
    alike = Noise.of([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    assert (alike.seed, alike.rest) == (0.0, 0.0)
    assert alike.pair == pytest.approx(1 / 3)
    none = Noise.of([[1.0, 1.0], [1.0, 1.0]])
    assert (none.seed, none.pair, none.rest) == (0.0, 0.0, 0.0)
    assert confirmed(Noise(0.0, 0.0, 0.0), seeds=5, pairs=10, finalists=1) == 0.0


def test_what_halves_it_follows_from_where_the_noise_is():
    def power(noise):
        return Power.of(
            "eval_accuracy", noise, noise, pairs=64, confirm=ConfirmConfig(top=1, seeds=5), confirm_pairs=64
        )

    of_pairs = power(Noise(seed=0.0, pair=0.2, rest=0.0))
    assert of_pairs.share_of_pairs == 1
    assert of_pairs.seeds_to_halve is None
    assert of_pairs.pairs_to_halve == pytest.approx(4 * 64, rel=0.1)
    of_seeds = power(Noise(seed=0.01, pair=0.0, rest=0.0))
    assert of_seeds.share_of_pairs == 0
    assert of_seeds.pairs_to_halve is None
    # Four times as many give half the error, and fewer do since Student's quantile falls with them.
    assert 10 < of_seeds.seeds_to_halve <= 20


def test_by_formula_a_share_of_pairs_has_the_binomial_error_and_other_metrics_have_none():
    power = power_of_shares(METRICS["eval_accuracy"], pairs=100, confirm=None, confirm_pairs=100)
    assert power is not None
    assert power.trial == pytest.approx((1.96 + 0.8416) * math.sqrt(0.25 / 100), rel=0.01)
    assert power.two_trials == pytest.approx(power.trial * math.sqrt(2))
    assert (power.confirmation, power.seeds, power.seeds_to_halve) == (None, 1, None)
    assert power.pairs_to_halve == pytest.approx(400, rel=0.02)
    assert "finalist" not in power.sentence()
    for metric in ("eval_margin", "eval_separation", "eval_auc"):
        assert power_of_shares(METRICS[metric], pairs=100, confirm=None, confirm_pairs=100) is None


def test_a_metric_of_the_policy_alone_says_nothing_of_a_reference():
    power = power_of_shares(METRICS["eval_policy_accuracy"], pairs=100, confirm=None, confirm_pairs=100)
    assert power is not None and power.trial is None and "reference" not in power.sentence()
    assert "two trials from each other at 0.2" in power.sentence()


def test_a_confirmation_without_pairs_agrees_with_student():
    """With all of the noise between seeds it is the test of paired differences of means."""
    rng, noise, seeds = np.random.default_rng(9), Noise(seed=0.01, pair=0.0, rest=0.0), 6
    difference = confirmed(noise, seeds=seeds, pairs=50, finalists=1)
    shown = 0
    for _ in range(COMPARISONS):
        means = difference + rng.normal(0, 0.1, seeds)
        found = paired_difference(means.tolist(), [0.0] * seeds)
        shown += found.p < 0.05 and found.mean > 0
    assert 0.75 <= shown / COMPARISONS <= 0.85


def test_a_race_shows_a_difference_of_the_size_that_is_stated_for_it_four_times_of_five():
    """Of 400 races with two equal finalists, within 5 % and two errors; dropped by bad luck counts as not shown."""
    rng, noise, pairs, confirm = np.random.default_rng(2), Noise(0.002, 0.05, 0.3), 64, ConfirmConfig(top=3, seeds=5)
    stated = Power.of("eval_accuracy", noise, noise, pairs=pairs, confirm=confirm, confirm_pairs=pairs).confirmation
    shown = 0
    for _ in range(400):
        tables = [drawn(noise, rng, 6, pairs, difference) for difference in (stated, 0.0, 0.0)]
        standings = [Standing() for _ in tables]
        for rounds in range(2, 7):
            looks = zip(standings, tables, strict=True)
            now = [own.difference if own.end != "open" else crossed_difference(of[:rounds]) for own, of in looks]
            standings = after_round(standings, now, rounds=rounds, cap=6)
        shown += standings[0].end == "settled"
    assert 0.71 <= shown / 400 <= 0.89
