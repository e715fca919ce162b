"""A judge that never gives a verdict is asked a few times, not for every turn."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from evaluation.endpoint_server import EndpointServer, says

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.evaluation.judges.endpoint import TRIES
from tune_dlrml.evaluation.judges.jury import Jury
from tune_dlrml.evaluation.judges.resigning import VERDICTLESS, Resigning
from tune_dlrml.evaluation.records import Answers, Inquiry, Judgement, Question

QUESTIONS = tuple(Question(number, "writing", (f"Say {number}.", "Again.")) for number in range(12))
ANSWERS = [Answers(question.id, ("A", "A")) for question in QUESTIONS]


class Scripted:
    name = identity = "openai:scripted"

    def __init__(self, verdicts):
        self.verdicts, self.asked = list(verdicts), 0

    def ask(self, inquiry):
        self.asked += 1
        return Judgement.of(self.name, inquiry, self.verdicts.pop(0), "words", calls=1)


def inquiries(count):
    return [Inquiry("rating", "single-v1", ({"role": "user", "content": str(n)},), n, 1) for n in range(count)]


@pytest.mark.parametrize(
    ("verdicts", "asked"),
    [
        ([None] * 20, VERDICTLESS),
        ([None] * (VERDICTLESS - 1) + [7.0] + [None] * 20, 20),
        ([7.0] + [None] * 19, 20),
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_a_judge_is_given_up_only_if_its_first_turns_all_lack_a_verdict(verdicts, asked, threads):
    judge = Scripted(verdicts)
    resigning = Resigning(judge)
    with ThreadPoolExecutor(threads) as pool:
        said = list(pool.map(resigning.ask, inquiries(20)))
    assert judge.asked == asked
    assert sum(each.calls for each in said) == asked
    assert [each.heard for each in said].count(False) == 20 - asked
    assert (resigning.given_up is None) == (asked == 20)


def jury(server, folder, **settings):
    config = EvaluationConfig(judges=["openai:m"], judge_url=server.url, **settings)
    return Jury.of(config, folder / "replies.jsonl", None)


def test_a_grading_without_verdicts_costs_few_calls_and_says_why(tmp_path):
    with EndpointServer(lambda _: says("A fine answer.")) as server:
        given = jury(server, tmp_path, judge_max_tokens=77)
        first = given.grade(QUESTIONS, ANSWERS, baseline=[Answers(each.question_id, ("B", "B")) for each in ANSWERS])
        again = given.grade(QUESTIONS, [Answers(each.question_id, ("C", "C")) for each in ANSWERS])
        given.close()
    assert len(server.requests) == VERDICTLESS * TRIES
    assert {request["body"]["max_tokens"] for request in server.requests} == {77}
    for score in (*first.scores, *first.differences, *again.scores):
        assert score.score is None
        assert f"gave no verdict on the first {VERDICTLESS} turns" in score.missing
        assert "A fine answer." in score.missing
    assert not first.whole


def test_what_was_not_asked_is_asked_by_the_next_run(tmp_path):
    with EndpointServer(lambda _: says("A fine answer.")) as server:
        jury(server, tmp_path).grade(QUESTIONS, ANSWERS)
    with EndpointServer(lambda _: says("Rating: [[7]]")) as server:
        grading = jury(server, tmp_path).grade(QUESTIONS, ANSWERS)
    assert grading.scores[0].score == 7.0
