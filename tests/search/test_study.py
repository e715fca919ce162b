import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError, NotFiniteError
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import StudyHistory
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.sampling import record
from tune_dlrml.study.study import SearchStudy

Config = Callable[..., SearchConfig]
Open = Callable[..., SearchStudy]
ONE_BRANCH = [{"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}}]
MEMORY = "memory"


def raw(study: SearchStudy) -> optuna.Study:
    """The study as Optuna reads it back."""
    return optuna.load_study(study_name=study.config.name, storage=str(study._backend.url))


def end(study: SearchStudy, number: int, state: State, steps: int = 1, exception: str = "") -> None:
    study.finish(TrialOutcome(number, state, f"it is {state}", exception), steps)


def train(study: SearchStudy, spec: TrialSpec, curve: Callable[[int], float]) -> State:
    """Take a trial through its rungs to its end."""
    for step in (*study.rungs, study.full_steps):
        study.record(spec.number, step, curve(step))
        if study.verdict(spec.number, step) == "prune":
            end(study, spec.number, State.PRUNED, step)
            return State.PRUNED
    end(study, spec.number, State.COMPLETE, study.full_steps)
    return State.COMPLETE


def quality(spec: TrialSpec) -> float:
    """Any smooth function of a trial's settings."""
    return -abs(math.log10(spec.training.learning_rate) + 5.5) - 0.1 * len(spec.branch)


def search_on(study: SearchStudy, trials: int) -> None:
    for _ in range(trials):
        spec = study.ask()
        assert spec is not None
        train(study, spec, lambda step, spec=spec: quality(spec) + 0.01 * step)


def die(*_: Any) -> None:
    raise KeyboardInterrupt


# Trials


def test_as_many_trials_as_configured_are_issued_and_numbered_from_zero(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(num_trials=5, sampler="random"), MEMORY)
    specs = list(iter(study.ask, None))
    assert [spec.number for spec in specs] == [0, 1, 2, 3, 4]
    assert {spec.attempt for spec in specs} == {0}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_parameter_of_a_trial_belongs_to_its_branch(config_with: Config, open_study: Open, sampler: str) -> None:
    study = open_study(config_with(num_trials=25, sampler=sampler, n_startup_trials=5), MEMORY)
    own = {
        "dpo": {"dpo.beta"},
        "discopop": {"discopop.beta"},
        "dlrml_c": {"dlrml_c.beta_kl", "dlrml_c.c"},
        "dlrml": {"dlrml.beta_kl", "dlrml.beta_mix"},
        "baseline": set(),
    }
    search_on(study, 25)
    seen = set()
    for row in study.rows()[1:]:
        assert row.spec is not None
        assert set(row.params) == own[row.spec.branch] | {"loss", "training.learning_rate"}
        assert row.params["loss"] == row.spec.branch
        seen.add(row.spec.branch)
    assert seen == set(own) - {"baseline"}


def test_a_single_branch_is_no_parameter(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(ONE_BRANCH, baseline=None), MEMORY)
    spec = study.ask()
    assert spec is not None
    assert set(spec.params) == {"dpo.beta", "training.learning_rate"}


def test_the_spec_is_in_the_study_as_it_was_issued(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(num_trials=3))
    specs = list(iter(study.ask, None))
    stored = [trial.user_attrs["spec"] for trial in raw(study).trials]
    assert [TrialSpec.from_json(document) for document in stored] == specs
    assert [trial.params for trial in raw(study).trials] == [dict(spec.params) for spec in specs]


def test_a_baseline_inside_the_space_is_a_point_that_the_sampler_learns_from(
    config_with: Config, open_study: Open
) -> None:
    study = open_study(config_with(), MEMORY)
    spec = study.ask()
    assert spec is not None and (spec.branch, spec.loss.beta) == ("dpo", 0.1)
    assert study.row(0).params == {"loss": "dpo", "dpo.beta": 0.1, "training.learning_rate": 1e-6}


def test_a_baseline_outside_the_space_is_a_trial_without_parameters(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(baseline={"beta": 0.9}), MEMORY)
    spec, second = study.ask(), study.ask()
    assert spec is not None and (spec.branch, spec.loss.beta) == ("baseline", 0.9)
    assert spec.training.learning_rate == 1e-6
    assert study.row(0).params == {}
    assert second is not None and second.params


def test_the_baseline_can_be_switched_off(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(ONE_BRANCH, baseline=None), MEMORY)
    spec = study.ask()
    assert spec is not None and spec.params["dpo.beta"] != 0.1


GRID = [
    {"name": "dpo", "beta": {"choice": [0.1, 0.2, 0.3]}},
    {"name": "discopop", "beta": {"choice": [0.05, 0.1]}},
]


@pytest.mark.parametrize(
    ("beta", "points"),
    [(0.9, 15), (0.1, 15)],
    ids=["baseline off the grid comes first", "baseline on the grid is not repeated"],
)
def test_a_grid_visits_every_point_of_every_branch_once(
    config_with: Config, open_study: Open, beta: float, points: int
) -> None:
    config = config_with(GRID, sampler="grid", num_trials=None, baseline={"beta": beta})
    rates = {"training": {"learning_rate": {"choice": [1e-6, 1e-5, 1e-4]}}}
    config = config.model_copy(update={"space": config.space.model_validate(config.space.model_dump() | rates)})
    study = open_study(config, MEMORY)
    specs = list(iter(study.ask, None))
    assert specs[0].loss.beta == beta
    asked = [(spec.branch, spec.loss.beta, spec.training.learning_rate) for spec in specs if spec.branch != "baseline"]
    expected = {("dpo", b, r) for b in (0.1, 0.2, 0.3) for r in (1e-6, 1e-5, 1e-4)} | {
        ("discopop", b, r) for b in (0.05, 0.1) for r in (1e-6, 1e-5, 1e-4)
    }
    assert len(asked) == points == len(set(asked))
    assert set(asked) == expected


def test_a_grid_goes_on_where_an_earlier_driver_ended(config_with: Config, open_study: Open) -> None:
    config = config_with(GRID, sampler="grid", num_trials=None)
    whole = [spec.params for spec in iter(open_study(config, MEMORY).ask, None)]
    first = open_study(config)
    begun = [first.ask(), first.ask(), first.ask()]
    first._study.enqueue_trial(dict(whole[3]))  # as drivers did that queued a point before they issued it
    rest = list(iter(open_study(config).ask, None))
    assert [spec.params for spec in [*begun, *rest] if spec] == whole


# A suggestion depends on the study's content, not on the life of a process


def test_a_reopened_study_suggests_what_one_kept_open_does(
    config_with: Config, open_study: Open, tmp_path: Path
) -> None:
    config = config_with(num_trials=10, n_startup_trials=4)
    kept = open_study(config, MEMORY)
    search_on(kept, 10)
    for _ in range(5):
        search_on(open_study(config), 2)
    reopened = open_study(config)
    assert [row.params for row in reopened.rows()] == [row.params for row in kept.rows()]
    assert [row.state for row in reopened.rows()] == [row.state for row in kept.rows()]


@pytest.mark.slow
def test_a_process_with_other_string_hashes_suggests_the_same(
    config_with: Config, open_study: Open, tmp_path: Path
) -> None:
    config = config_with(num_trials=20, n_startup_trials=4)
    study = open_study(config)
    search_on(study, 8)
    copy = shutil.copy(tmp_path / "study.db", tmp_path / "copy.db")
    program = f"""
from tune_dlrml.config import SearchConfig
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy
config = SearchConfig.model_validate_json({config.model_dump_json()!r})
print(sorted(SearchStudy(config, proposer_of(config), "sqlite:///{copy}", 40).ask().params.items()))
"""
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    spec = study.ask()
    assert spec is not None
    assert run.stdout == f"{sorted(spec.params.items())}\n"


@pytest.mark.parametrize("trials", [2, 8], ids=["at start-up", "modelled"])
def test_a_point_whose_drawing_was_interrupted_comes_out_the_same(
    config_with: Config, open_study: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trials: int
) -> None:
    config = config_with(num_trials=20, n_startup_trials=4)
    study = open_study(config)
    search_on(study, trials)
    copies = [shutil.copy(tmp_path / "study.db", tmp_path / f"copy{i}.db") for i in range(3)]
    expected = study.ask()
    assert expected is not None
    domains = proposer_of(config).propose(study, expected.number).domains

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Trial, "set_user_attr", die)
        open_study(config, f"sqlite:///{copies[0]}").ask()
    reopened = open_study(config, f"sqlite:///{copies[0]}")
    assert reopened.row(trials).params == {} and reopened.interrupted() == [trials]
    assert reopened.reissue(trials) == expected

    for writes, copy in enumerate(copies[1:], start=1):  # as drivers left it that wrote parameter by parameter
        url = f"sqlite:///{copy}"
        begun = optuna.load_study(study_name=config.name, storage=url).ask()
        record(begun, expected.params, dict(list(domains.items())[:writes]))
        reopened = open_study(config, url)
        assert len(reopened.row(trials).params) == min(writes, len(domains))
        assert reopened.reissue(trials) == expected
        assert reopened.row(trials).params == expected.params


def test_the_sampler_draws_the_same_with_and_without_regard_to_trials_under_way_if_there_are_none(
    config_with: Config, open_study: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(num_trials=10, n_startup_trials=4)
    plain = open_study(config, MEMORY)
    search_on(plain, 10)
    make = optuna.samplers.TPESampler

    def with_regard(**options: Any) -> optuna.samplers.TPESampler:
        return make(**options | {"constant_liar": True})

    monkeypatch.setattr(optuna.samplers, "TPESampler", with_regard)
    wary = open_study(config, MEMORY)
    search_on(wary, 10)
    assert [row.params for row in wary.rows()] == [row.params for row in plain.rows()]


# Verdicts


class HandWrittenHalving:
    """Asynchronous successive halving from its description, with the ranks counted by hand."""

    def __init__(self, factor: int, larger_is_better: bool) -> None:
        self.factor, self.sign = factor, 1 if larger_is_better else -1
        self.values: dict[int, list[float]] = {}

    def passes(self, step: int, value: float) -> bool:
        here = self.values.setdefault(step, [])
        here.append(value)
        better = sum(self.sign * other > self.sign * value for other in here)
        return better < max(1, len(here) // self.factor)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("factor", [2, 4])
def test_verdicts_are_those_of_successive_halving_over_trials_that_run_at_the_same_time(
    config_with: Config, open_study: Open, mode: str, factor: int
) -> None:
    scheduler = {"type": "stopping", "grace_period": 3, "reduction_factor": factor}
    study = open_study(config_with(num_trials=30, sampler="random", mode=mode, scheduler=scheduler), MEMORY)
    assert study.rungs == {2: (3, 6, 12, 24), 4: (3, 12)}[factor]
    rng, reference = random.Random(1), HandWrittenHalving(factor, mode == "max")

    def life(number: int) -> Iterator[None]:
        for step in study.rungs:
            value = rng.choice([0.2, 0.3, 0.4, 0.5, 0.6]) + 0.01 * rng.randint(0, 3)
            study.record(number, step, value)
            verdict = study.verdict(number, step)
            assert verdict == ("continue" if reference.passes(step, value) else "prune")
            if verdict == "prune":
                end(study, number, State.PRUNED, step)
                return
            yield
        study.record(number, study.full_steps, 0.0)
        assert study.verdict(number, study.full_steps) == "continue"
        end(study, number, State.COMPLETE, study.full_steps)

    lives: list[Iterator[None]] = []
    while True:
        while len(lives) < 4 and (spec := study.ask()) is not None:
            lives.append(life(spec.number))
        if not lives:
            break
        one = rng.choice(lives)
        if next(one, "over") == "over":
            lives.remove(one)
    states = [row.state for row in study.rows()]
    assert states.count(State.PRUNED) > 10 and states.count(State.COMPLETE) >= 1


PROMOTION = {"type": "promotion", "grace_period": 10, "reduction_factor": 2}


def paused_study(config_with: Config, open_study: Open, *values: float, **search: Any) -> SearchStudy:
    """A study in a file whose trials have these values at the first rung, one after another."""
    config = config_with(**{"scheduler": PROMOTION, "sampler": "random", "baseline": None, "num_trials": 6} | search)
    study = open_study(config)
    for value in values:
        spec = study.ask()
        assert spec is not None
        study.record(spec.number, 10, value)
        study.verdict(spec.number, 10)
    return study


def test_a_paused_trial_waits_for_its_promotion_in_the_study_alone(config_with: Config, open_study: Open) -> None:
    study = paused_study(config_with, open_study, 0.5, 0.4)
    promoted = study.ask()
    assert promoted is not None and (promoted.number, promoted.attempt) == (0, 0)  # the better of two
    assert [row.state for row in study.rows()] == [State.RUNNING, State.PAUSED]
    reopened = open_study(study.config)
    assert [row.state for row in reopened.rows()] == [State.RUNNING, State.PAUSED]
    assert reopened.interrupted() == [0] and reopened.paused == {1: 10}  # 1 is not issued again
    assert reopened.verdict(0, 10) == "continue"  # its report of the rung comes again, from its checkpoint
    new = reopened.ask()
    assert new is not None and new.number == 2
    reopened.record(2, 10, 0.1)
    assert reopened.verdict(2, 10) == "pause"
    reopened.record(reopened.ask().number, 10, 0.2)  # type: ignore[union-attr]
    assert reopened.verdict(3, 10) == "pause"
    again = reopened.ask()
    assert again is not None and again.number == 1  # the second of four


def test_a_driver_that_dies_with_a_promotion_written_has_issued_the_trial(
    config_with: Config, open_study: Open
) -> None:
    study = paused_study(config_with, open_study, 0.5, 0.4)
    assert study.ask() is not None
    reopened = open_study(study.config)
    spec = reopened.reissue(0)
    assert (spec.number, spec.attempt) == (0, 1)


def test_the_baseline_is_never_paused_and_is_not_what_a_search_is_for(config_with: Config, open_study: Open) -> None:
    study = paused_study(config_with, open_study, 0.4, 0.1, baseline={"beta": 0.1}, num_trials=3)
    assert [study.verdict(0, 10), study.verdict(1, 10)] == ["continue", "pause"]  # nothing else is complete at the end
    train(study, study.row(0).spec, lambda step: 0.1)  # type: ignore[arg-type]
    assert study.ask().number == 2  # type: ignore[union-attr]
    study.record(2, 10, 0.05)
    assert study.verdict(2, 10) == "pause"
    assert study.ask().number == 1  # type: ignore[union-attr]  # one of three may go on, which is the baseline


@pytest.mark.parametrize(("confirm", "complete"), [(None, 1), ({"top": 3, "seeds": 2}, 3)])
def test_a_search_that_ends_with_too_few_complete_trials_promotes_the_best(
    config_with: Config, open_study: Open, confirm: Any, complete: int
) -> None:
    study = paused_study(
        config_with, open_study, scheduler={"grace_period": 10, "reduction_factor": 8}, confirm=confirm
    )
    accuracies = dict(enumerate([0.3, 0.6, 0.2, 0.5, 0.4, 0.1]))
    while (spec := study.ask()) is not None:
        reached = study.steps_reached(spec.number)
        for step in (own for own in (*study.rungs, 40) if own > reached):
            study.record(spec.number, step, accuracies[spec.number])
            if study.verdict(spec.number, step) == "pause":
                break
        else:
            end(study, spec.number, State.COMPLETE, 40)
    states = [row.state for row in study.rows()]
    best = sorted(accuracies, key=lambda number: -accuracies[number])[:complete]
    assert {number for number, state in enumerate(states) if state is State.COMPLETE} == {*best}
    assert {*states} == {State.COMPLETE, State.PAUSED}


def test_samplers_see_a_paused_trial_as_one_that_was_pruned_there(config_with: Config, open_study: Open) -> None:
    bounds = {"eval_kl": {"max": 5.0}}
    study = paused_study(config_with, open_study, constraints=bounds)
    for accuracy, kl in ((0.4, 7.0), (0.3, 1.0)):
        spec = study.ask()
        assert spec is not None
        study.judge(spec.number, 10, {"eval_accuracy": accuracy, "eval_kl": kl})
    assert study.ask().number == 0 and [*study.paused] == [1]  # type: ignore[union-attr]
    running, seen = study.optuna_study.get_trials()[1], study.for_samplers().get_trials()[1]
    assert (running.state, seen.state) == (TrialState.RUNNING, TrialState.PRUNED)
    assert (seen.params, seen.intermediate_values) == (running.params, {10: 0.3})
    assert seen.constraints == {"diverged": 0.0, "eval_kl <= 5": -4.0}
    promoted = study.for_samplers().get_trials()[0]  # it runs, and is one of the best so far
    assert (promoted.state, promoted.intermediate_values) == (TrialState.PRUNED, {10: 0.4})
    assert promoted.constraints == {"diverged": 0.0, "eval_kl <= 5": 2.0}


def test_samplers_see_trials_that_run_without_a_rung_as_running(config_with: Config, open_study: Open) -> None:
    study = paused_study(config_with, open_study, 0.4)
    assert study.ask().number == 1  # type: ignore[union-attr]
    states = [trial.state for trial in study.for_samplers().get_trials()]
    assert states == [TrialState.PRUNED, TrialState.RUNNING]


KEEPS_ALL = {"type": "promotion", "grace_period": 10, "reduction_factor": 8}
"""Of fewer than eight trials none is promoted before the end."""


def through_its_rungs(study: SearchStudy, spec: TrialSpec, **metrics: float) -> None:
    reached = study.steps_reached(spec.number)
    for step in (own for own in (*study.rungs, 40) if own > reached):
        if study.judge(spec.number, step, metrics) == "pause":
            return
    end(study, spec.number, State.COMPLETE, 40)


@pytest.mark.parametrize(
    ("kls", "complete"),
    [
        ([9.0, 1.0, 1.0], [1]),  # the best breaks the bound
        ([1.0, 9.0, 9.0], [0]),
        ([9.0, 9.0, 9.0], [0]),  # with none within it, one is still told of
    ],
)
def test_the_end_of_a_search_promotes_what_keeps_its_constraints(
    config_with: Config, open_study: Open, kls: list[float], complete: list[int]
) -> None:
    bounds = {"eval_kl": {"max": 5.0}}
    study = paused_study(config_with, open_study, scheduler=KEEPS_ALL, num_trials=3, constraints=bounds)
    while (spec := study.ask()) is not None:
        through_its_rungs(study, spec, eval_accuracy=0.9 - 0.1 * spec.number, eval_kl=kls[spec.number])
    assert [row.number for row in study.rows() if row.state is State.COMPLETE] == complete


def test_a_complete_trial_that_breaks_a_constraint_is_not_what_a_search_is_for(
    config_with: Config, open_study: Open
) -> None:
    bounds = {"eval_kl": {"max": 5.0}}
    study = paused_study(config_with, open_study, num_trials=4, constraints=bounds)  # one of two is promoted
    while (spec := study.ask()) is not None:
        kl = 9.0 if spec.number in (0, 1) else 1.0
        through_its_rungs(study, spec, eval_accuracy=0.9 - 0.1 * spec.number, eval_kl=kl)
    found = {row.number: row.feasible for row in study.rows() if row.state is State.COMPLETE}
    assert found == {0: False, 2: True}  # and 1, which is better, stays paused


@pytest.mark.parametrize(("per_loss", "complete"), [(None, ["first", "first"]), (1, ["first", "second"])])
def test_the_end_of_a_search_promotes_as_many_of_a_loss_as_are_confirmed(
    config_with: Config, open_study: Open, per_loss: int | None, complete: list[str]
) -> None:
    losses = [{"name": "dpo", "label": label, "beta": 0.2} for label in ("first", "second")]  # three trials of each
    settings = {"scheduler": KEEPS_ALL, "sampler": "grid", "num_trials": None, "baseline": None}
    study = open_study(config_with(losses, confirm={"top": 2, "per_loss": per_loss}, **settings))
    while (spec := study.ask()) is not None:
        through_its_rungs(study, spec, eval_accuracy=0.9 if spec.branch == "first" else 0.4)
    done = [row.spec.branch for row in study.rows() if row.state is State.COMPLETE and row.spec is not None]
    assert done == complete


def test_a_search_from_before_trials_were_paused_is_resumed_as_such_alone(
    config_with: Config, open_study: Open
) -> None:
    old = {"type": "stopping", "grace_period": 10, "reduction_factor": 2}
    study = open_study(config_with(scheduler=old))
    written = study.optuna_study.user_attrs["config"]
    del written["search"]["scheduler"]["type"]
    study.optuna_study.set_user_attr("config", written)
    with pytest.raises(InputError, match=r'search\.scheduler\.type: was "stopping", is now "promotion"'):
        open_study(config_with(scheduler=PROMOTION))
    assert not open_study(config_with(scheduler=old)).pauses


def test_a_verdict_is_returned_again_by_the_next_driver(config_with: Config, open_study: Open) -> None:
    config = config_with()
    study = open_study(config)
    for value in (0.9, 0.1):
        spec = study.ask()
        assert spec is not None
        study.record(spec.number, 5, value)
        study.verdict(spec.number, 5)
    reopened = open_study(config)
    assert [reopened.verdict(number, 5) for number in (0, 1)] == ["continue", "prune"]
    assert [reopened.verdict(number, 5) for number in (0, 1)] == ["continue", "prune"]
    assert [reopened.pruned_at(number) for number in (0, 1)] == [None, 5]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", [0.7, 0.4])
def test_a_rung_that_the_pruner_recorded_without_a_verdict_is_decided_again(
    config_with: Config, open_study: Open, monkeypatch: pytest.MonkeyPatch, mode: str, value: float
) -> None:
    config = config_with(mode=mode)
    study = open_study(config)
    for other in (0.5, 0.6, 0.5, 0.6, value):
        spec = study.ask()
        assert spec is not None
        study.record(spec.number, 5, other)
        if spec.number < 4:
            study.verdict(spec.number, 5)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Trial, "set_user_attr", die)
        study.verdict(4, 5)
    attrs = raw(study).trials[4]
    assert "completed_rung_0" in attrs.system_attrs and "verdicts" not in attrs.user_attrs

    best = (value > 0.6) == (mode == "max")
    assert open_study(config).verdict(4, 5) == ("continue" if best else "prune")
    assert open_study(config).verdict(4, 5) == ("continue" if best else "prune")


def test_without_a_scheduler_nothing_is_pruned_and_the_last_value_is_kept(
    config_with: Config, open_study: Open
) -> None:
    study = open_study(config_with(scheduler=None), MEMORY)
    assert study.rungs == ()
    for value in (0.9, 0.1, 0.5):
        spec = study.ask()
        assert spec is not None
        assert train(study, spec, lambda _, value=value: value) is State.COMPLETE
    assert [row.value for row in study.rows()] == [0.9, 0.1, 0.5]


def test_the_first_value_at_a_step_stands(config_with: Config, open_study: Open) -> None:
    config = config_with()
    study = open_study(config)
    study.ask()
    study.record(0, 5, 0.7)
    again = open_study(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.reissue(0)
        again.record(0, 5, 0.2)
    assert raw(study).trials[0].intermediate_values == {5: 0.7}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_reaches_the_study(
    config_with: Config, open_study: Open, value: float
) -> None:
    study = open_study(config_with())
    study.ask()
    with pytest.raises(NotFiniteError, match="eval_accuracy of trial 0"):
        study.record(0, 5, value)
    assert raw(study).trials[0].intermediate_values == {}


def test_a_value_off_the_rungs_is_refused(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(), MEMORY)
    study.ask()
    with pytest.raises(ValueError, match=r"steps \[5, 10, 20, 40\], but got step 7"):
        study.record(0, 7, 0.5)


# Ends


def test_the_four_ends_are_reported_truthfully(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with())
    for _ in range(5):
        study.ask()
    study.record(0, 40, 0.75)
    end(study, 0, State.COMPLETE, 40)
    study.record(1, 5, 0.5)
    end(study, 1, State.PRUNED, 5)
    study.record(2, 5, 0.6)
    end(study, 2, State.DIVERGED, 8)
    end(study, 3, State.FAILED, 0, exception="ValueError: no")

    told = raw(study).trials
    assert [trial.state for trial in told] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert [trial.constraints for trial in told[:4]] == [{"diverged": c} for c in (0.0, 0.0, 1.0, 0.0)]
    assert told[0].value == 0.75

    rows = study.rows()
    ends = [State.COMPLETE, State.PRUNED, State.DIVERGED, State.FAILED]
    assert [row.state for row in rows] == [*ends, State.RUNNING]
    assert [row.value for row in rows] == [0.75, 0.5, 0.6, None, None]
    assert [row.steps for row in rows] == [40, 5, 8, 0, 0]
    assert [row.stop_reason for row in rows] == [*(f"it is {state}" for state in ends), ""]
    assert [row.attrs.get("exception") for row in rows] == [None, None, None, "ValueError: no", None]
    assert study.row(2) == rows[2]


def test_a_trial_without_a_value_at_the_full_budget_cannot_be_complete(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(), MEMORY)
    study.ask()
    study.record(0, 20, 0.7)
    with pytest.raises(ValueError, match="has eval_accuracy at step 40, but trial 0 has none"):
        end(study, 0, State.COMPLETE, 40)
    assert study.row(0).state is State.RUNNING


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_the_best_trial_is_the_first_of_the_best_complete_ones(
    config_with: Config, open_study: Open, mode: str, best: int
) -> None:
    study = open_study(config_with(mode=mode), MEMORY)
    assert study.best() is None
    for number, value in enumerate((0.5, 0.4, 0.6, 0.6, 0.4)):
        study.ask()
        study.record(number, 40, value)
        end(study, number, State.COMPLETE, 40)
    study.ask()
    study.record(5, 5, 0.99 if mode == "max" else 0.01)
    end(study, 5, State.PRUNED, 5)
    assert study.best() == best


def test_attributes_stay_with_a_trial(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with())
    study.ask()
    study.set_attribute(0, "mlflow_run_id", "abc")
    end(study, 0, State.FAILED)
    assert StudyHistory.open(str(study._backend.url), "planted").row(0).attrs["mlflow_run_id"] == "abc"


# Resuming


def test_a_trial_left_under_way_keeps_its_number_and_point_and_counts_its_attempts(
    config_with: Config, open_study: Open
) -> None:
    config = config_with()
    study = open_study(config)
    first, second = study.ask(), study.ask()
    assert first is not None and second is not None
    end(study, 0, State.FAILED)

    for attempt in (1, 2):
        reopened = open_study(config)
        assert reopened.interrupted() == [1]
        again = reopened.reissue(1)
        assert again == second.model_copy(update={"attempt": attempt})
        assert reopened.interrupted() == []
    assert reopened.row(1).attempt == 2
    reopened.record(1, 40, 0.8)
    end(reopened, 1, State.COMPLETE, 40)
    third = reopened.ask()
    assert third is not None and third.number == 2


def test_more_trials_extend_a_finished_search(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(num_trials=2))
    search_on(study, 2)
    assert study.ask() is None
    longer = open_study(config_with(num_trials=3))
    spec = longer.ask()
    assert spec is not None and spec.number == 2
    assert longer.ask() is None
    assert raw(longer).user_attrs["config"]["search"]["num_trials"] == 3


def test_settings_that_decide_what_a_search_finds_must_stay_the_same(config_with: Config, open_study: Open) -> None:
    open_study(config_with())
    with pytest.raises(InputError) as error:
        open_study(config_with(seed=7, n_startup_trials=3))
    message = str(error.value)
    assert "search.seed: was 0, is now 7" in message
    assert "search.n_startup_trials: was 10, is now 3" in message
    assert "num_trials" not in message


def test_a_changed_space_is_named_to_the_last_key(config_with: Config, open_study: Open) -> None:
    open_study(config_with(ONE_BRANCH))
    with pytest.raises(InputError, match=r"space\.losses\[0\]\.beta\.log_uniform\[1\]: was 0\.5, is now 0\.4"):
        open_study(config_with([{"name": "dpo", "beta": {"log_uniform": [0.01, 0.4]}}]))


def test_budget_in_trials_time_and_machines_may_change(config_with: Config, open_study: Open) -> None:
    open_study(config_with())
    config = config_with(num_trials=3, time_budget_s=60.0)
    resources = config.resources.model_copy(update={"concurrent_trials": 2})
    tracking = config.tracking.model_copy(update={"mlflow": "http://elsewhere"})
    open_study(config.model_copy(update={"resources": resources, "tracking": tracking}))


def test_another_full_budget_or_other_data_are_refused(config_with: Config, open_study: Open) -> None:
    config = config_with()
    open_study(config, hashes={"data_hash": {"train": "aa", "eval": "bb"}})
    open_study(config, hashes={"data_hash": {"train": "aa", "eval": "bb"}})
    with pytest.raises(InputError, match=r'data_hash\.eval: was "bb", is now "cc"'):
        open_study(config, hashes={"data_hash": {"train": "aa", "eval": "cc"}})
    with pytest.raises(InputError, match="full_steps: was 40, is now 80"):
        open_study(config, full_steps=80)


def test_a_search_that_knew_no_tokens_goes_on_and_from_then_on_they_stay(config_with: Config, open_study: Open) -> None:
    config, data = config_with(), {"data_hash": {"train": "aa"}}
    open_study(config, hashes=data)
    open_study(config, hashes=data | {"token_hash": {"train": "11"}})
    open_study(config, hashes=data | {"token_hash": {"train": "11"}})
    with pytest.raises(InputError, match=r'token_hash\.train: was "11", is now "22"'):
        open_study(config, hashes=data | {"token_hash": {"train": "22"}})


# Storage


def test_a_history_is_read_from_url_and_name_alone(config_with: Config, open_study: Open) -> None:
    config = config_with(num_trials=4)
    study = open_study(config)
    search_on(study, 3)
    study.ask()
    history = StudyHistory.open(str(study._backend.url), "planted")
    assert history.rows() == study.rows()
    assert history.best() == study.best()
    history.close()


def test_an_unknown_search_is_an_input_error_and_creates_nothing(
    config_with: Config, open_study: Open, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there is no search 'planted'"):
        StudyHistory.open(f"sqlite:///{tmp_path}/none.db", "planted")
    assert not (tmp_path / "none.db").exists()
    study = open_study(config_with())
    with pytest.raises(InputError, match="there is no search 'other'"):
        StudyHistory.open(str(study._backend.url), "other")


@pytest.mark.parametrize(
    "url",
    ["sqlite:////no/such/folder/study.db", "nonsense", "nodialect://me:canary@host/db", "sqlite:///{file}"],
    ids=["no folder", "no URL", "no driver", "no database"],
)
def test_a_storage_that_cannot_be_opened_is_an_input_error_without_the_password(
    config_with: Config, open_study: Open, tmp_path: Path, url: str
) -> None:
    file = tmp_path / "text.db"
    file.write_text("this is no database, but it is long enough to be taken for the head of one" * 20)
    with pytest.raises(InputError, match="cannot be opened") as error:
        open_study(config_with(), url.format(file=file))
    assert "canary" not in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_a_pickled_study_says_nothing_of_its_storage(config_with: Config, open_study: Open, tmp_path: Path) -> None:
    (tmp_path / "canary").mkdir()
    study = open_study(config_with(), f"sqlite:///{tmp_path}/canary/study.db")
    study.ask()
    assert b"canary" not in pickle.dumps(study)


def test_tracking_addresses_stay_out_of_the_study(config_with: Config, open_study: Open, tmp_path: Path) -> None:
    config = config_with()
    tracking = config.tracking.model_copy(update={"mlflow": "http://me:canary@host"})
    open_study(config.model_copy(update={"tracking": tracking})).ask()
    assert b"canary" not in (tmp_path / "study.db").read_bytes()


def test_a_trial_that_is_under_way_is_feasible_by_its_last_evaluation(config_with: Config, open_study: Open) -> None:
    study = paused_study(config_with, open_study, constraints={"eval_kl": {"max": 5.0}})
    for accuracy, kl in ((0.4, 7.0), (0.3, 1.0)):
        spec = study.ask()
        assert spec is not None
        study.judge(spec.number, 10, {"eval_accuracy": accuracy, "eval_kl": kl})
    assert [(row.state, row.feasible) for row in study.rows()] == [(State.PAUSED, False), (State.PAUSED, True)]
    promoted = study.ask()
    assert promoted is not None and promoted.number == 0
    study.judge(0, 20, {"eval_accuracy": 0.5, "eval_kl": 4.0})
    assert [row.feasible for row in open_study(study.config).rows()] == [True, True]


def test_a_look_at_the_study_by_a_sampler_leaves_interrupted_trials_as_they_are(
    config_with: Config, open_study: Open
) -> None:
    study = paused_study(config_with, open_study, 0.5, 0.4)
    assert study.ask().number == 0  # type: ignore[union-attr]
    reopened = open_study(study.config)
    reopened.for_samplers()
    assert reopened.interrupted() == [0]
