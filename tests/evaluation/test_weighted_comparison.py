"""The weighted comparison: what a judge is shown, and what its log-probs make of two outputs."""

import math
import threading

import pytest
import torch
from evaluation.endpoint_server import EndpointServer, says

from tune_dlrml.evaluation.alpaca_eval.annotations import Annotation, win_rate
from tune_dlrml.evaluation.alpaca_eval.weighted_comparison import (
    Comparer,
    annotated,
    comparisons,
    shown_preference,
)
from tune_dlrml.evaluation.endpoint.client import Endpoint, EndpointSettings, NoReplyError
from tune_dlrml.evaluation.endpoint.completion import Completion
from tune_dlrml.evaluation.judges.endpoint import EndpointJudge
from tune_dlrml.evaluation.judges.local import LocalJudge
from tune_dlrml.evaluation.judges.replies import CachedJudge, ReplyCache, judge_all
from tune_dlrml.evaluation.records import Judgement
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference

ANNOTATIONS = [
    Annotation(f"question {n}", f"theirs {n}", f"ours {n} {{braces}}", "baseline", "model", "", None) for n in range(40)
]


class FakeEndpoint:
    """An endpoint whose model prefers `ours` with a probability of 0.8, wherever it stands."""

    name, identity = "openai:fake", "openai:fake at home"

    def __init__(self, reply=None):
        self.reply = reply
        self.requests = []
        self._lock = threading.Lock()

    def complete(self, messages, **settings):
        with self._lock:
            self.requests.append((messages, settings))
        if isinstance(self.reply, Exception):
            raise self.reply
        if self.reply is not None:
            return self.reply
        text = messages[-1]["content"]
        ours_first = text.index("ours") < text.index("theirs")
        names = ("A", "B") if ours_first else ("B", "A")
        return Completion(
            names[0], {names[0]: math.log(0.8 * 0.9), names[1]: math.log(0.2 * 0.9), "The": math.log(0.1)}
        )


def compared_by(endpoint):
    return Comparer(EndpointJudge(endpoint))


def judged(judge, annotations, seed=0, concurrency=2):
    asked = [comparison.inquiry for comparison in comparisons(annotations, seed=seed)]
    judgements = judge_all(asked, judge, concurrency=concurrency)
    return annotated(annotations, judgements, judge=judge.name, seed=seed)


def test_both_orders_are_shown_and_the_preference_is_that_of_the_outputs():
    switched = [comparison.switched for comparison in comparisons(ANNOTATIONS, seed=0)]
    assert 10 < sum(switched) < 30
    rows = judged(compared_by(FakeEndpoint()), ANNOTATIONS)
    assert [row.preference for row in rows] == pytest.approx([1.8] * 40)
    assert {row.annotator for row in rows} == {"openai:fake"}
    assert win_rate(rows).win_rate == pytest.approx(80)


def test_the_order_depends_on_seed_and_instruction_alone():
    def orders(annotations, seed):
        return {annotations[c.index].instruction: c.switched for c in comparisons(annotations, seed=seed)}

    assert orders(ANNOTATIONS[::-1], 0) == orders(ANNOTATIONS, 0) != orders(ANNOTATIONS, 1)


def test_a_judge_is_shown_both_outputs_and_the_instruction_as_they_are():
    (comparison,) = comparisons([Annotation("{first}?", "{second}", "{0}", "b", "m", "", None)], seed=0)
    text = comparison.inquiry.messages[-1]["content"]
    assert "<instruction>\n{first}?\n</instruction>" in text
    shown = ["{0}", "{second}"] if comparison.switched else ["{second}", "{0}"]
    assert text.index(shown[0]) < text.index(shown[1])


def test_one_token_with_its_log_probs_is_asked_for():
    endpoint = FakeEndpoint()
    judged(compared_by(endpoint), ANNOTATIONS[:1])
    ((_, settings),) = endpoint.requests
    assert settings == {"temperature": 1.0, "max_tokens": 1, "top_logprobs": 20, "seed": 0}


def test_log_probs_come_over_http():
    tops = [{"token": "A", "logprob": math.log(0.6)}, {"token": "B", "logprob": math.log(0.2)}]
    reply = says("A", finish_reason="length", logprobs={"content": [{**tops[0], "top_logprobs": tops}]})
    (comparison,) = comparisons(ANNOTATIONS[:1], seed=0)
    with EndpointServer.scripted([reply]) as server:
        endpoint = Endpoint(EndpointSettings("m", url=server.url))
        found = compared_by(endpoint).ask(comparison.inquiry)
        endpoint.close()
    assert (found.verdict, found.words, found.calls) == (pytest.approx(1.25), "A", 1)


def test_what_has_a_preference_is_neither_asked_nor_renamed():
    done = Annotation("question", "a", "a", "baseline", "model", "earlier judge", 1.5)
    assert comparisons([done], seed=0) == []
    assert judged(compared_by(FakeEndpoint()), [done, ANNOTATIONS[0]])[0] == done


def test_nothing_is_asked_twice_over_a_cache(tmp_path):
    endpoint = FakeEndpoint()
    judge = CachedJudge(compared_by(endpoint), ReplyCache(tmp_path / "replies.jsonl"))
    first = judged(judge, ANNOTATIONS)
    again = CachedJudge(compared_by(endpoint), ReplyCache(tmp_path / "replies.jsonl"))
    assert judged(again, ANNOTATIONS) == first
    assert len(endpoint.requests) == len(ANNOTATIONS)


@pytest.mark.parametrize(
    ("log_probs", "preference"),
    [
        ({"A": -0.5, "B": -0.5}, 1.5),
        ({"A": math.log(0.6), "B": math.log(0.2)}, 1.25),
        ({"A": math.log(0.3), " A": math.log(0.3), "B\n": math.log(0.2)}, 1.25),
        ({"A": -0.1, "The": -3.0}, 1.0),
        ({"B": -0.1}, 2.0),
        ({"A": -2000.0, "B": -1000.0}, 2.0),
        ({"a": -0.1, "The": -3.0}, None),
        ({}, None),
    ],
)
def test_a_preference_is_the_share_of_b_in_the_probability_of_both(log_probs, preference):
    assert shown_preference(log_probs) == (None if preference is None else pytest.approx(preference))


@pytest.mark.parametrize(
    ("reply", "words", "calls", "heard"),
    [
        (Completion("A", None), "the endpoint gave no log-probs; it said 'A'", 1, True),
        (Completion("I", {"I": -0.1}, calls=2), "the judge gave no log-prob of A or of B; it said 'I'", 2, True),
        (NoReplyError("no reply in 8 requests", 8), "no reply in 8 requests", 8, False),
        (NoReplyError("too long", 1, final=True), "too long", 1, True),
    ],
)
def test_without_log_probs_a_comparison_is_unscored(reply, words, calls, heard):
    judge = compared_by(FakeEndpoint(reply))
    (comparison,) = comparisons(ANNOTATIONS[:1], seed=0)
    key = comparison.inquiry.key("openai:fake")
    assert judge.ask(comparison.inquiry) == Judgement("openai:fake", key, 0, 1, None, words, calls, heard)
    (row,) = judged(judge, ANNOTATIONS[:1])
    assert (row.preference, row.annotator) == (None, "openai:fake")


def test_judgements_that_another_judge_made_fill_nothing():
    asked = [comparison.inquiry for comparison in comparisons(ANNOTATIONS, seed=0)]
    judgements = judge_all(asked, compared_by(FakeEndpoint()), concurrency=1)
    assert all(row.preference is None for row in annotated(ANNOTATIONS, judgements, judge="another", seed=0))


def test_a_model_in_this_process_compares_by_its_next_token(toy_model):
    reference = parse_model_reference(str(toy_model))
    model, tokenizer = load_model(reference, dtype=torch.float32), load_tokenizer(reference)
    # The whole inquiry must fit, so that the model's own forward over it is the expectation.
    model.config.max_position_embeddings = 4096
    judge = Comparer(LocalJudge(str(toy_model), model, tokenizer))
    (comparison,) = comparisons(ANNOTATIONS[:1], seed=0)
    found = judge.ask(comparison.inquiry)

    text = "\n\n".join(message["content"] for message in comparison.inquiry.messages)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    a, b = (logits[tokenizer.convert_tokens_to_ids(name)].item() for name in "AB")
    assert found.judge == f"local:{toy_model}:logits"
    assert found.verdict == pytest.approx(1 + 1 / (1 + math.exp(a - b)), abs=1e-5)


def test_a_model_whose_numbers_are_not_finite_says_nothing(toy_model, monkeypatch):
    judge = LocalJudge(str(toy_model))
    monkeypatch.setattr(judge, "log_probs", lambda *_: [math.nan, -1.0])
    (comparison,) = comparisons(ANNOTATIONS[:1], seed=0)
    found = Comparer(judge).ask(comparison.inquiry)
    assert (found.verdict, found.words) == (None, "the model's log-probs are not finite")
