import json

import pytest
from benchmarks.results import Row, Spread, header, in_words, interleaved, latest, merge, plot, record


def row(name, **numbers):
    return Row.judged(name, **({"ours": 2.0, "other": 20.0, "goal": 8.0, "unit": "s"} | numbers))


def test_where_more_is_better_the_ratio_is_the_other_side_by_ours():
    judged = row("sweep")
    assert (judged.ratio, judged.met) == (10.0, True)
    assert not row("sweep", other=15.9).met  # 7.95
    assert row("sweep", other=16.0).met  # the goal itself meets it


def test_where_less_is_better_the_ratio_is_ours_by_the_other_side():
    judged = row("limit", ours=12.0, other=10.0, goal=1.25, better="lower")
    assert (judged.ratio, judged.met) == (1.2, True)
    assert not row("limit", ours=13.0, other=10.0, goal=1.25, better="lower").met


def test_a_ratio_that_is_given_is_taken_as_it_is():
    assert row("shared_prompt_3", ratio=0.9, goal=0.85).met


def test_a_row_is_written_with_the_keys_that_readers_rely_on(tmp_path):
    record("sweep", [row("sweep")], {}, measured_on=header(dtype="float32"), folder=tmp_path)
    (document,) = json.loads((tmp_path / "latest.json").read_text())
    assert set(document) == {"name", "ours", "other", "ratio", "goal", "better", "met", "unit"}
    assert document["better"] in ("higher", "lower")


@pytest.mark.parametrize("numbers", [{"ours": float("nan")}, {"other": float("inf")}, {"ours": 0.0}])
def test_a_row_without_finite_numbers_is_refused(numbers):
    with pytest.raises(ValueError, match="must be finite"):
        row("sweep", **numbers)


def test_a_figure_says_how_many_times_better_than_its_goal_it_is():
    assert row("sweep").times_goal == pytest.approx(10 / 8)
    lower = row("limit", ours=5.0, other=10.0, goal=1.25, better="lower")
    assert lower.times_goal == pytest.approx(1.25 / 0.5)
    assert row("equal", ours=0.0, other=1.0, goal=1e-4, better="lower").times_goal == float("inf")


def test_a_rerun_replaces_its_own_rows_in_their_places_and_no_others():
    old = [row("sweep"), row("limit"), row("handover")]
    new = [row("limit", ours=4.0), row("noop_rate")]
    merged = merge(old, new)
    assert [one.name for one in merged] == ["sweep", "limit", "handover", "noop_rate"]
    assert [one.ours for one in merged] == [2.0, 4.0, 2.0, 2.0]


def test_results_outlast_each_other_and_raw_repeats_stay_readable(tmp_path):
    measured_on = header(dtype="float32", threads=2)
    assert latest(tmp_path) == []
    record("sweep", [row("sweep")], {"ours": [2.0, 2.1]}, measured_on=measured_on, folder=tmp_path)
    record("handover", [row("handover")], {"ours": [0.3]}, measured_on=measured_on, folder=tmp_path)
    assert latest(tmp_path) == [row("sweep"), row("handover")]
    raw = json.loads((tmp_path / "sweep.json").read_text())
    assert raw["raw"] == {"ours": [2.0, 2.1]}
    assert raw["header"]["versions"].keys() == {"torch", "transformers", "trl", "peft", "ray", "optuna"}
    assert (tmp_path / "latest.png").stat().st_size > 0
    assert not list(tmp_path.glob("*.partial"))


def test_a_header_in_words_names_precision_threads_and_versions():
    words = in_words(header(dtype="bfloat16", threads=7))
    assert "bfloat16, 7 threads" in words
    assert "torch 2." in words


def test_sides_are_measured_in_turn_and_the_order_turns_round():
    order = []
    sides = {side: lambda repeat, side=side: order.append((side, repeat)) or repeat for side in ("ours", "other")}
    assert interleaved(sides, 3) == {"ours": [0, 1, 2], "other": [0, 1, 2]}
    assert order == [("ours", 0), ("other", 0), ("other", 1), ("ours", 1), ("ours", 2), ("other", 2)]


def test_a_spread_is_the_median_with_the_extremes_of_few_and_the_quartiles_of_many():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert "one measurement" in str(Spread.of([1.0]))
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_the_plot_tells_met_from_missed_without_colour_and_names_every_figure():
    rows = [row("met"), row("missed", other=4.0), row("far", other=1e6)]
    (axes,) = plot(rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["met", "missed", "far"]
    markers = [line.get_marker() for line in axes.lines if line.get_marker() != "None"]
    assert markers == ["o", "s", ">"]
