"""Searches that start with points which are known: those of their file, and the best of an earlier search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.search.starting import Start, check_points, start_of
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy

Config = Callable[..., SearchConfig]
DPO = {"loss": "dpo", "dpo.beta": 0.2, "training.learning_rate": 1e-5}
DLRML = {"loss": "dlrml_c", "dlrml_c.beta_kl": 0.1, "dlrml_c.c": 4, "training.learning_rate": 2e-6}


def open_search(config: SearchConfig, place: SearchPlace) -> SearchStudy:
    """The study of a search in its place, as its driver opens it."""
    place.folder(config.name).mkdir(parents=True, exist_ok=True)
    start = start_of(config, place)
    kept = None if config.search.start_from is None else start.points
    url = place.study_url(config.name)
    return SearchStudy(config, proposer_of(config, start.points), url, full_steps=40, start_points=kept)


def complete(study: SearchStudy, spec: TrialSpec, value: float) -> None:
    for step in (*study.rungs, study.full_steps):
        study.record(spec.number, step, value)
    study.finish(TrialOutcome(spec.number, State.COMPLETE, "done"), study.full_steps)


@pytest.fixture
def place(tmp_path: Path) -> SearchPlace:
    return SearchPlace(tmp_path)


@pytest.fixture
def earlier(config_with: Config, place: SearchPlace) -> dict[int, TrialSpec]:
    """A search `planted` of eight trials, the later the better; the last one has not ended."""
    config = config_with(num_trials=9, sampler="random", scheduler=None)
    study = open_search(config, place)
    specs = {spec.number: spec for spec in iter(study.ask, None)}
    for number in range(8):
        complete(study, specs[number], number / 10)
    study.close()
    return specs


def later(config_with: Config, space: dict[str, Any] | None = None, **search: Any) -> SearchConfig:
    config = config_with(
        **{"num_trials": 12, "sampler": "random", "start_from": {"search": "planted", "top": 3}} | search
    )
    return config.model_copy(update={"name": "later", **(space or {})})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("baseline", [{"beta": 0.1}, None])
def test_given_points_come_first_in_their_order(
    config_with: Config, place: SearchPlace, sampler: str, baseline: dict[str, float] | None
) -> None:
    config = config_with(points=[DPO, DLRML], num_trials=6, sampler=sampler, baseline=baseline, n_startup_trials=2)
    study = open_search(config, place)
    specs = list(iter(study.ask, None))
    study.close()
    first = 0 if baseline is None else 1
    assert len(specs) == 6
    assert [spec.params for spec in specs[first : first + 2]] == [DPO, DLRML]
    assert all(spec.params not in (DPO, DLRML) for spec in specs[first + 2 :])


def test_what_a_point_leaves_out_is_drawn_inside_its_domain(config_with: Config, place: SearchPlace) -> None:
    study = open_search(config_with(points=[{"loss": "dlrml_c", "dlrml_c.c": 7.5}], sampler="random"), place)
    study.ask()
    spec = study.ask()
    study.close()
    assert spec is not None and spec.branch == "dlrml_c" and spec.params["dlrml_c.c"] == 7.5
    assert 0.01 <= spec.params["dlrml_c.beta_kl"] <= 0.5 and 1e-7 <= spec.params["training.learning_rate"] <= 1e-4


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"loss": "dpo", "dpo.beta": 0.7}, r'search.points\[0\].dpo.beta: {"log_uniform": \[0.01, 0.5\]} .* got 0.7'),
        (
            {"loss": "dpo", "discopop.beta": 0.1},
            r"search.points\[0\].discopop.beta: no such parameter; there are dpo.b",
        ),
        ({"dpo.beta": 0.1}, r"search.points\[0\]: `loss` is one of dpo, discopop, .* got None"),
        ({"loss": "ipo"}, r"search.points\[0\]: `loss` is one of .* got 'ipo'"),
        ({"loss": "dpo", "dpo.beta": True}, r"search.points\[0\].dpo.beta: .* got True"),
        ({"loss": "dpo", "dpo.beta": "0.1"}, r"search.points\[0\].dpo.beta: .* got '0.1'"),
    ],
)
def test_a_given_point_outside_the_space_is_refused(config_with: Config, point: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_points(config_with(points=[point]))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"points": [DPO], "sampler": "grid"}, "sampler grid trains every point by itself"),
        (
            {"points": [DPO, DLRML], "num_trials": 2},
            "2 points, 0 trials to start from and 1 baseline must fit .* num_trials=2",
        ),
        (
            {"start_from": {"search": "old", "top": 4}, "num_trials": 3, "baseline": None},
            "0 points, 4 trials to start from and 0 baseline must fit .* num_trials=3",
        ),
        ({"start_from": {"search": "old", "top": 0}}, "top"),
        ({"start_from": {"search": "../old"}}, r'^test: search\.start_from\.search: .*got "../old"'),
    ],
)
def test_more_starts_than_trials_and_starts_of_a_grid_are_refused(
    config_with: Config, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_with(**search)


def test_the_best_of_an_earlier_search_come_first(
    config_with: Config, place: SearchPlace, earlier: dict[int, TrialSpec]
) -> None:
    config = later(config_with, points=[DPO])
    assert start_of(config, place).notes == (
        "search.start_from: the search starts with trials of search 'planted': 7, 6, 5",
    )
    study = open_search(config, place)
    specs = list(iter(study.ask, None))
    study.close()
    assert [spec.params for spec in specs[1:5]] == [DPO, *(earlier[number].params for number in (7, 6, 5))]
    assert [spec.loss for spec in specs[2:5]] == [earlier[number].loss for number in (7, 6, 5)]


def test_points_outside_the_new_space_are_named_and_left_out(
    config_with: Config, place: SearchPlace, earlier: dict[int, TrialSpec]
) -> None:
    only_dpo = config_with([{"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}}]).space
    config = later(config_with, {"space": only_dpo}, start_from={"search": "planted", "top": 8})
    start = start_of(config, place)
    dpo = [number for number in range(7, 0, -1) if earlier[number].branch == "dpo"]
    assert dpo, "the seed draws no DPO; choose another"
    assert [point["dpo.beta"] for point in start.points] == [earlier[number].loss.beta for number in dpo]
    assert all("loss" not in point for point in start.points)
    outside = [number for number in range(7, 0, -1) if number not in dpo]
    assert [note.partition(" of search")[0] for note in start.notes[1:]] == [
        f"search.start_from: trial {number}" for number in outside
    ]


def test_a_setting_that_is_fixed_at_another_value_is_outside(
    config_with: Config, place: SearchPlace, earlier: dict[int, TrialSpec]
) -> None:
    config = later(config_with)
    fixed = config.space.model_copy(update={"training": type(config.space.training)()})
    start = start_of(config.model_copy(update={"space": fixed}), place)
    assert start.points == ()
    assert all("training.learning_rate is " in note and "1e-06 here" in note for note in start.notes[1:])
    assert len(start.notes) == 4


def test_a_search_that_has_started_keeps_its_points(
    config_with: Config, place: SearchPlace, earlier: dict[int, TrialSpec]
) -> None:
    config = later(config_with)
    study = open_search(config, place)
    first = [study.ask() for _ in range(2)]
    study.close()
    old = open_search(config_with(num_trials=9, sampler="random", scheduler=None), place)
    complete(old, old.reissue(8), 9.9)
    old.close()
    resumed = open_search(config, place)
    rest = list(iter(resumed.ask, None))
    resumed.close()
    params = [spec.params for spec in (*first, *rest) if spec is not None]
    assert params[1:4] == [earlier[number].params for number in (7, 6, 5)]
    assert len(params) == 12
    known = [spec.params for spec in earlier.values()]
    assert all(each not in known for each in params[4:]), "the draws of the earlier search are not repeated"


def test_an_earlier_search_must_exist_and_have_a_complete_trial(config_with: Config, place: SearchPlace) -> None:
    with pytest.raises(InputError, match=r"search.start_from.search: there is no search 'planted'"):
        start_of(later(config_with), place)
    open_search(config_with(), place).close()
    with pytest.raises(InputError, match=r"search 'planted' must have a complete, feasible trial, but has none of 0"):
        start_of(later(config_with), place)


def test_a_search_without_known_points_starts_with_none(config_with: Config, place: SearchPlace) -> None:
    assert start_of(config_with(), place) == Start()
