"""What becomes of the answers of ended trials: who is judged, when, and what is left for the next driver."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.utils.validation import _validate_metric_name

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import JudgeEndedError
from tune_dlrml.evaluation.judges import prompts as judge_prompts
from tune_dlrml.evaluation.judges.jury import Grading, Jury, _metric_name
from tune_dlrml.evaluation.judges.replies import ReplyCache
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Answers, Inquiry, Judgement, Question
from tune_dlrml.events import EventLog
from tune_dlrml.records import State
from tune_dlrml.search.judging.stage import Evaluation
from tune_dlrml.search.judging.thread import JUDGED, Judging, Submission
from tune_dlrml.search.result import RANKING, read_judged

QUESTIONS = (Question(1, "writing", ("Say A.", "Again.")), Question(2, "stem", ("Say B.", "Again.")))


class Judge:
    """Rates an answer by the digit in it; away while `away`."""

    def __init__(self, name: str = "openai:digits") -> None:
        self.name = self.identity = name
        self.asked: list[Inquiry] = []
        self.away = False
        self.when_asked = lambda: None

    def ask(self, inquiry: Inquiry) -> Judgement:
        if self.away:
            raise JudgeEndedError(f"{self.name} is unavailable")
        self.asked.append(inquiry)
        self.when_asked()
        digit = inquiry.messages[-1]["content"].rpartition("answer ")[2][0]
        verdict = float(digit) if inquiry.kind == "rating" else "A"
        return Judgement(self.name, inquiry.key(self.name), inquiry.question_id, inquiry.turn, verdict, "words", 1)

    def close(self) -> None:
        pass


@pytest.fixture
def questionnaire() -> Questionnaire:
    return Questionnaire(QUESTIONS, max_new_tokens=8, batch_size=1, seed=0)


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def jury_of(tmp_path, judge):
    def made(*, pairwise: bool = False, prompts: Any = None, judges: Any = None) -> Jury:
        needed = judge_prompts.SINGLE + judge_prompts.PAIR
        told = prompts or judge_prompts.load_judge_prompts(needed=needed)
        cache = ReplyCache(tmp_path / "replies.jsonl")
        return Jury(judges or [judge], told, cache, concurrency=1, seed=0, pairwise=pairwise)

    return made


@pytest.fixture
def events(tmp_path) -> EventLog:
    return EventLog(tmp_path / "search")


def answered(events: EventLog, questionnaire: Questionnaire, number: int, digit: int) -> None:
    folder = events.path(number).parent
    folder.mkdir(parents=True, exist_ok=True)
    given = [Answers(question.id, (f"answer {digit}", f"answer {digit}")) for question in QUESTIONS]
    questionnaire.keep(folder, [given])


def judging(
    events: EventLog, questionnaire: Questionnaire, jury: Jury, **options: Any
) -> tuple[Judging, dict[str, list]]:
    told: dict[str, list] = {"judged": [], "notices": []}

    def on_judged(number: int, grading: Grading) -> None:
        told["judged"].append(number)

    made = Judging(
        questionnaire, jury, events, on_judged=on_judged, on_notice=told["notices"].append, **{"baseline": 0, **options}
    )
    return made, told


def judged_events(events: EventLog, number: int) -> list[dict[str, Any]]:
    lines = events.path(number).read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "judged"]


def submit_all(made: Judging, numbers: list[int]) -> Any:
    for number in numbers:
        made.submit(Submission(number, 8, 1.5))
    return made.finish()


def test_a_trial_is_judged_once_and_its_event_says_what_it_came_to(events, questionnaire, jury_of, judge):
    answered(events, questionnaire, 0, 7)
    for expected in ([0], []):
        made, told = judging(events, questionnaire, jury_of())
        assert submit_all(made, [0, 0]) is None
        assert told["judged"] == expected
    (event,) = judged_events(events, 0)
    assert (event["step"], event["metrics"]["mt_bench/openai:digits/score"]) == (8, 7.0)
    assert event["metrics"]["answering_s"] == 1.5
    assert len(judge.asked) == 4
    assert all((events.path(0).parent / name).exists() for name in event["artifacts"])


def test_a_trial_without_answers_is_passed_over(events, questionnaire, jury_of):
    events.path(3).parent.mkdir(parents=True)
    made, told = judging(events, questionnaire, jury_of())
    assert submit_all(made, [3]) is None
    assert told == {"judged": [], "notices": []}


def test_other_judge_prompts_judge_again(events, questionnaire, jury_of, judge):
    answered(events, questionnaire, 0, 7)
    submit_all(judging(events, questionnaire, jury_of())[0], [0])
    prompts = judge_prompts.load_judge_prompts()
    other = {name: judge_prompts.JudgePrompt(name, "Be strict.", prompt.template) for name, prompt in prompts.items()}
    made, told = judging(events, questionnaire, jury_of(prompts=other))
    assert submit_all(made, [0]) is None
    assert told["judged"] == [0] and len(judge.asked) == 8


def test_a_baseline_that_ends_later_is_compared_with_once_it_is_there(events, questionnaire, jury_of):
    answered(events, questionnaire, 1, 8)
    jury = jury_of(pairwise=True)
    submit_all(judging(events, questionnaire, jury)[0], [1])
    answered(events, questionnaire, 0, 5)
    made, told = judging(events, questionnaire, jury_of(pairwise=True))
    assert submit_all(made, [0, 1]) is None
    assert told["judged"] == [0, 1]
    said = json.loads((events.path(1).parent / JUDGED).read_text())
    assert said["differences"][0]["score"] == 3.0
    assert said["pairs"][0]["ties"] == 4  # a judge that always prefers what is shown first decides nothing


def test_a_judge_that_is_away_is_asked_again_with_the_next_trial_and_at_the_end(events, questionnaire, jury_of, judge):
    for number in (0, 1):
        answered(events, questionnaire, number, 6)
    judge.away = True
    made, told = judging(events, questionnaire, jury_of())
    assert isinstance(submit_all(made, [0, 1]), JudgeEndedError)
    assert told["judged"] == []
    assert told["notices"] == ["judging waits, training continues: openai:digits is unavailable"]
    judge.away = False
    made, told = judging(events, questionnaire, jury_of())
    assert submit_all(made, [0, 1]) is None
    assert told["judged"] == [0, 1]


def test_a_driver_that_died_behind_the_event_leaves_no_second_one(events, questionnaire, jury_of):
    answered(events, questionnaire, 0, 7)
    submit_all(judging(events, questionnaire, jury_of())[0], [0])
    (events.path(0).parent / JUDGED).unlink()
    made, told = judging(events, questionnaire, jury_of())
    assert submit_all(made, [0]) is None
    assert told["judged"] == [0] and len(judged_events(events, 0)) == 1


def test_trials_are_ranked_by_the_first_judge_among_those_that_were_asked_the_same(events, questionnaire, jury_of):
    for number, digit in ((0, 3), (1, 9), (2, 6)):
        answered(events, questionnaire, number, digit)
    submit_all(judging(events, questionnaire, jury_of())[0], [0, 1, 2])
    other = Questionnaire(QUESTIONS[:1], max_new_tokens=8, batch_size=1, seed=0)
    answered(events, other, 4, 9)
    submit_all(judging(events, other, jury_of())[0], [4])
    ranking = {"questionnaire": questionnaire.fingerprint, "judges": ["openai:digits"]}
    (events.folder / RANKING).write_text(json.dumps(ranking))
    assert list(read_judged(events, [0, 1, 2, 3, 4])) == [1, 2, 0]


@pytest.fixture
def evaluation_of(events, questionnaire, jury_of, judge):
    """The evaluation of a search of three complete trials, of which number 2 is the best."""

    def made(when: str) -> Evaluation:
        config = EvaluationConfig(judges=["openai:digits"], when=when, best=1)
        ended = {"state": State.COMPLETE, "steps": 8, "attrs": {}, "feasible": True}
        rows = [SimpleNamespace(number=n, value=float(n), **ended) for n in range(3)]
        prepared = SimpleNamespace(
            config=SimpleNamespace(evaluation=config, search=SimpleNamespace(baseline=object())),
            questionnaire=questionnaire,
            jury=jury_of(),
        )
        return Evaluation(prepared, SimpleNamespace(rows=lambda: rows, maximize=True), events)

    return made


def test_the_best_and_the_baseline_are_examined_at_the_end(evaluation_of, events, questionnaire):
    evaluation = evaluation_of("best")
    assert [row.number for row in evaluation.unanswered()] == [2, 0]
    answered(events, questionnaire, 2, 9)
    assert [row.number for row in evaluation.unanswered()] == [0]


@pytest.mark.parametrize("when", ["best", "final_rung"])
def test_answers_that_an_earlier_driver_left_are_judged(evaluation_of, events, questionnaire, judge, when):
    for number in range(3):
        answered(events, questionnaire, number, 5 + number)
    evaluation = evaluation_of(when)
    assert evaluation.left()
    judge.away = True
    evaluation.begin(lambda number, grading: None, lambda text: None)
    assert isinstance(evaluation.finish(), JudgeEndedError)
    judge.away = False
    again = evaluation_of(when)
    again.begin(lambda number, grading: None, lambda text: None)
    assert again.finish() is None
    assert not evaluation_of(when).left()
    assert list(read_judged(events, [0, 1, 2])) == ([2, 0] if when == "best" else [2, 1, 0])


def test_what_is_asked_when_the_search_ends_is_kept_and_nothing_more_is_asked(events, questionnaire, jury_of, judge):
    answered(events, questionnaire, 0, 5)
    jury = jury_of()
    judge.when_asked = jury.stop
    made, told = judging(events, questionnaire, jury)
    assert "was stopped" in str(submit_all(made, [0]))
    assert (len(judge.asked), told["judged"]) == (1, [])
    judge.when_asked = lambda: None
    made, told = judging(events, questionnaire, jury_of())
    assert submit_all(made, [0]) is None
    assert (len(judge.asked), told["judged"]) == (4, [0])


def test_names_of_metrics_are_legal_and_differ_by_judge():
    names = ["local:/models/a:logits", "local:" + "/deep" * 80, "mean of 甲", "mean of 乙", ".", "a//b", "x@y"]
    made = [_metric_name(name) for name in names]
    assert made[0] == names[0]
    assert len(set(made)) == len(names)
    for name in made:
        _validate_metric_name(f"mt_bench/{name}/category/{name}")
