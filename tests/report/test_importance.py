import pytest
from made_search import LOSSES, STOPPING, Fate

from tune_dlrml.study.history import StudyHistory

DLRML = [LOSSES[2]]


def history(make_search, fate_of, **search):
    made = make_search(DLRML, **{"num_trials": 60, "baseline": None, "scheduler": None} | search).run(fate_of)
    return StudyHistory.open(made.place.study_url("planted"), "planted")


def test_the_parameter_that_decides_is_found_and_stands_out_from_chance(make_search):
    found = history(make_search, lambda spec: Fate(0.5 + spec.training.learning_rate * 4e3)).importance()
    assert (found.step, found.trials) == (40, 60)
    assert next(iter(found.shares)) == "training.learning_rate"
    assert found.shares["training.learning_rate"] > found.chance["training.learning_rate"]
    assert sum(found.shares.values()) == pytest.approx(1)
    others = [name for name in found.shares if name != "training.learning_rate"]
    assert all(found.shares[name] < found.chance[name] for name in others)


def test_all_trials_that_reached_a_rung_count_and_not_the_complete_ones_alone(make_search):
    halving = STOPPING | {"reduction_factor": 4}
    found = history(make_search, lambda spec: Fate(0.5 + spec.loss.c / 20), scheduler=halving).importance()
    assert (found.step, found.trials) == (5, 60)
    assert next(iter(found.shares)) == "dlrml_c.c"


def test_too_few_trials_have_no_importance(make_search):
    assert history(make_search, lambda spec: Fate(0.5 + spec.loss.c / 20), num_trials=19).importance() is None


def test_trials_that_are_all_alike_have_no_importance(make_search):
    assert history(make_search, lambda _: Fate(0.7), num_trials=25).importance().shares == {}
