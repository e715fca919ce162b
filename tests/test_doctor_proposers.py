"""What the doctor says of the proposers of a discovery and of its caps, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import toy
from evaluation.endpoint_server import EndpointServer, fails, says
from made_search import discovery_search

from tune_dlrml.config import SearchConfig
from tune_dlrml.discovery.prompt import question
from tune_dlrml.doctor.finding import Finding
from tune_dlrml.doctor.proposers import examine_proposers, expected_tokens


def config(**section: Any) -> SearchConfig:
    return discovery_search(**{"candidates": 4, "trials_per_candidate": 2} | section)


def findings(search: SearchConfig, key: str | None = "key") -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine_proposers(search, key)}


def test_a_proposer_is_asked_for_one_word_and_the_caps_are_put_into_questions():
    with EndpointServer.scripted([says("1")]) as server:
        search = config(proposer_url=server.url, price_per_million_tokens=5, limits={"tokens": 100_000})
        found = findings(search)
    assert found["discovery.proposer"].level == "ok"
    assert [request["body"]["messages"] for request in server.requests] == [[{"role": "user", "content": "1"}]]
    assert found["discovery.proposer"].text == f"openai:some answers at {server.url}"
    caps, prompt = found["discovery.limits"], expected_tokens(search)
    assert caps.level == "ok"
    for words in (
        "200 requests and 100,000 tokens, which cost 0.5 at most",
        f"about {prompt:,} tokens and its reply at most 2,048",
        f"{100_000 // (prompt + 2048)} to {100_000 // prompt} questions",
    ):
        assert words in caps.text
    # The baseline, DPO and DiscoPOP with nothing to vary, four candidates twice.
    assert "at most 11 trials: 4 candidates and 2 known losses (dpo, discopop)" in found["discovery"].text


def test_a_search_without_a_discovery_has_no_proposers_to_be_examined():
    plain = config().model_copy(update={"discovery": None})
    assert list(examine_proposers(plain, None)) == []


def test_an_endpoint_that_refuses_its_key_is_an_error_and_one_that_is_away_a_warning(monkeypatch: pytest.MonkeyPatch):
    with EndpointServer.scripted([fails(401)]) as server:
        refused = findings(config(proposer_url=server.url))["discovery.proposer"]
    assert refused.level == "error" and "give a valid key" in refused.text
    monkeypatch.setattr("tune_dlrml.discovery.asking.PROBE_S", 0.5)
    with EndpointServer(lambda _: fails(503)) as server:
        away = findings(config(proposer_url=server.url))["discovery.proposer"]
    assert (away.level == "warning" and "503" in away.text) or "deadline_s" in away.text


def test_openais_own_endpoint_needs_a_key_and_a_key_file_has_to_be_there(tmp_path: Path):
    found = findings(config(), key=None)["discovery.proposer"]
    assert found.level == "error" and "OPENAI_API_KEY" in found.text
    missing = findings(config(proposer_key_file=str(tmp_path / "key")))
    assert [*missing] == ["discovery.proposer_key_file"]
    assert missing["discovery.proposer_key_file"].level == "error"


@pytest.mark.parametrize(
    ("limits", "law", "remedy"),
    [
        ({"calls": 3}, "`calls >= candidates` must hold for 4 candidates", "raise discovery.limits.calls to 4 or more"),
        ({"tokens": 9000}, "4 candidates take a question each", "raise discovery.limits.tokens to"),
    ],
)
def test_caps_that_do_not_reach_for_every_candidate_are_a_warning_with_what_would(limits: Any, law: str, remedy: str):
    with EndpointServer.scripted([says("1")]) as server:
        found = findings(config(proposer_url=server.url, limits=limits))["discovery.limits"]
    assert found.level == "warning"
    assert law in found.text and remedy in found.text


def test_a_question_is_expected_to_be_as_long_as_one_with_all_that_the_context_shows():
    none, some = config(context={"best": 0, "recent": 0}), config(context={"best": 4, "recent": 2})
    assert none.discovery is not None
    bare = question(none.discovery, none.search.metric, {}, {}, [])
    # Four characters a token; what is more is DPO's line.
    assert 0 < expected_tokens(none) - sum(len(each["content"]) for each in bare.messages) / 4 < 80
    # At least two of the four losses and both proposals have the code of the example.
    assert expected_tokens(some) > expected_tokens(none) + 4 * 50


def test_a_local_proposer_has_to_have_room_for_question_and_reply(tmp_path: Path):
    model = toy.write_model(tmp_path / "model")
    found = findings(config(proposer=f"local:{model}"))
    assert found["discovery.proposer"].level == "ok"
    room = found["discovery.max_new_tokens"]
    assert room.level == "warning" and "max_new_tokens=2048" in room.text
    away = findings(config(proposer="local:/no/such/folder"))["discovery.proposer"]
    assert away.level == "error"
