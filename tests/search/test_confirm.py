"""The confirming study without a cluster: which trials it holds, how it goes on, and what is concluded."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from scipy import stats

from tune_dlrml.config import SearchConfig, TrainingConfig, load_config, parse_config, to_yaml
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.data import training_order
from tune_dlrml.errors import InputError
from tune_dlrml.events import EventLog
from tune_dlrml.losses.registry import baseline
from tune_dlrml.records import Report, State, TrialOutcome
from tune_dlrml.report.arms import arms
from tune_dlrml.report.reading import read_data
from tune_dlrml.report.writing import write_report
from tune_dlrml.search.confirm.finalists import DEFAULT_DPO, FINALIST, SEED, Finalist, finalists
from tune_dlrml.search.confirm.prepared import ConfirmSearch, confirm_config, confirmation_of
from tune_dlrml.search.confirm.verdicts import compare, read_confirmation
from tune_dlrml.search.preparation import PreparedSearch, prepare
from tune_dlrml.search.result import SearchPlace, read_search
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.study import SearchStudy

LOSSES = [
    {"name": "dpo", "beta": {"choice": [0.05, 0.2]}},
    {"name": "discopop", "beta": 0.05},
    {"name": "dlrml", "beta_kl": 0.05, "c": {"choice": [4, 8]}},
]


def document(tmp_path: Path, toy_model: Path, **search: Any) -> dict[str, Any]:
    written = toy.document(
        toy_model, toy.write_pairs(tmp_path / "train.jsonl", 16), toy.write_pairs(tmp_path / "eval.jsonl", 8, seed=1)
    )
    written["dataset"]["test"] = str(toy.write_pairs(tmp_path / "test.jsonl", 12, seed=2))
    written["training"] |= {"max_steps": 4, "seed": 7}
    confirm = {"top": 2, "seeds": 3, "adaptive": False}
    written["search"] = {"sampler": "grid", "scheduler": None, "baseline": None, "confirm": confirm, **search}
    written["space"] = {"losses": LOSSES, "training": {"learning_rate": {"choice": [1e-3]}}}
    return written


def config_of(tmp_path: Path, toy_model: Path, **search: Any) -> SearchConfig:
    return parse_config(document(tmp_path, toy_model, **search), source="test")


def run_all(study: SearchStudy, value_of: Callable[[TrialSpec], float | State]) -> list[TrialRow]:
    """Every trial that is left, ended with a value or in the state that `value_of` says."""
    while (spec := study.ask()) is not None:
        end_as(study, spec, value_of(spec))
    return study.rows()


def end_as(study: SearchStudy, spec: TrialSpec, told: float | State) -> None:
    if isinstance(told, State):
        study.finish(TrialOutcome(spec.number, told, "as the test says"), 2)
        return
    study.record(spec.number, study.full_steps, told)
    study.finish(TrialOutcome(spec.number, State.COMPLETE, "done"), study.full_steps)


def leave_logs(again: ConfirmSearch, rows: list[TrialRow]) -> None:
    """The event log of each trial, with the value of a complete one."""
    events = EventLog(again.place.folder(again.config.name))
    for row in rows:
        events.start(row.spec)
        if row.state is State.COMPLETE:
            events.report(Report(row.number, 4, 1, {"eval_accuracy": row.value}, evaluated=True))


@pytest.fixture
def searched(tmp_path: Path, toy_model: Path) -> Iterator[tuple[PreparedSearch, list[TrialRow]]]:
    """Trials 0 to 4 (DPO 0.05 and 0.2, DiscoPOP, dLRML at 4 and 8); best first: 3, 1, 4, 0, 2."""
    config = config_of(tmp_path, toy_model)
    place = SearchPlace(tmp_path / "runs")
    folder = place.folder(config.name)
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(to_yaml(config))
    prepared = prepare(config, place)
    study = prepared.open_study()
    values = {0: 0.6, 1: 0.8, 2: 0.4, 3: 0.9, 4: 0.7}
    rows = run_all(study, lambda spec: values[spec.number])
    study.close()
    yield prepared, rows


def confirming(prepared: PreparedSearch, rows: list[TrialRow]) -> tuple[ConfirmSearch, SearchStudy]:
    again = confirmation_of(prepared, rows)
    assert again is not None
    folder = again.place.folder(again.config.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.yaml").write_text(to_yaml(again.config))
    study = again.open_study()
    return again, study


def test_the_order_of_pairs_follows_the_new_seed_though_the_search_kept_one_order():
    training = TrainingConfig(max_steps=4, seed=3, data_seed=9)
    loss = baseline(beta=0.1)
    spec = TrialSpec(number=5, branch="dpo", loss=loss, training=training, params={})
    again = Finalist(5, spec).again(0, seed=11).training
    assert (again.seed, again.data_seed) == (11, None)
    lengths = [7] * 40
    assert training_order(lengths, again, steps=4, workers=1) != training_order(lengths, training, steps=4, workers=1)


def test_the_best_trials_and_the_best_dpo_are_trained_again_under_seeds_that_no_trial_had(searched):
    prepared, rows = searched
    _, study = confirming(prepared, rows)
    specs: list[TrialSpec] = []
    trained = run_all(study, lambda spec: specs.append(spec) or 0.5)  # type: ignore[func-returns-value]
    assert [(spec.params[FINALIST], spec.training.seed) for spec in specs] == [
        *((1, 8), (3, 8)),  # trial 1 is the baseline, and the second best as well
        *((1, 9), (3, 9)),
        *((1, 10), (3, 10)),
    ]
    assert [spec.number for spec in specs] == list(range(6)) and len(trained) == 6
    assert {spec.loss.name for spec in specs} == {"dpo", "dlrml"}
    dlrml = [spec for spec in specs if spec.params[FINALIST] == 3]
    assert all(spec.loss == rows[3].spec.loss for spec in dlrml)
    assert all(spec.training == rows[3].spec.training.at({"seed": spec.params[SEED]}) for spec in dlrml)


def test_it_is_outside_the_search(searched):
    prepared, rows = searched
    again, study = confirming(prepared, rows)
    run_all(study, lambda spec: 0.5)
    assert study.config.name == "toy/confirm"
    assert again.place.folder(again.config.name) == prepared.place.folder("toy") / "confirm"
    main = prepared.open_study()
    assert len(main.rows()) == 5 and main.ask() is None
    main.close()
    written = load_config(again.place.folder(again.config.name) / "search.yaml")
    assert written == again.config and written.search.scheduler is None and written.evaluation is None


def test_finalists_are_judged_on_the_test_set_where_there_is_one(searched):
    prepared, rows = searched
    again, _ = confirming(prepared, rows)
    assert (len(prepared.pairs.eval), len(again.pairs.eval)) == (8, 12)
    assert len(again.pairs.train) == len(prepared.pairs.train) and again.steps == prepared.steps
    without = prepared.config.model_copy(update={"dataset": prepared.config.dataset.model_copy(update={"test": None})})
    assert confirm_config(without, prepared.place).dataset.eval == prepared.config.dataset.eval


def test_a_warm_up_is_not_repeated(searched):
    prepared, rows = searched
    training = prepared.config.training.at({"warm_up": {"steps": 2, "learning_rate": 1e-3}})
    warmed = prepared.config.model_copy(update={"training": training})
    again = confirm_config(warmed, prepared.place)
    assert again.model == str(prepared.place.warm_up("toy")) and again.training.warm_up is None
    chosen, _ = finalists(warmed, rows) or pytest.fail("nothing chosen")
    spec = chosen[0].spec.model_copy(update={"training": training})
    assert replace(chosen[0], spec=spec).again(0, 5).training == prepared.config.training.at({"seed": 5})


def test_an_interrupted_confirmation_goes_on_where_it_was(searched):
    prepared, rows = searched
    _, first = confirming(prepared, rows)
    one, under_way = first.ask(), first.ask()
    assert one is not None and under_way is not None
    first.record(0, 4, 0.5)
    first.finish(TrialOutcome(0, State.COMPLETE, "done"), 4)
    first.close()
    _, second = confirming(prepared, rows)
    assert second.interrupted() == [1]
    again = second.reissue(1)
    assert again.model_copy(update={"attempt": 0}) == under_way and again.attempt == 1
    second.record(1, 4, 0.5)
    second.finish(TrialOutcome(1, State.COMPLETE, "done"), 4)
    assert len(run_all(second, lambda spec: 0.5)) == 6


def test_a_trial_whose_driver_died_before_its_proposal_becomes_a_missing_one(searched):
    prepared, rows = searched
    _, first = confirming(prepared, rows)
    first.ask()
    first._study.ask()  # Optuna has given the number out, and nothing else is written
    first.close()
    _, second = confirming(prepared, rows)
    assert second.interrupted() == [0, 1]
    assert (second.reissue(1).params[FINALIST], second.reissue(0).params[FINALIST]) == (3, 1)
    specs = []
    while (spec := second.ask()) is not None:
        specs.append((spec.params[FINALIST], spec.params[SEED]))
    assert specs == [(1, 9), (3, 9), (1, 10), (3, 10)]


def test_more_seeds_and_other_finalists_add_what_is_missing_and_train_nothing_twice(searched):
    prepared, rows = searched
    _, first = confirming(prepared, rows)
    run_all(first, lambda spec: 0.5)
    first.close()
    search = prepared.config.search
    more = search.model_copy(update={"confirm": search.confirm.model_copy(update={"top": 3, "seeds": 4})})
    wider = replace(prepared, config=prepared.config.model_copy(update={"search": more}))
    _, second = confirming(wider, rows)
    added = list(iter(second.ask, None))
    assert [spec.number for spec in added] == list(range(6, 12))
    assert {(spec.params[FINALIST], spec.params[SEED]) for spec in added} == {
        *((4, seed) for seed in (8, 9, 10, 11)),
        *((1, 11), (3, 11)),
    }


def test_without_a_dpo_of_its_own_a_search_is_compared_with_dpo_at_its_default(searched):
    prepared, rows = searched
    others = [row for row in rows if row.spec.loss.name != "dpo"]
    chosen, baseline = finalists(prepared.config, others) or pytest.fail("nothing chosen")
    assert [each.trial for each in chosen] == [3, 4]
    assert baseline.trial == DEFAULT_DPO and baseline.spec.loss.flat() == {"name": "dpo", "beta": 0.1}
    assert baseline.spec.training == prepared.config.training


def test_each_loss_can_be_confirmed_at_its_best(searched):
    prepared, rows = searched
    search = prepared.config.search
    each = search.model_copy(update={"confirm": search.confirm.model_copy(update={"top": 3, "per_loss": 1})})
    chosen, baseline = finalists(prepared.config.model_copy(update={"search": each}), rows) or pytest.fail("none")
    assert ([one.trial for one in chosen], baseline.trial) == ([3, 2], 1)  # without trial 4, the other dLRML


def test_nothing_is_confirmed_without_a_complete_trial_nor_without_the_key(searched):
    prepared, rows = searched
    assert finalists(prepared.config, []) is None
    search = prepared.config.search.model_copy(update={"confirm": None})
    assert finalists(prepared.config.model_copy(update={"search": search}), rows) is None
    again, _ = confirming(prepared, rows)
    assert confirmation_of(again, rows) is None, "a confirmation is not confirmed"


def test_a_finalist_is_better_only_where_the_same_seeds_say_so(searched):
    prepared, rows = searched
    _, study = confirming(prepared, rows)
    dpo = {8: 0.70, 9: 0.60, 10: 0.65}
    gain = {8: 0.10, 9: 0.11, 10: 0.09}
    run_all(study, lambda s: dpo[s.params[SEED]] + (gain[s.params[SEED]] if s.params[FINALIST] == 3 else 0.0))
    study.close()
    told = read_confirmation("toy", prepared.place)
    assert told is not None and (told.baseline, told.data, told.metric) == (1, "dataset.test", "eval_accuracy")
    (one,) = told.finalists
    assert (one.trial, one.loss, one.seeds, one.verdict) == (3, "dlrml_c", 3, "better")
    assert one.mean_difference == pytest.approx(0.1) and one.low < 0.1 < one.high
    # Student's 97.5 % point with two degrees of freedom is 4.3027, and the differences deviate by 0.01.
    assert one.high - 0.1 == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert one.params["learning_rate"] == 1e-3 and one.baseline_mean == pytest.approx(0.65)
    assert told.as_json()["finalists"][0]["verdict"] == "better"
    sentence, caveat = told.sentences()
    assert "over seeds alone" in caveat, "no trial has stored its margins"
    assert sentence.startswith(
        "trial 3 (dlrml_c) against DPO (trial 1) with new seeds: better, eval_accuracy +0.1000 [+0.0"
    )
    assert sentence.endswith("3 of 3 seeds, dataset.test")


def test_a_training_that_diverged_counts_as_the_untrained_reference_and_one_that_failed_not_at_all(searched):
    prepared, rows = searched
    _, study = confirming(prepared, rows)
    ends = {(3, 8): State.DIVERGED, (3, 9): State.FAILED}
    run_all(study, lambda spec: ends.get((spec.params[FINALIST], spec.params[SEED]), 0.9))
    told = compare(prepared.config, rows, study.rows())
    assert told is not None
    (one,) = told.finalists
    assert (one.seeds, one.diverged) == (2, 1)
    assert one.mean == pytest.approx((0.5 + 0.9) / 2) and one.mean_difference == pytest.approx(-0.2)
    assert one.verdict == "cannot tell"


def test_one_that_diverged_counts_as_the_rewards_that_it_began_with(searched):
    prepared, rows = searched
    reward = {"search": prepared.config.search.model_copy(update={"metric": "eval_reward"})}
    config = prepared.config.model_copy(update=reward)
    again, study = confirming(prepared, rows)
    events = EventLog(again.place.folder(again.config.name))
    trained = run_all(study, lambda spec: State.DIVERGED if spec.params[FINALIST] == 3 else 0.9)
    study.close()
    for row in trained:
        events.start(row.spec)
        events.report(Report(row.number, 0, 1, {"eval_reward": 0.25, "eval_length_ratio": 1.0}, evaluated=True))
    told = compare(config, rows, trained, again.place.folder(again.config.name))
    assert told is not None
    (one,) = told.finalists
    assert (one.seeds, one.diverged) == (3, 3)
    assert one.mean == pytest.approx(0.25) and one.mean_difference == pytest.approx(0.25 - 0.9)


def test_where_trials_left_their_margins_the_pairs_are_a_sample_as_well(searched):
    """Five of twelve pairs change sides under every seed, so the seeds agree and the pairs do not."""
    prepared, rows = searched
    again, study = confirming(prepared, rows)
    margins = {1: [1.0] * 6 + [-1.0] * 6, 3: [1.0] * 11 + [-1.0]}
    accuracy = {finalist: sum(m > 0 for m in each) / 12 for finalist, each in margins.items()}
    for row in run_all(study, lambda spec: accuracy[spec.params[FINALIST]]):
        left = again.place.folder(again.config.name) / "trials" / str(row.number) / "margins.json"
        left.parent.mkdir(parents=True)
        left.write_text(json.dumps(margins[row.spec.params[FINALIST]]))
    study.close()
    (one,) = read_confirmation("toy", prepared.place).finalists
    expected = stats.ttest_1samp([0.0] * 6 + [1.0] * 5 + [0.0], 0)
    assert (one.seeds, one.pairs) == (3, 12) and one.mean_difference == pytest.approx(5 / 12)
    assert one.p == pytest.approx(expected.pvalue) and one.verdict == "better"
    (by_seed,) = compare(prepared.config, rows, study.rows()).finalists
    assert by_seed.pairs is None and by_seed.p == 0.25 and by_seed.verdict == "cannot tell"


def test_a_confirmation_that_has_not_started_has_no_verdict(searched):
    prepared, _ = searched
    assert read_confirmation("toy", prepared.place) is None
    with pytest.raises(InputError, match="there is no search 'other'"):
        read_confirmation("other", prepared.place)


def test_the_key_is_legal_in_a_file_and_needs_two_seeds(tmp_path, toy_model):
    path = tmp_path / "space.yaml"
    path.write_text(as_yaml_text(document(tmp_path, toy_model)))
    assert load_config(path).search.confirm.seeds == 3
    with pytest.raises(InputError, match="confirm"):
        load_config(path, ["search.confirm.seeds=1"])
    with pytest.raises(InputError, match="at most 92 characters"):
        load_config(path, name="n" * 93)


def test_report_and_status_have_the_same_means_where_a_training_diverged(searched):
    prepared, rows = searched
    again, study = confirming(prepared, rows)
    values = {(3, 8): State.DIVERGED, (3, 9): 0.9, (3, 10): 0.8, (1, 8): 0.7, (1, 9): State.DIVERGED, (1, 10): 0.6}
    leave_logs(again, run_all(study, lambda spec: values[spec.params[FINALIST], spec.params[SEED]]))
    study.close()
    (told,) = read_confirmation("toy", prepared.place).finalists
    report = arms(read_data("toy", prepared.place), read_data("toy/confirm", prepared.place))
    means = {arm.trial: (arm.objective.value, arm.seeds) for arm in report}
    assert means == {3: (pytest.approx(told.mean), 3), 1: (pytest.approx(told.baseline_mean), 3)}
    assert told.mean == pytest.approx((0.5 + 0.9 + 0.8) / 3) and told.baseline_mean == pytest.approx(0.6)


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_confirmation_opened_by_its_own_file_or_name_is_refused_and_draws_nothing(searched, confirmed):
    prepared, rows = searched
    again, study = confirming(prepared, rows)
    if confirmed:
        run_all(study, lambda spec: 0.5)
    study.close()
    before = read_search("toy/confirm", prepared.place).rows
    own = load_config(again.place.folder(again.config.name) / "search.yaml")
    named = prepared.config.model_copy(update={"name": "toy/confirm"})
    for config in (own, named):
        with pytest.raises(InputError, match=r"confirmation of search 'toy'.*toy/search\.yaml"):
            prepare(config, prepared.place)
    with pytest.raises(InputError, match=r"confirmation of search 'nobody'.*its file"):
        prepare(named.model_copy(update={"name": "nobody/confirm"}), prepared.place)
    assert read_search("toy/confirm", prepared.place).rows == before


def raced(prepared: PreparedSearch, **confirm: Any) -> PreparedSearch:
    """The same search with a race over three finalists."""
    search = prepared.config.search
    own = search.confirm.model_copy(update={"top": 4, "seeds": 3, "adaptive": True, **confirm})
    config = prepared.config.model_copy(update={"search": search.model_copy(update={"confirm": own})})
    (prepared.place.folder(config.name) / "search.yaml").write_text(to_yaml(config))
    return replace(prepared, config=config)


RACE = {
    **{(1, seed): 0.6 + 0.01 * place for place, seed in enumerate((8, 9, 10, 11))},
    **{(3, seed): 0.8 + 0.01 * place + noise for place, (seed, noise) in enumerate(((8, 0), (9, 0.001), (10, 0)))},
    (3, 11): 0.832,
    (4, 8): 0.601,
    (4, 9): 0.609,
    (0, 8): 0.715,
    (0, 9): State.DIVERGED,
}
"""Trial 1 is DPO; 3 is better by 0.2, 4 is as good, and 0, another DPO, diverges where it is not better."""


def raced_value(spec: TrialSpec) -> float | State:
    return RACE[spec.params[FINALIST], spec.params[SEED]]


def test_a_race_trains_a_round_once_the_one_before_has_ended(searched):
    prepared, rows = searched
    again, study = confirming(raced(prepared), rows)
    assert study.num_trials == 16, "as many as there can be"
    first = [study.ask() for _ in range(8)]
    assert [(spec.params[FINALIST], spec.training.seed) for spec in first] == [
        (trial, seed) for seed in (8, 9) for trial in (1, 3, 4, 0)
    ]
    assert study.ask() is None and study.waits()
    for spec in reversed(first):
        end_as(study, spec, raced_value(spec))
    assert not study.waits()
    later = run_all(study, raced_value)[8:]
    assert [(row.spec.params[FINALIST], row.spec.params[SEED]) for row in later] == [(1, 10), (3, 10)]
    assert study.num_trials == 10 and study.ask() is None and not study.waits()
    study.close()
    told = read_confirmation("toy", prepared.place)
    assert (told.runs, told.most_runs, told.seeds) == (10, 16, 4)
    assert [(one.trial, one.verdict, one.end, one.rounds, one.seeds) for one in told.finalists] == [
        (3, "better", "settled", 3, 3),
        (4, "cannot tell", "dropped", 2, 2),
        (0, "cannot tell", "dropped", 2, 2),
    ]
    assert [one.diverged for one in told.finalists] == [0, 0, 1]
    assert told.finalists[2].mean == pytest.approx((0.715 + 0.5) / 2), "the untrained reference"
    sentences = list(told.sentences())
    assert "better, eval_accuracy +0.2003 [+0." in sentences[0] and "(race, Holm), 3 of at most 4 seeds" in sentences[0]
    assert "settled after 3 seeds" in sentences[0] and "dropped after 2 seeds" in sentences[1]
    assert "10 of at most 16" in sentences[-2] and "repeated confidence intervals" in sentences[-2]
    assert "over seeds alone" in sentences[-1]
    assert told.as_json()["finalists"][0]["end"] == "settled" and told.as_json()["runs"] == 10
    numbers, words = again.conclusion(read_search("toy/confirm", prepared.place).rows)
    assert numbers == {"runs": 10, "most_runs": 16}
    assert words["verdict_of_trial_3"] == "better, settled after 3 seeds"


def test_a_race_that_is_killed_again_and_again_trains_and_says_the_same(searched):
    """Its driver dies after every trial, and now and then before one is recorded, with two under way at a time."""
    prepared, rows = searched
    again, study = confirming(raced(prepared), rows)
    study.close()
    trained, drivers = [], 0
    while True:
        study = again.open_study()
        drivers += 1
        under_way = [study.reissue(number) for number in study.interrupted()]
        under_way += [spec for spec in (study.ask() for _ in range(2 - len(under_way))) if spec is not None]
        if not under_way:
            assert not study.waits()
            study.close()
            break
        if drivers % 3 == 0 and study._when() == "now":
            study._study.ask()  # the number is given out, and the driver dies
        spec = under_way[-1]
        end_as(study, spec, raced_value(spec))
        trained.append((spec.params[FINALIST], spec.params[SEED]))
        study.close()
    assert drivers > 10
    told = read_confirmation("toy", prepared.place)
    assert (told.runs, len(trained)) == (10, 10)
    assert set(trained) == {*((trial, seed) for seed in (8, 9) for trial in (1, 3, 4, 0)), (1, 10), (3, 10)}
    assert [(one.trial, one.verdict, one.rounds) for one in told.finalists] == [
        (3, "better", 3),
        (4, "cannot tell", 2),
        (0, "cannot tell", 2),
    ]


def test_a_race_under_way_says_what_is_open(searched):
    prepared, rows = searched
    _, study = confirming(raced(prepared), rows)
    for spec in [study.ask() for _ in range(3)]:
        end_as(study, spec, raced_value(spec))
    study.close()
    told = read_confirmation("toy", prepared.place)
    assert (told.runs, {one.end for one in told.finalists}, {one.rounds for one in told.finalists}) == (
        3,
        {"open"},
        {0},
    )
    assert all(one.verdict == "cannot tell" and one.p == 1 and one.low is None for one in told.finalists)
    assert all(sentence.endswith("no result, open after 0 seeds") for sentence in list(told.sentences())[:-1])
    page = write_report("toy", prepared.place).page.read_text(encoding="utf-8")
    assert "Trained again with" not in page and "<strong>no result</strong>" in page


def test_fewer_finalists_than_were_trained_are_no_fewer_comparisons(searched):
    prepared, rows = searched
    _, study = confirming(raced(prepared, adaptive=False, seeds=4), rows)
    noise = {8: 0.01, 9: 0.02, 10: 0.0, 11: 0.02}
    run_all(study, lambda s: 0.6 + noise[s.params[SEED]] * (s.params[FINALIST] == 3) + 0.001 * s.params[SEED])
    study.close()
    (alone,) = compare(raced(prepared, top=1, adaptive=False, seeds=4).config, rows, study_rows(prepared)).finalists
    by_hand = stats.ttest_1samp([*noise.values()], 0).pvalue
    assert alone.p == pytest.approx(2 * by_hand), "beside trial 4, which top: 4 has trained; 0 is another DPO"
    # Told with a power of 80 % is what lies beyond the interval of half of the level.
    reach = stats.t.ppf(1 - 0.05 / 2 / 2, 3) * stats.sem([*noise.values()])
    assert alone.reached == pytest.approx(reach + stats.norm.ppf(0.8) * stats.sem([*noise.values()]))


def study_rows(prepared: PreparedSearch) -> list[TrialRow]:
    return read_search("toy/confirm", prepared.place).rows


def test_a_race_with_fewer_finalists_holds_its_error_over_those_of_before(searched):
    prepared, rows = searched
    _, study = confirming(raced(prepared), rows)
    run_all(study, raced_value)
    study.close()
    (before, *_) = read_confirmation("toy", prepared.place).finalists
    (alone,) = compare(raced(prepared, top=1).config, rows, study_rows(prepared)).finalists
    assert (alone.trial, alone.p) == (before.trial, pytest.approx(before.p * 2 / 3)), "0 is another DPO"


def test_it_is_said_how_many_new_trainings_break_a_constraint(searched):
    prepared, rows = searched
    again, study = confirming(prepared, rows)
    trained = run_all(study, lambda spec: 0.9 if spec.params[FINALIST] == 3 else 0.6)
    events = EventLog(again.place.folder(again.config.name))
    for row in trained:
        events.start(row.spec)
        kl = 6.0 if (row.spec.params[FINALIST], row.spec.params[SEED]) in {(3, 8), (3, 10), (1, 9)} else 1.0
        events.report(Report(row.number, 2, 1, {"eval_kl": 9.0}, evaluated=True))
        events.report(Report(row.number, 4, 1, {"eval_accuracy": row.value, "eval_kl": kl}, evaluated=True))
    study.close()
    document = prepared.config.model_dump(mode="json")
    document["search"]["constraints"] = {"eval_kl": {"max": 5.0}, "eval_margin": {"min": 1.0}}  # one is not known
    bounded = parse_config(document, source="test")
    told = compare(bounded, rows, trained, again.place.folder(again.config.name))
    assert told is not None
    assert (told.finalists[0].infeasible, told.infeasible) == (2, 1)
    sentences = [*told.sentences()]
    assert "2 infeasible" in sentences[0] and "the baseline breaks search.constraints under 1 of" in sentences[-1]
    (prepared.place.folder("toy") / "search.yaml").write_text(to_yaml(bounded))
    page = write_report("toy", prepared.place).page.read_text(encoding="utf-8")
    assert "infeasible</th>" in page and "The baseline breaks search.constraints" in page


def test_where_dpo_alone_is_complete_nothing_is_confirmed(searched):
    prepared, rows = searched
    assert confirmation_of(prepared, [row for row in rows if row.number == 1]) is None
    assert confirmation_of(prepared, rows) is not None


def test_a_confirmation_that_began_without_a_race_goes_on_without_one(searched):
    prepared, rows = searched
    _, first = confirming(prepared, rows)
    run_all(first, lambda spec: 0.9 if spec.params[FINALIST] == 3 and spec.params[SEED] < 10 else 0.5)
    first.close()
    again, second = confirming(raced(prepared, top=2, seeds=4), rows)
    assert any("began without a race" in note for note in again.notes)
    assert [spec.params[SEED] for spec in iter(second.ask, None)] == [11, 11]
    second.close()
    told = read_confirmation("toy", prepared.place)
    assert (told.runs, told.seeds, told.finalists[0].end) == (None, 4, None)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"adaptive": False}, r"search\.confirm\.adaptive.*begun as a race"),
        ({"seeds": 5}, r"begun with 3 seeds.*seeds=5"),
    ],
)
def test_a_race_that_has_begun_keeps_its_plan(searched, change, refusal):
    prepared, rows = searched
    search = raced(prepared)
    _, study = confirming(search, rows)
    other = raced(search, **change)
    prepare(other.config, other.place)  # nothing has been trained yet
    study.ask()
    study.close()
    with pytest.raises(InputError, match=refusal):
        prepare(other.config, other.place)
    prepare(raced(search, top=2).config, search.place)
    assert read_confirmation("toy", prepared.place).seeds == 4, "as it was planned, whatever the file says now"


def test_more_finalists_join_a_race(searched):
    prepared, rows = searched
    _, first = confirming(raced(prepared, top=2), rows)
    assert len(run_all(first, raced_value)) == 6
    first.close()
    _, second = confirming(raced(prepared), rows)
    added = run_all(second, raced_value)[6:]
    second.close()
    assert {(row.spec.params[FINALIST], row.spec.params[SEED]) for row in added} == {(4, 8), (4, 9), (0, 8), (0, 9)}
    assert [one.end for one in read_confirmation("toy", prepared.place).finalists] == ["settled", "dropped", "dropped"]


def test_the_report_of_a_race_says_when_each_was_decided_and_has_no_interval_of_a_mean(searched):
    prepared, rows = searched
    again, study = confirming(raced(prepared), rows)
    leave_logs(again, run_all(study, raced_value))
    study.close()
    files = write_report("toy", prepared.place)
    page, numbers = files.page.read_text(encoding="utf-8"), json.loads(files.numbers.read_text(encoding="utf-8"))
    assert "Runs of the race: 10 of at most 16" in page and "<td>settled after 3 seeds</td>" in page
    assert "Trained again with 3 new seeds it is better than the baseline" in page
    assert numbers["race"] == {"runs": 10, "most_runs": 16}
    assert [one["end"] for one in numbers["confirmed"]] == ["settled", "dropped", "dropped"]
    assert {arm["objective"]["low"] for arm in numbers["confirming"]} == {None}
