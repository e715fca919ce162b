"""A judge is its class and one line of the table: everybody who meets its name finds it there."""

import inspect
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
from evaluation.endpoint_server import EndpointServer

from tune_dlrml.benches.alpaca_eval import compared, document
from tune_dlrml.benches.subject import Served
from tune_dlrml.config import EvaluationConfig
from tune_dlrml.doctor.judges import examine_judges
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings
from tune_dlrml.evaluation.judges import registry
from tune_dlrml.evaluation.judges.judge import NamedJudge, NextToken
from tune_dlrml.evaluation.judges.jury import Jury
from tune_dlrml.evaluation.judges.registry import JUDGES, JudgeKind, is_remote, judge_kind
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Answers, Judgement


class Constant:
    """Says the number of its name to everything, and likes B three times as much as A."""

    def __init__(self, model):
        self.name = self.identity = f"constant:{model}"
        self.closed = False

    @classmethod
    def of(cls, model, config, *, key, device):
        if not model.isdigit():
            raise InputError(f"a constant judge says a whole number, but got {model!r}")
        return cls(model)

    def ask(self, inquiry):
        return Judgement.of(self.name, inquiry, float(self.name.partition(":")[2]), "always", calls=1)

    def first_word(self):
        return "says always the same"

    def next_token(self, messages, tokens):
        return NextToken({"A": -2.0, "B": -2.0 + 1.0986122886681098}, "B")

    def close(self):
        self.closed = True


@pytest.fixture
def constant(monkeypatch):
    entry = {"constant": JudgeKind("`constant:<number>`", f"{__name__}:Constant")}
    monkeypatch.setitem(__import__("sys").modules, __name__, SimpleNamespace(Constant=Constant))
    monkeypatch.setattr(registry, "JUDGES", JUDGES | entry)


@pytest.mark.parametrize("kind", JUDGES)
def test_every_entry_is_a_class_that_does_what_a_named_judge_must(kind):
    made = resolve_name(JUDGES[kind].place)
    for name in ("of", "ask", "first_word", "next_token", "close"):
        wanted, found = (inspect.signature(getattr(cls, name)).parameters for cls in (NamedJudge, made))
        assert list(found) == list(wanted), name
    assert f"`{kind}:<" in JUDGES[kind].form


@pytest.mark.parametrize("name", ["openai", "openai:", "openai: ", "nobody:m", "", None, 3, ["openai:m"]])
def test_what_is_no_judges_name_has_no_kind(name):
    assert judge_kind(name) is None


def test_a_model_may_have_colons_in_its_name():
    assert judge_kind("openai:org/model:free") == JUDGES["openai"]
    assert [is_remote(name) for name in ("openai:m", "local:m", "nobody:m")] == [True, False, False]


def test_a_new_line_of_the_table_is_legal_in_a_search_and_grades(constant, tmp_path):
    with pytest.raises(ValueError, match="judge_url"):
        EvaluationConfig(judges=["constant:7"], judge_url="http://127.0.0.1:1/v1")
    config = EvaluationConfig(judges=["constant:7"], limit=2)
    jury = Jury.of(config, tmp_path / "replies.jsonl", None)
    questions = Questionnaire.of(config).questions
    grading = jury.grade(questions, [Answers(question.id, ("a", "b")) for question in questions])
    assert [score.score for score in grading.scores] == [7.0]
    assert jury.names == ["constant:7"]


def test_the_doctor_asks_it_for_a_first_word_and_reports_its_refusal(constant):
    config = EvaluationConfig(judges=["constant:7", "constant:x"])
    _, fine, wrong = examine_judges(config, None)
    assert (fine.level, fine.text) == ("ok", "constant:7 says always the same")
    assert (wrong.level, wrong.text) == ("error", "a constant judge says a whole number, but got 'x'")


def test_it_weighs_answers_against_a_baselines(constant, tmp_path):
    baseline = tmp_path / "baseline.json"
    baseline.write_text('[{"instruction": "say a", "output": "a", "generator": "theirs"}]')
    config = EvaluationConfig(judges=["constant:7"])

    with EndpointServer.replying(lambda messages: "b") as server:
        model = Served("ours", EndpointSettings("m", url=server.url))
        files = {"replies": tmp_path / "replies", "out": tmp_path / "out"}
        numbers = compared(model, baseline, config, key=None, on_judgement=lambda _: None, **files)
    (row,) = numbers.annotations
    assert row.preference in (pytest.approx(1.25), pytest.approx(1.75))
    assert document("ours", numbers, side_files=None, seed=0)["judge"] == "constant:7"
