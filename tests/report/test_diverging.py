import itertools
import random
from dataclasses import replace

import pytest
from made_search import LOSSES, Fate
from scipy.stats import fisher_exact

from tune_dlrml.records import State
from tune_dlrml.report.diverging import _fisher, splits

DLRML = [LOSSES[2]]


def diverging(make_search, rule, losses=DLRML, trials=24, **search):
    settings = {"num_trials": trials, "scheduler": None, "baseline": None} | search
    return make_search(losses, **settings).run(lambda spec: Fate(diverges_at=7 if rule(spec) else None)).read()


def test_a_planted_threshold_is_named_with_its_counts(make_search):
    data = diverging(make_search, lambda spec: spec.training.learning_rate > 3e-6)
    rates = {t.number: t.row.spec.training.learning_rate for t in data.trials}
    above = sum(rate > 3e-6 for rate in rates.values())
    assert 4 < above < 20
    best = splits(data)[0]
    assert best.parameter == "learning_rate"
    assert best.tells_apart
    assert (best.diverged_inside, best.inside, best.diverged_outside, best.outside) == (above, above, 0, 24 - above)
    assert max(r for r in rates.values() if r <= 3e-6) < best.threshold < min(r for r in rates.values() if r > 3e-6)
    assert best.diverged_range == (min(r for r in rates.values() if r > 3e-6), max(rates.values()))
    assert best.sound_range == (min(rates.values()), max(r for r in rates.values() if r <= 3e-6))
    assert best.sentence.startswith("learning_rate > ")
    assert best.sentence.endswith(f": {above} of {above} diverged; below: 0 of {24 - above}")


def test_a_lower_half_is_named_as_well(make_search):
    best = splits(diverging(make_search, lambda spec: spec.loss.c < 3))[0]
    assert best.condition.startswith("dlrml_c.c < ")
    assert "; above: 0 of " in best.sentence


def test_a_loss_that_diverges_is_named_by_its_branch(make_search):
    data = diverging(make_search, lambda spec: spec.branch == "discopop", LOSSES, trials=40)
    best = next(split for split in splits(data) if split.parameter == "loss")
    assert best.condition == "loss is discopop"
    assert best.diverged_outside == 0 and best.tells_apart
    assert best.diverged_range is None and best.threshold is None


def test_divergence_by_chance_is_put_down_to_no_parameter(make_search):
    data = diverging(make_search, lambda _: False, LOSSES)
    named = 0
    for seed in range(100):
        dice = random.Random(seed)
        rows = [replace(t.row, state=State.DIVERGED if dice.random() < 0.4 else State.PRUNED) for t in data.trials]
        trials = tuple(replace(trial, row=row) for trial, row in zip(data.trials, rows, strict=True))
        named += any(split.tells_apart for split in splits(replace(data, trials=trials)))
    assert named <= 5


@pytest.mark.parametrize("rule", [lambda _: False, lambda _: True])
def test_nothing_is_named_where_no_trial_or_every_trial_diverged(make_search, rule):
    assert splits(diverging(make_search, rule, trials=4)) == []


def test_failed_and_running_trials_count_on_neither_side(make_search):
    fates = iter([Fate(diverges_at=3), Fate(), Fate(fails_at=3), Fate(stops_at=5)])
    data = make_search(DLRML, num_trials=4, scheduler=None, baseline=None).run(lambda _: next(fates)).read()
    assert splits(data)
    assert {split.inside + split.outside for split in splits(data)} == {2}


def test_the_chance_of_a_split_is_that_of_fishers_exact_test():
    for bad, size in itertools.product(range(1, 9), range(1, 11)):
        for inside in range(max(0, bad + size - 12), min(bad, size) + 1):
            table = [[inside, size - inside], [bad - inside, 12 - bad - size + inside]]
            assert _fisher(inside, size, bad, 12) == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
