"""What a search says while it runs; its confirmation has the same view, and numbers that begin again."""

import io

from made_search import small_search
from rich.console import Console

from tune_dlrml.records import Report, State
from tune_dlrml.space import SearchSpace, TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.views.search import ProgressView


def spec(number: int) -> TrialSpec:
    found = SearchSpace(small_search()).baseline_spec(number)
    assert found is not None
    return found


def view() -> tuple[ProgressView, io.StringIO]:
    said = io.StringIO()
    return ProgressView(Console(file=said, width=200), "eval_accuracy"), said


def at_rung(number: int, step: int) -> Report:
    return Report(number, step, 1000, {"eval_accuracy": 0.625, "eval_accuracy_se": 0.06}, evaluated=True, rung=True)


def row(number: int, state: State) -> TrialRow:
    return TrialRow(number, state, "its end", {}, spec(number), 0.625, 10, 0, {})


def test_a_promoted_trial_is_told_from_a_new_one_and_its_rung_is_shown_once() -> None:
    shows, said = view()
    shows.on_begin(2, 0, 40, {})
    for _ in range(2):
        shows.on_start(spec(1))
        shows.on_report(spec(1), at_rung(1, 10))
        shows.on_pause(spec(1), 10)
    text = said.getvalue()
    assert text.count("trial   1 baseline: beta 0.1") == text.count("trial   1 promoted: goes on after step 10") == 1
    assert text.count("trial   1 rung 10/40") == 1


def test_a_driver_that_resumes_a_search_knows_its_paused_trials() -> None:
    shows, said = view()
    shows.on_begin(2, 0, 40, {1: 10})
    shows.on_start(spec(1))
    shows.on_report(spec(1), at_rung(1, 10))
    assert "trial   1 promoted: goes on after step 10" in said.getvalue() and "rung 10/40" not in said.getvalue()


def test_what_is_left_follows_a_source_that_ends_early() -> None:
    shows, said = view()
    shows.on_begin(20, 0, 40, {})
    for number in (0, 1):
        shows.on_start(spec(number))
        shows.on_total(3 - number)
        shows.on_end(spec(number), row(number, State.COMPLETE))
    lines = said.getvalue().splitlines()
    assert "2 to go" in lines[-3] and "to go" not in lines[-1]


def test_the_bars_of_a_search_whose_time_is_up_are_not_those_of_its_confirmation() -> None:
    shows, _ = view()
    shows.on_begin(2, 0, 40, {})
    shows.on_start(spec(1))  # and it is stopped without a word
    shows.on_begin(2, 0, 40, {})
    assert [task.description for task in shows._progress.tasks] == ["trials"]


def test_a_confirmation_knows_nothing_of_the_trials_of_its_search() -> None:
    shows, said = view()
    shows.on_begin(2, 0, 40, {})
    for number in (0, 1):
        shows.on_start(spec(number))
        shows.on_report(spec(number), at_rung(number, 10))
    shows.on_pause(spec(1), 10)
    shows.on_end(spec(0), row(0, State.COMPLETE))
    said.truncate(0)
    shows.on_begin(2, 0, 40, {})
    for number in (0, 1):
        shows.on_start(spec(number))
        shows.on_report(spec(number), at_rung(number, 10))
        shows.on_end(spec(number), row(number, State.COMPLETE))
    text = said.getvalue()
    assert "promoted" not in text and text.count("baseline: beta 0.1") == 2
    assert [f"trial   {number} rung 10/40" in text for number in (0, 1)] == [True, True]
