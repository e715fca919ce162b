import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from rich.console import Console

from tune_dlrml.config import EvaluationConfig, ResourcesConfig, SearchConfig
from tune_dlrml.doctor.cost import (
    Span,
    Taking,
    draw_values,
    estimate_cost,
    makespan,
    number_of_trials,
    promoted,
    relative_batch_sizes,
    rungs_passed,
    taking,
)
from tune_dlrml.doctor.measure import notes
from tune_dlrml.records import State
from tune_dlrml.search.usage import sum_up
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.training.measure import Measurement
from tune_dlrml.views.search import cost_lines, cost_table, usage_line

Config = Callable[..., SearchConfig]
Open = Callable[..., SearchStudy]
MEASURED = Measurement(
    device="cpu",
    threads=1,
    load_s=7.0,
    reference_s_per_token=0.01,
    held_out_reference_tokens=100,
    reference_tokens_per_pair=5.0,
    train_pairs=20,
    step_s=(2.0,),
    tokens_per_step=30.0,
    evaluation_s=6.0,
    checkpoint_s=1.0,
    trial_s=0.5,
    checkpoint_bytes=1000,
    memory_bytes=10**6,
    gpu_memory_bytes=0,
    longest_share=1.0,
    matrix_rates={"float32": 2e11, "bfloat16": 3e11},
)


def by_the_pruner(values: list[list[float]], factor: int) -> list[int]:
    """Rungs that each trial passes in a real study with Optuna's pruner, one trial after another."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    ends = []
    for own in values:
        trial, passed = study.ask(), 0
        for rung, value in enumerate(own):
            trial.report(value, factor**rung)
            if trial.should_prune():
                break
            passed += 1
        study.tell(trial, own[-1])
        ends.append(passed)
    return ends


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_simulated_trials_pass_the_rungs_that_optunas_pruner_lets_them_pass(factor: int) -> None:
    rng = random.Random(factor)
    for _ in range(20):
        tied = [[rng.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(3)] for _ in range(15)]
        for values in (tied, draw_values(15, 3, rng)):
            assert rungs_passed(values, factor) == by_the_pruner(values, factor)


def test_as_many_trials_pass_the_first_rung_as_ranks_that_are_all_alike_likely_let_pass() -> None:
    # The n-th trial's rank among the first n is uniform, and n // 4 of them pass, or 1.
    expected = 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6 + 1 / 7 + 2 / 8
    rng = random.Random(0)
    passed = [sum(rungs_passed(draw_values(8, 1, rng), 4)) for _ in range(4000)]
    assert sum(passed) / len(passed) == pytest.approx(expected, abs=0.08)


def test_a_trial_is_evaluated_where_it_is_stopped_and_saved_behind_the_rungs_that_it_passes() -> None:
    assert taking(0, (4, 8), 16, 5) == Taking(steps=4, evaluations=1, checkpoints=0)
    assert taking(1, (4, 8), 16, 5) == Taking(steps=8, evaluations=2, checkpoints=2)  # at 4 and 5
    assert taking(2, (4, 8), 16, 5) == Taking(steps=16, evaluations=3, checkpoints=6)  # at 4, 5, 8, 10, 15 and 16
    assert taking(0, (), 16, 8) == Taking(steps=16, evaluations=1, checkpoints=2)


def test_where_trials_are_paused_a_trial_leaves_a_checkpoint_at_its_last_rung() -> None:
    assert taking(0, (4, 8), 16, 5, pauses=True) == Taking(steps=4, evaluations=1, checkpoints=1)
    assert taking(1, (4, 8), 16, 5, pauses=True) == Taking(steps=8, evaluations=2, checkpoints=3)  # at 4, 5 and 8
    assert taking(2, (4, 8), 16, 5, pauses=True) == taking(2, (4, 8), 16, 5)


def test_simulated_trials_are_paused_and_promoted_as_the_paper_says() -> None:
    # One rung and one in two: of the first two the better is promoted, of four the two best.
    found = promoted([[0.1], [0.4], [0.3], [0.2]], 2, wanted=1, baseline=False)
    assert found.ends == [(0, 1), (1, 1), (1, 2), (0, 1)]  # 1 goes on at once, 2 when 3 has come
    assert found.paused == 3
    # One in four of three is none, so at the end the best goes on for the search to have a complete trial.
    assert promoted([[0.1], [0.4], [0.3]], 4, wanted=1, baseline=False).ends == [(0, 1), (1, 2), (0, 1)]
    assert promoted([[0.1], [0.4], [0.3]], 4, wanted=2, baseline=False).ends == [(0, 1), (1, 2), (1, 2)]
    # The first as a baseline is complete at once, and is not what the search is for.
    assert promoted([[0.1], [0.4], [0.3]], 4, wanted=1, baseline=True).ends == [(1, 1), (1, 2), (0, 1)]


def test_of_many_paused_trials_one_in_factor_passes_each_rung_and_some_that_were_good_only_at_first() -> None:
    passed = [end for end, _ in promoted(draw_values(64, 3, random.Random(3)), 2, wanted=1, baseline=False).ends]
    for rung, share in enumerate((32, 16, 8)):
        assert share <= sum(end > rung for end in passed) <= share + 8


def test_checkpoints_of_paused_trials_are_on_the_disk_together(config_with: Config) -> None:
    settings = {"grace_period": 5, "reduction_factor": 4}
    plain, pausing = (
        estimate_cost(MEASURED, config_with(num_trials=24, scheduler=settings | {"type": of}), 40)
        for of in ("stopping", "promotion")
    )
    assert pausing.disk_bytes > plain.disk_bytes + 10 * MEASURED.checkpoint_bytes


def test_a_trial_takes_the_first_slot_that_is_free() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1, 3], 2) == 4
    assert makespan([2, 3], 5) == 3


@pytest.mark.parametrize(
    "search",
    [
        {"num_trials": 7},
        {"num_trials": None, "sampler": "grid"},
        {"num_trials": None, "sampler": "grid", "baseline": None},
        {"num_trials": 3, "sampler": "grid"},
    ],
)
def test_a_bill_has_as_many_trials_as_the_study(search: dict[str, Any], config_with: Config, open_study: Open) -> None:
    losses = [{"name": "dpo", "beta": {"choice": [0.1, 0.2]}}, {"name": "discopop", "beta": 0.1}]
    config = config_with(losses, **search)
    assert number_of_trials(config) == open_study(config, "memory").num_trials


def test_a_searched_batch_size_counts_with_its_mean(config_with: Config) -> None:
    assert relative_batch_sizes(config_with()) == (1.0, 1.0)
    document = config_with().model_dump(mode="json")
    document["space"]["training"] = {"per_device_train_batch_size": {"choice": [2, 4]}}
    document["training"] |= {"per_device_train_batch_size": 4}
    assert relative_batch_sizes(SearchConfig.model_validate(document)) == (0.75, 1.0)


def with_(config: SearchConfig, **sections: dict[str, Any]) -> SearchConfig:
    document = config.model_dump(mode="json")
    for name, changes in sections.items():
        document[name] |= changes
    return SearchConfig.model_validate(document)


def test_without_a_scheduler_a_bill_is_plain_arithmetic(config_with: Config) -> None:
    config = with_(
        config_with(num_trials=3, scheduler=None),
        resources={"workers": 2, "cpus_per_worker": 4, "concurrent_trials": 2},
        training={"per_device_train_batch_size": 1},
        checkpoint={"save_steps": 5, "save_total_limit": 2},
    )
    cost = estimate_cost(MEASURED, config, 6)
    # A trial: 0.5 s, 6 steps of 2 s, half of an evaluation on each of two workers, checkpoints at 5 and 6.
    trial_s = 0.5 + 12 + 3 + 2
    # 6 steps of 2 x 1 pairs see 12 of the 20; two workers share the reference pass.
    reference_s = (100 + 12 * 5) * 0.01 / 2
    assert cost.optimizer_steps == Span(18, 18, 18)
    assert (cost.evaluations.mean, cost.checkpoints.mean, cost.most_optimizer_steps) == (3, 6, 18)
    assert (cost.training_s.mean, cost.evaluations_s.mean, cost.checkpoints_s.mean) == (3 * 12, 3 * 3, 3 * 2)
    assert cost.trained_tokens.mean == 18 * 30 * 2
    assert (cost.reference_tokens, cost.reference_s) == (160, pytest.approx(reference_s))
    assert cost.wall_s.mean == pytest.approx(7 + reference_s + 2 * trial_s) == pytest.approx(cost.most_wall_s)
    assert cost.cpu_hours.mean == pytest.approx(2 * 4 * (3 * trial_s + 2 * 7 + reference_s) / 3600)
    assert cost.gpu_hours.mean == 0
    assert cost.memory_bytes == 4 * 10**6
    assert cost.disk_bytes == 1000 * (3 + 2 * 3)


def test_successive_halving_makes_a_bill_smaller_and_the_same_bill_each_time(config_with: Config) -> None:
    config = config_with(num_trials=24, scheduler={"grace_period": 5, "reduction_factor": 2})
    measured = replace(MEASURED, step_s=(1.8, 2.0, 2.2))
    cost = estimate_cost(measured, config, 40)
    assert cost == estimate_cost(measured, config, 40)
    assert cost.rungs == (5, 10, 20)
    assert 24 * 5 <= cost.optimizer_steps.low < cost.optimizer_steps.mean < cost.optimizer_steps.high < 24 * 40
    assert cost.wall_s.low < cost.wall_s.mean < cost.wall_s.high < cost.most_wall_s
    assert cost.as_json()["step_s"] == {"median": 2.0, "low": 1.8, "high": 2.2}


def test_a_promoted_trial_counts_again_against_the_trials_of_a_group(config_with: Config) -> None:
    settings = {"grace_period": 5, "reduction_factor": 2}
    config = config_with(num_trials=24, scheduler=settings)
    recycled = with_(config, resources={"trials_per_group": 1})
    kept, renewed = (estimate_cost(MEASURED, each, 40) for each in (config, recycled))
    loads = (renewed.wall_s.mean - kept.wall_s.mean) / MEASURED.load_s
    assert loads > 24  # 23 behind the first group, and for each promotion that is not at once
    plain = with_(
        config_with(num_trials=24, scheduler=settings | {"type": "stopping"}), resources={"trials_per_group": 1}
    )
    assert renewed.most_wall_s == estimate_cost(MEASURED, plain, 40).most_wall_s  # no trial is issued again there


def test_a_group_that_is_recycled_loads_again(config_with: Config) -> None:
    once = estimate_cost(MEASURED, config_with(num_trials=4, scheduler=None), 6)
    config = with_(config_with(num_trials=4, scheduler=None), resources={"trials_per_group": 2})
    assert estimate_cost(MEASURED, config, 6).wall_s.mean == pytest.approx(once.wall_s.mean + 7)


def test_confirming_trials_have_a_cost_of_their_own(config_with: Config) -> None:
    plain = config_with(num_trials=4, scheduler={"type": "stopping", "grace_period": 2, "reduction_factor": 2})
    config = with_(plain, search={"confirm": {"top": 2, "seeds": 3, "adaptive": False}})
    cost = estimate_cost(MEASURED, config, 6)
    assert replace(cost, confirmation=None) == estimate_cost(MEASURED, plain, 6)
    assert "race" not in " ".join(cost_lines(cost))
    after = cost.confirmation
    assert after is not None
    assert (after.trials, after.rungs, after.optimizer_steps) == (9, (), Span(54, 54, 54))
    # 7 s of loading, the reference pass, and 9 x (0.5 + 12 + 6 + 1) s.
    assert after.wall_s.mean == pytest.approx(7 + after.reference_s + 9 * 19.5)
    (told,) = (line for line in cost_lines(cost) if "search.confirm" in line)
    assert "up to 9 trials of 6 steps, about 3:0" in told
    assert cost.as_json()["confirmation"]["trials"] == 9


def test_a_race_is_estimated_at_its_most_and_said_to_be(config_with: Config) -> None:
    plain = config_with(num_trials=4)
    race = estimate_cost(MEASURED, with_(plain, search={"confirm": {"top": 2, "seeds": 5}}), 6)
    assert race.confirmation is not None and race.confirmation.trials == 3 * 6  # a fifth more than five seeds
    (told,) = (line for line in cost_lines(race) if "search.confirm" in line)
    assert "up to 18 trials of 6 steps" in told and told.endswith(", if its race comes to its cap with all finalists")
    groups = with_(plain, search={"confirm": {"top": 2, "seeds": 5}}, resources={"concurrent_trials": 4})
    fixed = with_(groups, search={"confirm": {"top": 2, "seeds": 6, "adaptive": False}})
    raced, at_once = (estimate_cost(MEASURED, each, 6).confirmation for each in (groups, fixed))
    assert raced is not None and at_once is not None and raced.trials == at_once.trials == 18
    # On four groups: two rounds of three trials at once in two waves, then four more of one; else 18 trials in five.
    assert raced.wall_s.mean - at_once.wall_s.mean == pytest.approx((2 + 4 - 5) * 19.5)


def test_an_estimate_names_what_it_does_not_include(config_with: Config) -> None:
    config = with_(
        config_with(num_trials=4),
        resources={"workers": 2},
        search={"time_budget_s": 1e-3, "confirm": {"top": 1, "seeds": 2}},
        training={"warm_up": {"steps": 7, "learning_rate": 1e-4}},
        dataset={"test": "test.jsonl"},
    )
    evaluation = EvaluationConfig(when="final_rung", judges=["openai:gpt-4o"])
    cost = estimate_cost(replace(MEASURED, longest_share=0.5), config, 40)
    told = " ".join(notes(cost, config.model_copy(update={"evaluation": evaluation})))
    for words in (
        "Ray's start",
        "without ties",
        "exchange of gradients",
        "judges",
        "search.time_budget_s",
        "50% of the tokens",
        "warm-up of 7 steps",
        "dataset.test",
    ):
        assert words in told
    plain = config_with(num_trials=4, scheduler=None)
    assert len(notes(estimate_cost(MEASURED, plain, 40), plain)) == 1


@pytest.mark.parametrize(
    ("bf16", "rate", "told"),
    [(True, 1e11, "2.0 times slower"), (True, 3e11, None), (False, 2.5e11, None), (False, 8e11, "4.0 times faster")],
)
def test_a_slow_precision_of_this_machine_is_reported(
    config_with: Config, bf16: bool, rate: float, told: str | None
) -> None:
    config = with_(config_with(num_trials=4, scheduler=None), training={"bf16": bf16})
    measured = replace(MEASURED, matrix_rates={"float32": 2e11, "bfloat16": rate})
    found = [note for note in notes(estimate_cost(measured, config, 40), config) if "bfloat16" in note]
    assert [told in note for note in found] == ([] if told is None else [True])


def row(number: int, state: State, steps: int, **attrs: Any) -> TrialRow:
    return TrialRow(number, state, "", {}, None, None, steps, 0, attrs)


def start(at_s: float) -> dict[str, Any]:
    return {"kind": "start", "timestamp_ms": int(at_s * 1000)}


def report(at_s: float, step: int, *, evaluated: bool = False, **metrics: float) -> dict[str, Any]:
    own = {"kind": "report", "timestamp_ms": int(at_s * 1000), "step": step, "evaluated": evaluated}
    return own | {"metrics": metrics}


def pause(at_s: float) -> dict[str, Any]:
    return {"kind": "pause", "timestamp_ms": int(at_s * 1000)}


def end(at_s: float) -> dict[str, Any]:
    return {"kind": "end", "timestamp_ms": int(at_s * 1000)}


COMPLETE = [
    start(0),
    report(10, 0, evaluated=True, reference_tokens=700, reference_tokens_saved=300),
    report(14, 4, tokens=40, steps_per_second=1.0),
    report(24, 8, tokens=80, steps_per_second=1.0, evaluated=True),
    end(30),
]
SECONDS = {"evaluation": 5.0, "saving": 2.0, "waiting": 1.0, "answering": 3.0, "to_first_step": 11.0}
PRUNED = [
    start(30),
    report(31, 0, evaluated=True),
    report(39, 4, tokens=40, steps_per_second=0.8, evaluated=True),  # 5 s of training, 3 s of evaluation
    report(43, 6, tokens=60, steps_per_second=1.0),  # 2 s of training behind 2 s of saving
    report(48, 8, tokens=80, steps_per_second=1.0, evaluated=True),  # 2 s of training, 3 s of evaluation
    end(50),
]


def test_the_recorded_times_of_a_trial_are_used() -> None:
    usage = sum_up([row(0, State.COMPLETE, 8, seconds=SECONDS)], {0: COMPLETE}.__getitem__, ResourcesConfig())
    # 30 s: 10 until the first report, 8 of training, 11 in its own books, and 1 that is in none.
    expected = {"starting": 10, "training": 8, "evaluation": 5, "saving": 2, "waiting": 1, "answering": 3, "other": 1}
    assert usage.trial_s == pytest.approx(30)
    assert usage.shares == pytest.approx({part: seconds / 30 for part, seconds in expected.items()})
    assert (usage.optimizer_steps, usage.trained_tokens) == (8, 80)
    assert (usage.reference_tokens, usage.reference_tokens_saved) == (700, 300)


def test_the_usage_of_a_pruned_trial_comes_from_the_times_of_its_reports() -> None:
    usage = sum_up([row(1, State.PRUNED, 8)], {1: PRUNED}.__getitem__, ResourcesConfig())
    expected = {"starting": 1, "training": 9, "evaluation": 6, "saving": 2, "waiting": 2, "answering": 0, "other": 0}
    assert usage.trial_s == pytest.approx(20)
    assert usage.shares == pytest.approx({part: seconds / 20 for part, seconds in expected.items()})
    assert usage.reference_tokens is None


def test_resource_usage_is_shown_in_one_line() -> None:
    usage = sum_up([row(1, State.PRUNED, 8)], {1: PRUNED}.__getitem__, ResourcesConfig(cpus_per_worker=18))
    assert usage_line(usage) == (
        "resource usage: 20 s of trials, 0.1 CPU-hours, 8 optimizer steps, 80 tokens trained; "
        "45% training, 30% evaluation, 10% saving, 10% waiting, 5% starting"
    )


def test_a_cost_is_shown_item_by_item_and_in_total(config_with: Config) -> None:
    cost = estimate_cost(MEASURED, config_with(num_trials=3, scheduler=None), 6)
    console = Console(file=io.StringIO(), width=120)
    console.print(cost_table(cost))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for item in ("loading", "reference pass", "optimizer steps", "held-out evaluations", "checkpoints", "1 kB"):
        assert item in shown
    # 7 s of loading, 2 s of 200 tokens through the reference, and 3 x (0.5 + 12 + 6 + 1) s.
    assert "about 1:08 min" in " ".join(cost_lines(cost))


def test_trials_add_up_to_hours_of_all_that_their_groups_hold() -> None:
    rows = [row(0, State.COMPLETE, 8, seconds=SECONDS), row(1, State.PRUNED, 8)]
    resources = ResourcesConfig(workers=2, cpus_per_worker=3, gpus_per_worker=0.5, concurrent_trials=2)
    usage = sum_up(rows, {0: COMPLETE, 1: PRUNED}.__getitem__, resources)
    assert usage.cpu_hours == pytest.approx(2 * 3 * 50 / 3600)
    assert usage.gpu_hours == pytest.approx(2 * 0.5 * 50 / 3600)
    assert (usage.optimizer_steps, usage.trained_tokens) == (16, 160)
    assert sum(usage.shares.values()) == pytest.approx(1)


def test_the_time_between_two_attempts_counts_for_no_trial() -> None:
    resumed = [*PRUNED[:3], start(1000), report(1004, 6, tokens=60, steps_per_second=1.0)]
    usage = sum_up([row(0, State.RUNNING, 4)], {0: resumed}.__getitem__, ResourcesConfig())
    assert usage.trial_s == pytest.approx(9 + 4)
    assert (usage.optimizer_steps, usage.trained_tokens) == (6, 60)


def test_the_checkpoint_of_a_pause_is_counted_and_the_time_of_the_pause_is_not() -> None:
    paused = [*PRUNED[:3], pause(42), start(1000), report(1004, 6, tokens=60, steps_per_second=1.0)]
    usage = sum_up([row(0, State.RUNNING, 6)], {0: paused}.__getitem__, ResourcesConfig())
    assert usage.trial_s == pytest.approx(9 + 3 + 4)
    assert usage.shares["saving"] == pytest.approx(3 / 16)


def test_an_evaluation_in_the_first_report_of_a_promoted_trial_is_counted_once() -> None:
    log = [start(0), report(1, 0), pause(1), start(10), report(20, 8, tokens=80, steps_per_second=2.0, evaluated=True)]
    books = {"evaluation": 5.0, "saving": 0.0, "waiting": 0.0}
    usage = sum_up([row(0, State.COMPLETE, 8, seconds=books)], {0: [*log, end(20)]}.__getitem__, ResourcesConfig())
    assert usage.trial_s == pytest.approx(1 + 10)  # of which 4 s are training and 5 s the evaluation
    assert usage.shares["starting"] == pytest.approx(2 / 11)


def test_the_checkpoint_of_a_pause_stays_saving_when_the_trial_is_complete() -> None:
    log = [start(0), report(1, 0), report(5, 4, tokens=40, steps_per_second=1.0), pause(8), start(10)]
    log += [report(16, 8, tokens=80, steps_per_second=1.0), end(17)]
    books = {"evaluation": 0.0, "saving": 1.0, "waiting": 0.0}
    usage = sum_up([row(0, State.COMPLETE, 8, seconds=books)], {0: log}.__getitem__, ResourcesConfig())
    assert usage.trial_s == pytest.approx(8 + 7)
    assert usage.shares["saving"] == pytest.approx(4 / 15)


def test_clocks_that_disagree_make_no_time_negative() -> None:
    odd = [start(100), report(90, 0, evaluated=True), report(101, 2, steps_per_second=4.0), end(99)]
    usage = sum_up([row(0, State.PRUNED, 2)], {0: odd}.__getitem__, ResourcesConfig())
    assert usage.trial_s == pytest.approx(1)
    assert min(usage.shares.values()) >= 0


def test_a_search_without_a_report_has_no_usage_yet() -> None:
    usage = sum_up([row(0, State.RUNNING, 0)], {0: [start(5)]}.__getitem__, ResourcesConfig())
    assert (usage.trial_s, usage.shares, usage.optimizer_steps) == (0, {}, 0)
