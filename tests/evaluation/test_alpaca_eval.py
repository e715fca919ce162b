"""AlpacaEval's files and its win rate, and preferences from a judge's log-probs."""

import json
import math
from dataclasses import replace

import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.alpaca_eval.annotations import (
    Annotation,
    Output,
    paired,
    questions,
    read_annotations,
    read_outputs,
    win_rate,
    win_rate_interval,
    write_annotations,
    write_outputs,
)
from tune_dlrml.evaluation.records import Question

ROW = {
    "instruction": "Name a colour.",
    "output_1": "Red.",
    "generator_1": "baseline",
    "dataset": "helpful_base",
    "output_2": "Blue, like the sea.",
    "generator_2": "model",
    "annotator": "judge",
    "preference": 2.0,
}


def annotated(*preferences):
    return [Annotation(f"question {n}", "a", "b", "baseline", "model", "judge", p) for n, p in enumerate(preferences)]


def write_rows(path, *changes):
    path.write_text(json.dumps([ROW | change for change in changes]))
    return path


def test_the_win_rate_is_the_mean_preference_without_nulls():
    found = win_rate(annotated(1.0, 2.0, 1.5, 1.9, None))
    # (0 + 1 + 0.5 + 0.9) / 4 = 0.6; squared deviations 0.36 + 0.16 + 0.01 + 0.09 = 0.62.
    assert found.win_rate == pytest.approx(60)
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.62 / 3 / 4))
    assert (found.wins, found.losses, found.ties, found.scored, found.unscored) == (2, 1, 1, 4, 1)


def test_a_preference_of_0_counts_as_a_tie(tmp_path):
    rows = [{"preference": value} for value in (0, 0.0, 1.5, 2, 1)]
    annotations = read_annotations(write_rows(tmp_path / "annotations.json", *rows))
    assert [row.preference for row in annotations] == [1.5, 1.5, 1.5, 2.0, 1.0]
    assert win_rate(annotations).win_rate == pytest.approx(50)


def test_null_and_nan_are_no_preference(tmp_path):
    rows = [{"preference": value} for value in (None, math.nan, 2.0)]
    annotations = read_annotations(write_rows(tmp_path / "annotations.json", *rows))
    assert [row.preference for row in annotations] == [None, None, 2.0]


def test_nothing_scored_is_no_number():
    found = win_rate(annotated(None, None))
    assert (found.win_rate, found.standard_error) == (None, None)
    assert win_rate_interval(annotated(None, 2.0), seed=0) is None


@pytest.mark.parametrize(("unscored", "missing"), [(0, False), (1, False), (2, True), (10, True)])
def test_a_win_rate_rests_on_at_least_nine_tenths_of_the_comparisons(unscored, missing):
    found = win_rate(annotated(*[2.0] * (10 - unscored), *[None] * unscored))
    assert (found.missing is not None) == missing
    assert not missing or f"{10 - unscored} of 10" in found.missing


def test_the_interval_is_that_of_a_mean_and_depends_on_the_seed_alone():
    annotations = annotated(*[1.0, 2.0] * 200)
    low, high = win_rate_interval(annotations, seed=0)
    # Normal approximation: 50 +- 1.96 * 50 / sqrt(400).
    assert (low, high) == pytest.approx((45.1, 54.9), abs=0.6)
    assert win_rate_interval(annotations, seed=0) == (low, high)
    assert win_rate_interval(annotated(2.0, 2.0, 2.0), seed=0) == (100, 100)


def test_annotations_survive_writing_and_reading(tmp_path):
    annotations = [replace(row, instruction="{braces} \N{ROCKET}") for row in annotated(1.25, None, 2.0)]
    write_annotations(tmp_path / "annotations.json", annotations)
    assert read_annotations(tmp_path / "annotations.json") == annotations


def test_fields_that_alpaca_eval_adds_are_passed_over(tmp_path):
    path = write_rows(tmp_path / "annotations.json", {"raw_completion": {"logprobs": {}}, "price_per_example": 0.01})
    assert read_annotations(path) == [
        Annotation("Name a colour.", "Red.", "Blue, like the sea.", "baseline", "model", "judge", 2.0)
    ]


WRONG_ROWS = {
    "out of range": ({"preference": 3}, r"row 2: `preference`: must lie between 1 .* but got 3"),
    "between a tie and a win": ({"preference": 0.5}, r"row 2: `preference`: must lie between 1"),
    "a text": ({"preference": "2"}, r"row 2: `preference`: Input should be a valid number, but got '2'"),
    "a truth": ({"preference": True}, r"row 2: `preference`: Input should be a valid number"),
    "no instruction": ({"instruction": None}, r"row 2: `instruction`: Input should be a valid string, but got None"),
}


@pytest.mark.parametrize(("change", "says"), WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_a_row_that_is_no_annotation_is_refused_by_its_number(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        read_annotations(write_rows(tmp_path / "annotations.json", {}, change))


def test_a_row_without_a_preference_field_is_refused(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{key: value for key, value in ROW.items() if key != "preference"}]))
    with pytest.raises(InputError, match=r"row 1: `preference`: Field required"):
        read_annotations(path)


FILES = {
    "no JSON": (b"[{", "must be JSON, but is not"),
    "no array": (b"{}", "must be a JSON array of at least one row"),
    "no row": (b"[]", "must be a JSON array of at least one row"),
    "no object": (b'["{}"]', "row 1: must be an object, but is not"),
    "no text": (b"\xff", "must be UTF-8 text, but byte 0"),
    "without end": (b"[" * 100_000, "must be JSON, but is not"),
}


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES.keys())
def test_a_file_of_something_else_is_refused(tmp_path, content, says):
    (tmp_path / "annotations.json").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_annotations(tmp_path / "annotations.json")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_annotations(tmp_path / "missing.json")
    with pytest.raises(InputError, match="must be a file"):
        read_annotations(tmp_path)


def outputs(generator, **answers):
    return [Output(instruction, output, generator) for instruction, output in answers.items()]


def test_outputs_survive_writing_and_reading_and_are_questions(tmp_path):
    ours = outputs("model", one="1", two="2")
    write_outputs(tmp_path / "outputs.json", ours)
    assert read_outputs(tmp_path / "outputs.json") == ours
    assert questions(ours) == [Question(0, "alpaca_eval", ("one",)), Question(1, "alpaca_eval", ("two",))]


def test_outputs_are_paired_by_instruction_and_equal_ones_are_a_tie():
    baseline, ours = outputs("baseline", one="1", two="same"), outputs("model", two="same", one="eins")
    assert paired(baseline, ours, annotator="judge") == [
        Annotation("one", "1", "eins", "baseline", "model", "judge", None),
        Annotation("two", "same", "same", "baseline", "model", "judge", 1.5),
    ]


def test_an_instruction_that_stands_there_twice_is_paired_in_order():
    baseline = [Output("one", "1", "baseline"), Output("one", "2", "baseline")]
    ours = [Output("one", "eins", "model"), Output("one", "zwei", "model")]
    assert [row.output_2 for row in paired(baseline, ours, annotator="judge")] == ["eins", "zwei"]


def test_outputs_to_other_instructions_are_refused():
    baseline = outputs("baseline", one="1", two="2")
    with pytest.raises(InputError, match=r"1 are lacking and 0 are others, such as 'two'"):
        paired(baseline, outputs("model", one="1"), annotator="judge")
    with pytest.raises(InputError, match=r"0 are lacking and 1 are others, such as 'three'"):
        paired(baseline, outputs("model", one="1", two="2", three="3"), annotator="judge")
