import math
import random
from statistics import mean

import pytest
from made_search import LOSSES, PAIRS, Fate, confirmed
from typer.testing import CliRunner

from tune_dlrml.cli.main import app
from tune_dlrml.report.ranking import baseline_of, luck_of_the_best, ranking, verdict

DLRML = [{"name": "dlrml", "beta_kl": {"log_uniform": [0.01, 0.5]}, "c": 5.0}]


def in_turn(*fates):
    """Gives the trials these fates, in their order."""
    left = list(fates)
    return lambda spec: left.pop(0)


def searched(make_search, *fates, **search):
    return make_search(DLRML, num_trials=len(fates), **{"scheduler": None} | search).run(in_turn(*fates)).read()


def test_complete_trials_come_first_by_their_value_and_the_others_by_how_far_they_came(make_search):
    data = searched(
        make_search,
        Fate(0.6),
        Fate(diverges_at=9),
        Fate(0.8),
        Fate(fails_at=3),
        Fate(diverges_at=30),
        Fate(stops_at=7),
    )
    ranked = ranking(data)
    assert [line.trial for line in ranked] == [2, 0, 5, 4, 1, 3]
    assert [line.place for line in ranked] == [1, 2, None, None, None, None]
    assert [line.state for line in ranked] == ["complete", "complete", "running", "diverged", "diverged", "failed"]


def test_smaller_values_come_first_where_the_search_minimizes(make_search):
    data = searched(make_search, Fate(0.6), Fate(0.8), mode="min")
    assert [line.trial for line in ranking(data)] == [0, 1]


def test_an_interval_is_1_96_standard_errors_on_either_side(make_search):
    [line] = ranking(searched(make_search, Fate(0.75)))
    error = math.sqrt(0.75 * 0.25 / 64)
    assert line.value == 0.75
    assert line.low == pytest.approx(0.75 - 1.96 * error)
    assert line.high == pytest.approx(0.75 + 1.96 * error)


def test_an_accuracy_of_one_is_bounded_by_the_rule_of_three(make_search):
    [line] = ranking(searched(make_search, Fate(1.0)))
    assert (line.low, line.high) == (pytest.approx(1 - 3 / 64), 1.0)


def test_trials_differ_only_beyond_the_error_of_their_difference(make_search):
    # Standard errors of 0.05 and 0.0625: a difference of 0.1 is not significant, one of 0.3 is.
    lines = {line.trial: line for line in ranking(searched(make_search, Fate(0.8), Fate(0.7), Fate(0.5)))}
    assert (lines[0].apart, lines[1].apart, lines[2].apart) == (None, False, True)


def test_the_baseline_is_the_plain_dpo_of_trial_0(make_search):
    data = searched(make_search, Fate(0.6), Fate(0.8))
    assert data.trial(0).branch == "baseline"
    assert baseline_of(data) is data.trial(0)
    assert baseline_of(searched(make_search, Fate(0.6), Fate(0.8), baseline=None)) is None
    assert baseline_of(searched(make_search, Fate(diverges_at=3), Fate(0.8))) is None


@pytest.mark.parametrize(
    ("fates", "said"),
    [
        ([Fate(0.6), Fate(0.7)], "which is not significant"),
        ([Fate(0.5), Fate(0.9)], "significant for one comparison, but it was selected as the best"),
        ([Fate(0.9), Fate(0.5)], "It is the DPO baseline itself"),
        ([Fate(diverges_at=2), Fate(0.9)], "There is no complete baseline"),
        ([Fate(diverges_at=2), Fate(fails_at=2)], "No trial is complete yet"),
    ],
)
def test_the_verdict_says_no_more_than_the_numbers(make_search, fates, said):
    data = searched(make_search, *fates)
    assert said in verdict(data, ranking(data), []).answer


def test_the_best_of_several_comes_with_a_warning_that_a_confirmation_takes_the_edge_off(make_search):
    data = searched(make_search, Fate(0.6), Fate(0.7), Fate(0.65))
    bare = verdict(data, ranking(data), [])
    assert "biased" in bare.warning and "Only new runs" in bare.warning
    told = verdict(data, ranking(data), [confirmed(1, "better", 0.04, (0.01, 0.07))])
    assert "Only new runs" not in told.warning
    assert "Trained again with 5 new seeds it is better than the baseline" in told.answer
    assert "+0.010 to +0.070" in told.answer
    begun = verdict(data, ranking(data), [confirmed(1, "cannot tell", 0.0, seeds=0, end="open")])
    assert "Trained again" not in begun.answer and begun.warning.endswith("this search has none yet.")
    open_ = verdict(data, ranking(data), [confirmed(1, "cannot tell", 0.04, seeds=2, end="open", rounds=2)])
    assert "Trained again with 2 new seeds so far it does not differ significantly" in open_.answer
    unconfirmed = verdict(data, ranking(data), [confirmed(2, "better", 0.04, (0.01, 0.07))])
    assert "Trained again" not in unconfirmed.answer


def test_the_verdict_on_the_baseline_names_the_finalists_compared_with_it(make_search):
    search = make_search(
        [LOSSES[0], LOSSES[1]], num_trials=6, scheduler=None, baseline=None, confirm={"top": 2, "seeds": 5}
    )
    data = search.run(lambda spec: Fate(0.7 if spec.loss.name == "dpo" else 0.6)).read()
    best = ranking(data)[0]
    other = next(trial.number for trial in data.trials if trial.branch != "dpo")
    assert best.loss == "dpo"
    told = verdict(data, ranking(data), [confirmed(other, "worse", -0.1, (-0.2, -0.05))])
    assert (
        "It is the DPO that the other finalist was compared with under new seeds: none of them is better" in told.answer
    )
    assert "Only new runs" not in told.warning


def test_one_complete_trial_is_no_maximum_and_needs_no_warning(make_search):
    data = searched(make_search, Fate(0.6), Fate(diverges_at=2))
    assert verdict(data, ranking(data), []).warning == ""


@pytest.mark.parametrize("count", [2, 5, 20, 100])
def test_the_luck_of_the_best_is_the_expected_maximum_of_normal_noise(count):
    dice = random.Random(count)
    simulated = mean(max(dice.gauss(0, 0.06) for _ in range(count)) for _ in range(4000))
    assert luck_of_the_best([0.06] * count) == pytest.approx(simulated, rel=0.08)
    assert luck_of_the_best([0.06]) == 0.0


@pytest.mark.parametrize("metric", ["eval_accuracy", "eval_margin"])
def test_status_says_the_standard_error_of_the_metric_that_decides(make_search, metric):
    search = make_search(LOSSES, num_trials=1, metric=metric).run(lambda _: Fate(0.8, margin=2.0))
    told = CliRunner().invoke(app, ["status", search.config.name, "--storage", str(search.place.storage)])
    error = {"eval_accuracy": (0.8 * 0.2 / PAIRS) ** 0.5, "eval_margin": 0.1}[metric]
    assert f"with a standard error of {error:.3f}" in told.output
