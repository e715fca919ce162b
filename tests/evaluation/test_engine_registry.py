"""An engine is its class and one line of the table; it takes a model in one of three forms and refuses the others."""

import inspect
import sys
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest

from tune_dlrml.benches.answers import answers_of
from tune_dlrml.benches.subject import Loaded, Served
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings
from tune_dlrml.evaluation.engines import registry
from tune_dlrml.evaluation.engines.registry import (
    ENGINES,
    IN_PROCESS,
    REMOTE,
    EngineKind,
    Live,
    NamedEngine,
    SamplingEngine,
    make_engine,
)
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Question

QUESTIONNAIRE = Questionnaire((Question(1, "math", ("1?", "2?")), Question(2, "stem", ("3?",))), 8, 2, 0)


class Echo:
    """Answers what it was asked, in the name of the model."""

    unanswered = 0

    def __init__(self, name):
        self.name = name

    @classmethod
    def of(cls, model, *, max_new_tokens, batch_size, kept=None):
        return cls(model.name)

    def generate(self, chats, *, temperature, seed):
        return [f"{self.name}: {chat[-1]['content']}" for chat in chats]

    def close(self):
        pass


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Echo=Echo))
    for module in (registry, sys.modules["tune_dlrml.benches.answers"]):
        monkeypatch.setattr(module, "ENGINES", ENGINES | {"echo": EngineKind(f"{__name__}:Echo")})


@pytest.mark.parametrize("name", ENGINES)
def test_every_entry_is_a_class_that_does_what_an_engine_must(name):
    made = resolve_name(ENGINES[name].place)
    protocol = SamplingEngine if name == IN_PROCESS else NamedEngine
    for method in ("of", "generate", "close", *(["sample"] if name == IN_PROCESS else [])):
        wanted, found = (inspect.signature(getattr(cls, method)).parameters for cls in (protocol, made))
        assert list(found) == list(wanted), method
    assert ENGINES[name].remote == (name == REMOTE)


def test_a_new_line_of_the_table_makes_a_models_answers(echo, tmp_path):
    answered = answers_of(Loaded("org/m", "org/m", engine="echo"), QUESTIONNAIRE, tmp_path)
    assert [given.turns for given in answered.answers] == [("org/m: 1?", "org/m: 2?"), ("org/m: 3?",)]
    assert answered.unanswered == 0


def test_the_loop_asks_the_engine_of_the_table(echo, monkeypatch):
    monkeypatch.setattr(registry, "IN_PROCESS", "echo")
    shares = [QUESTIONNAIRE.answer(None, None, rank=rank, world=2) for rank in range(2)]
    assert [[given.turns for given in share] for share in shares] == [
        [("policy: 1?", "policy: 2?")],
        [("policy: 3?",)],
    ]


@pytest.mark.parametrize(
    ("engine", "model", "where"),
    [
        ("transformers", Served("openai:m", EndpointSettings("m")), "in this process"),
        ("endpoint", Loaded("search:3", "org/m"), "behind an endpoint"),
        ("endpoint", Live("policy", None, None), "behind an endpoint"),
    ],
)
def test_an_engine_refuses_a_model_in_a_form_that_there_is_not(engine, model, where):
    with pytest.raises(InputError, match=f"needs {model.name} {where}"):
        make_engine(engine, model, max_new_tokens=8, batch_size=2)


def test_a_model_in_training_is_on_no_disk():
    with pytest.raises(InputError, match="needs policy on a disk"):
        Live("policy", None, None).stored()
