"""What judges are asked about answers, and what their judgements amount to."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas
import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.judges.prompts import PAIR, SINGLE, load_judge_prompts
from tune_dlrml.evaluation.mt_bench.questions import load_questions
from tune_dlrml.evaluation.mt_bench.scores import (
    difference,
    inquiries,
    mean_score,
    pair_inquiries,
    pair_score,
    score,
)
from tune_dlrml.evaluation.records import Answers, Judgement, Question

FASTCHAT = Path(__file__).parents[3] / "shared" / "data" / "mt_bench"
needs_fastchat = pytest.mark.skipif(not FASTCHAT.is_dir(), reason="FastChat's own files are not beside the checkout")
JUDGE = "openai:judge"


def made_questions(count, *, turns=2):
    return [Question(number, "ab"[number % 2], ("first?", "second?")[:turns]) for number in range(count)]


def rating(question_id, turn, verdict, judge=JUDGE):
    return Judgement(judge, f"{question_id}/{turn}", question_id, turn, verdict, "words")


def made_ratings(questions, seed, judge=JUDGE):
    rng = random.Random(seed)
    return [
        rating(question.id, turn, float(rng.randint(1, 10)), judge)
        for question in questions
        for turn in range(1, len(question.turns) + 1)
    ]


def rows(name):
    return [json.loads(line) for line in (FASTCHAT / name).read_text(encoding="utf-8").splitlines()]


def answers_with_braces(question_id, who):
    return Answers(question_id, tuple(f"{who} {turn} to {question_id}: {{answer}} {{0}} }}{{" for turn in (1, 2)))


def filled(template, texts):
    return re.sub(r"\{(\w+)\}", lambda match: texts[match[1]], template)


@needs_fastchat
def test_prompts_for_ratings_are_fastchats_templates_filled_in():
    templates = {row["name"]: row for row in rows("judge_prompts.jsonl")}
    right = {row["question_id"]: row["choices"][0]["turns"] for row in rows("reference_answer/gpt-4.jsonl")}
    expected = {}
    for question in rows("question.jsonl"):
        key, (q1, q2) = question["question_id"], question["turns"]
        a1, a2 = answers_with_braces(key, "ours").turns
        texts = {"question": q1, "answer": a1, "question_1": q1, "question_2": q2, "answer_1": a1, "answer_2": a2}
        math_or_not = ""
        if question["category"] in ("math", "reasoning", "coding"):
            math_or_not = "-math"
            texts |= {"ref_answer_1": right[key][0], "ref_answer_2": right[key][1]}
        for turn, ending in ((1, ""), (2, "-multi-turn")):
            line = templates[f"single{math_or_not}-v1{ending}"]
            expected[key, turn] = line["name"], line["system_prompt"], filled(line["prompt_template"], texts)
    questions = load_questions(str(FASTCHAT))
    prompts = load_judge_prompts(str(FASTCHAT / "judge_prompts.jsonl"))
    asked = inquiries(questions, [answers_with_braces(question.id, "ours") for question in questions], prompts)
    assert len(asked) == len(expected) == 160
    for inquiry in asked:
        system, user = inquiry.messages
        assert (system["role"], user["role"], inquiry.kind) == ("system", "user", "rating")
        assert (inquiry.prompt, system["content"], user["content"]) == expected[inquiry.question_id, inquiry.turn]


@needs_fastchat
def test_prompts_for_pairs_are_fastchats_templates_filled_in_both_orders():
    templates = {row["name"]: row for row in rows("judge_prompts.jsonl")}
    right = {row["question_id"]: row["choices"][0]["turns"] for row in rows("reference_answer/gpt-4.jsonl")}
    expected = {}
    for question in rows("question.jsonl"):
        key, (q1, q2) = question["question_id"], question["turns"]
        guided = question["category"] in ("math", "reasoning", "coding")
        for order in (("ours", "base"), ("base", "ours")):
            (a1, a2), (b1, b2) = (answers_with_braces(key, who).turns for who in order)
            texts = {"question": q1, "question_1": q1, "question_2": q2, "answer_a": a1, "answer_b": b1}
            texts |= {"answer_a_1": a1, "answer_a_2": a2, "answer_b_1": b1, "answer_b_2": b2}
            texts |= {f"ref_answer_{turn}": right[key][turn - 1] for turn in (1, 2) if guided}
            for turn, ending in ((1, ""), (2, "-multi-turn")):
                line = templates[("pair-math-v1" if guided else "pair-v2") + ending]
                expected[key, turn, order[0]] = line["system_prompt"], filled(line["prompt_template"], texts)
    questions = load_questions(str(FASTCHAT))
    prompts = load_judge_prompts(str(FASTCHAT / "judge_prompts.jsonl"), needed=SINGLE + PAIR)
    ours, base = ([answers_with_braces(question.id, who) for question in questions] for who in ("ours", "base"))
    matches = pair_inquiries(questions, ours, base, prompts)
    assert len(matches) == 160
    for match in matches:
        for inquiry, first in zip(match.inquiries, ("ours", "base"), strict=True):
            texts = tuple(message["content"] for message in inquiry.messages)
            assert inquiry.kind == "pair"
            assert texts == expected[inquiry.question_id, inquiry.turn, first]


def test_a_question_of_one_turn_is_asked_about_once():
    questions = [*made_questions(1, turns=1), Question("two", "stem", ("a", "b"))]
    answers = [Answers("two", ("x", "y")), Answers(0, ("z",)), Answers("unknown", ())]
    asked = inquiries(questions, answers, load_judge_prompts())
    assert [(inquiry.question_id, inquiry.turn) for inquiry in asked] == [(0, 1), ("two", 1), ("two", 2)]


def test_a_turn_without_a_right_answer_is_judged_without():
    question = Question(1, "math", ("a", "b"), ("4", ""))
    asked = inquiries([question], [Answers(1, ("x", "y"))], load_judge_prompts())
    assert [inquiry.prompt for inquiry in asked] == ["single-math-v1", "single-v1-multi-turn"]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "has 2 turns and 0 answers"),
        ([Answers(0, ("x",))], "has 2 turns and 1 answers"),
        ([Answers(0, ("x", "y")), Answers(0, ("x", "y"))], "question 0 is twice"),
    ],
)
def test_every_turn_must_be_answered_once(answers, said):
    with pytest.raises(InputError, match=said):
        inquiries(made_questions(1), answers, load_judge_prompts())
    with pytest.raises(InputError, match=said):
        pair_inquiries(made_questions(1), [Answers(0, ("x", "y"))], answers, load_judge_prompts(needed=SINGLE + PAIR))


def test_a_score_is_the_mean_over_turns_and_questions_with_means_by_turn_and_category():
    questions = made_questions(3)
    said = [rating(*values) for values in [(0, 1, 9.0), (0, 2, 3.0), (1, 1, 5.5), (1, 2, 1.0), (2, 1, 10), (2, 2, 2.5)]]
    result = score(said, questions, JUDGE, seed=0)
    assert result.score == pytest.approx(31 / 6)
    assert result.turns == pytest.approx({1: 24.5 / 3, 2: 6.5 / 3})
    assert result.categories == pytest.approx({"a": 24.5 / 4, "b": 6.5 / 2})
    assert (result.judge, result.questions, result.unscored, result.missing) == (JUDGE, 3, 0, None)


def test_the_means_are_those_of_fastchats_tables():
    """FastChat drops the rows with score -1 and takes means over model and turn, and over model, in pandas."""
    questions = made_questions(80)
    said = [
        one if number % 17 else rating(one.question_id, one.turn, None)
        for number, one in enumerate(made_ratings(questions, 3))
    ]
    table = pandas.DataFrame({"turn": one.turn, "score": -1 if one.verdict is None else one.verdict} for one in said)
    table = table[table["score"] != -1]
    result = score(said, questions, JUDGE, seed=0)
    assert result.turns == pytest.approx(table.groupby("turn")["score"].mean().to_dict())
    assert result.score == pytest.approx(table["score"].mean())
    assert result.unscored == 160 - len(table) == 10


def test_judgements_of_other_judges_and_of_pairs_are_passed_over_and_the_later_rating_counts():
    questions = made_questions(1)
    said = [rating(0, 1, None), rating(0, 1, 2.0), rating(0, 1, 4.0), rating(0, 2, 6.0)]
    said += [rating(0, 1, "A"), rating(0, 2, None), rating(0, 2, 1.0, "local:x:logits"), rating(7, 1, 1.0)]
    assert score(said, questions, JUDGE, seed=0).score == 5.0


@pytest.mark.parametrize(("unscored", "is_there"), [(0, True), (2, True), (3, False), (20, False)])
def test_a_score_rests_on_nine_tenths_of_the_judgements_or_is_missing(unscored, is_there):
    questions = made_questions(10)
    said = [
        rating(question.id, turn, None if 2 * question.id + turn - 1 < unscored else 7.0)
        for question in questions
        for turn in (1, 2)
    ]
    result = score(said, questions, JUDGE, seed=0)
    assert result.unscored == unscored
    assert result.score == (7.0 if is_there else None)
    assert result.interval == ((7.0, 7.0) if is_there else None)
    assert (result.missing is None) == is_there
    if not is_there:
        assert JUDGE in result.missing
        assert f"{20 - unscored} of 20" in result.missing


def test_a_category_that_lacks_judgements_is_missing_where_the_score_is_not():
    questions = [Question(number, "rare" if number == 0 else "common", ("a", "b")) for number in range(10)]
    said = [one for one in made_ratings(questions, 0) if one.question_id or one.turn == 1]
    result = score(said, questions, JUDGE, seed=0)
    assert result.score is not None
    assert result.categories["rare"] is None
    assert result.categories["common"] is not None


def test_no_judgement_is_no_score():
    result = score([], made_questions(2), JUDGE, seed=0)
    assert (result.score, result.interval, result.unscored) == (None, None, 4)
    assert result.turns == {1: None, 2: None}


def test_the_interval_is_the_bootstraps_over_questions_not_over_turns():
    """For many questions it is mean +- 1.96 standard errors; turns that move together give no narrower one."""
    questions = made_questions(400)
    rng = np.random.default_rng(5)
    each = rng.uniform(2, 9, size=400)
    said = [rating(question.id, turn, float(each[question.id])) for question in questions for turn in (1, 2)]
    low, high = score(said, questions, JUDGE, seed=1).interval
    half = 1.96 * each.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.1 * half)


def test_the_interval_depends_on_its_seed_alone():
    questions = made_questions(20)
    said = made_ratings(questions, 1)
    assert score(said, questions, JUDGE, seed=4) == score(said, questions, JUDGE, seed=4)
    assert score(said, questions, JUDGE, seed=4).interval != score(said, questions, JUDGE, seed=5).interval


def test_one_question_has_a_score_but_no_interval():
    result = score(made_ratings(made_questions(1), 0), made_questions(1), JUDGE, seed=0)
    assert result.score is not None
    assert result.interval is None


def test_several_judges_are_averaged_on_the_turns_that_all_of_them_rated_and_all_are_named():
    questions = made_questions(10)
    said = [rating(question.id, turn, 4.0) for question in questions for turn in (1, 2)]
    said += [rating(question.id, turn, 9.0, "local:x:logits") for question in questions for turn in (1, 2)][1:]
    result = mean_score(said, questions, [JUDGE, "local:x:logits"], seed=0)
    assert result.judge == "mean of openai:judge, local:x:logits"
    assert (result.score, result.unscored) == (6.5, 1)


def test_a_difference_is_paired_by_turn_and_surer_than_the_two_scores():
    questions = made_questions(40)
    base = made_ratings(questions, 2)
    ours = [rating(one.question_id, one.turn, one.verdict + 0.5) for one in base][1:]
    result = difference(ours, base, questions, JUDGE, seed=0)
    assert result.score == pytest.approx(0.5)
    assert result.interval == pytest.approx((0.5, 0.5))
    assert result.unscored == 1
    low, high = score(base, questions, JUDGE, seed=0).interval
    assert high - low > 0.5
    assert difference(base, ours, questions, JUDGE, seed=0).score == pytest.approx(-0.5)


def matches_and(verdicts, judge=JUDGE):
    """As many matches of one turn as there are pairs of verdicts, given when ours is first and when it is second."""
    questions = made_questions(len(verdicts), turns=1)
    ours, base = (
        [Answers(question.id, (f"{who} {question.id}",)) for question in questions] for who in ("ours", "base")
    )
    matches = pair_inquiries(questions, ours, base, load_judge_prompts(needed=PAIR))
    return matches, [
        Judgement(judge, inquiry.key(judge), inquiry.question_id, inquiry.turn, verdict, "words")
        for match, pair in zip(matches, verdicts, strict=True)
        for inquiry, verdict in zip(match.inquiries, pair, strict=True)
    ]


@pytest.mark.parametrize(
    ("first", "second", "wins", "ties", "losses"),
    [
        ("A", "B", 1, 0, 0),
        ("B", "A", 0, 0, 1),
        ("A", "A", 0, 1, 0),
        ("B", "B", 0, 1, 0),
        ("tie", "tie", 0, 1, 0),
        ("A", "tie", 0, 1, 0),
        ("tie", "A", 0, 1, 0),
    ],
)
def test_a_match_is_won_or_lost_only_if_both_orders_agree(first, second, wins, ties, losses):
    matches, said = matches_and([(first, second)])
    result = pair_score(matches, said, JUDGE, seed=0)
    assert (result.wins, result.ties, result.losses, result.unscored) == (wins, ties, losses, 0)


def test_a_tie_is_half_a_win_in_the_adjusted_rate_alone():
    matches, said = matches_and([("A", "B")] * 5 + [("A", "A")] * 4 + [("B", "A")])
    result = pair_score(matches, said, JUDGE, seed=0)
    assert (result.win_rate, result.win_rate_adjusted) == (0.5, 0.7)
    low, high = result.interval
    assert 0 < low < 0.7 < high <= 1


def test_a_match_that_lacks_a_verdict_is_no_tie_and_too_many_are_no_rate():
    matches, said = matches_and([("A", "B")] * 9 + [("A", None)])
    result = pair_score(matches, said, JUDGE, seed=0)
    assert (result.wins, result.ties, result.unscored, result.win_rate) == (9, 0, 1, 1.0)
    matches, said = matches_and([("A", "B")] * 8 + [(None, "A"), (None, None)])
    result = pair_score(matches, said, JUDGE, seed=0)
    assert (result.wins, result.unscored, result.win_rate, result.win_rate_adjusted) == (8, 2, None, None)
    assert "8 of 10" in result.missing


def test_the_same_answer_twice_is_asked_once_and_is_a_tie():
    questions = made_questions(1, turns=1)
    (match,) = pair_inquiries(questions, [Answers(0, ("x",))], [Answers(0, ("x",))], load_judge_prompts(needed=PAIR))
    key = match.ours_first.key(JUDGE)
    assert key == match.baseline_first.key(JUDGE)
    result = pair_score([match], [Judgement(JUDGE, key, 0, 1, "A", "words")], JUDGE, seed=0)
    assert (result.wins, result.ties, result.losses) == (0, 1, 0)


def test_results_are_written_as_json():
    questions = made_questions(4)
    matches, said = matches_and([("A", "B")] * 2)
    for result in (
        score(made_ratings(questions, 0), questions, JUDGE, seed=0),
        pair_score(matches, said, JUDGE, seed=0),
    ):
        assert json.loads(json.dumps(result.as_json()))["judge"] == JUDGE
