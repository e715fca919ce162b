"""Questions to a proposer behind an endpoint, within the caps that are left."""

import threading
from pathlib import Path

import pytest
import toy
from evaluation.endpoint_server import LATE, EndpointServer, fails, reset, says

from tune_dlrml.config import DiscoveryConfig
from tune_dlrml.discovery.asking import EndpointAsker, asker_of
from tune_dlrml.errors import InputError

CHAT = [{"role": "user", "content": "Propose."}]


def config(url: str) -> DiscoveryConfig:
    return DiscoveryConfig.model_validate({"proposer": "openai:some", "proposer_url": url, "max_new_tokens": 64})


def test_a_reply_comes_with_what_it_cost():
    with EndpointServer.scripted([says("def f", usage=70)]) as server:
        answer = EndpointAsker("some", config(server.url), "key").ask(CHAT, seed=3, calls=9, tokens=900, seconds=60)
    assert (answer.text, answer.calls, answer.tokens, answer.estimated) == ("def f", 1, 70, False)
    body = server.requests[0]["body"]
    assert (body["seed"], body["temperature"], body["max_tokens"]) == (3, 1.0, 64)
    assert server.requests[0]["headers"]["authorization"] == "Bearer key"


def test_retries_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tune_dlrml.evaluation.endpoint.client.BACKOFF_S", 0.0)
    with EndpointServer.scripted([fails(429, retry_after="0"), fails(503), reset("x"), says("def f")]) as server:
        answer = EndpointAsker("some", config(server.url), None).ask(CHAT, seed=0, calls=9, tokens=900, seconds=60)
    assert (answer.text, answer.calls) == ("def f", 4)


def test_no_more_requests_than_are_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tune_dlrml.evaluation.endpoint.client.BACKOFF_S", 0.0)
    with EndpointServer(lambda _: fails(503)) as server:
        answer = EndpointAsker("some", config(server.url), None).ask(CHAT, seed=0, calls=2, tokens=900, seconds=60)
    assert answer.text is None
    assert (answer.calls, len(server.requests)) == (2, 2)
    assert "max_calls" in answer.reason


def test_an_endpoint_that_refuses_its_key_cannot_be_asked():
    with EndpointServer.scripted([fails(401)]) as server, pytest.raises(InputError, match="401"):
        EndpointAsker("some", config(server.url), "key").ask(CHAT, seed=0, calls=9, tokens=900, seconds=60)


def test_closing_ends_a_question_and_all_later_ones():
    with EndpointServer(lambda _: LATE) as server:
        asker = EndpointAsker("some", config(server.url), None)
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(asker.ask(CHAT, seed=0, calls=9, tokens=900, seconds=60))
        )
        thread.start()
        while not server.requests:
            thread.join(0.01)
        asker.close()
        thread.join()
        answers.append(asker.ask(CHAT, seed=0, calls=9, tokens=900, seconds=60))
    assert [answer.text for answer in answers] == [None, None]
    assert answers[1].calls == 0


def test_a_question_has_the_seconds_that_are_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tune_dlrml.evaluation.endpoint.client.BACKOFF_S", 100.0)
    with EndpointServer(lambda _: fails(503)) as server:
        answer = EndpointAsker("some", config(server.url), None).ask(CHAT, seed=0, calls=9, tokens=900, seconds=5)
    assert (answer.text, answer.calls) == (None, 1)
    assert "deadline_s" in answer.reason


def test_a_local_proposer_has_to_fit_the_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy.write_model(tmp_path / "model")
    asker = asker_of(f"local:{model}", DiscoveryConfig.model_validate({"proposer": f"local:{model}"}), None)
    assert asker.first_word().startswith("is there and takes ")
    monkeypatch.setattr("tune_dlrml.discovery.asking.free_memory", lambda: 1000)
    with pytest.raises(InputError, match="GiB are free"):
        asker.first_word()
