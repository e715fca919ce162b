"""A model's answers against those of a data set: who wins, in both orders, of made posts and their summaries."""

import json
from pathlib import Path
from typing import Any

import pytest
import toy
from evaluation.endpoint_server import EndpointServer

from tune_dlrml.cli.benches import WinRate
from tune_dlrml.errors import InputError
from tune_dlrml.views.bench import bench_lines

SUMMARIES = {
    "My neighbour's goat ate my lettuce for the third time, and he only laughs about it.": "Goat eats my lettuce.",
    "I missed the last ferry and slept in the harbour office, where a clerk made me tea.": "Missed ferry, had tea.",
    "We painted the kitchen yellow. My aunt says that it looks like mustard. I like it.": "Kitchen is yellow.",
    "My choir wants me to sing alone on Sunday, and I have never done that before.": "Afraid of my first solo.",
    "The old bicycle cost ten coins and three weekends, and now it rides like new.": "Repaired a cheap bicycle.",
    "My flatmate bakes at four in the morning. The bread is good, the noise is not.": "Flatmate bakes too early.",
    "I left the job at the mill for a bakery that closed after eight days.": "New job ended in days.",
    "Our dog is afraid of umbrellas, and it rains here most of the year.": "Dog fears umbrellas.",
    "I lent a friend my tent, and it came back with a hole and a note that says sorry.": "Tent came back torn.",
    "My brother learns the tuba. The walls are thin, and my exams are next week.": "Tuba disturbs my exams.",
    "I found a letter from 1931 in a library book and want to find the family.": "Found an old letter.",
    "The train was late, so I missed a wedding, but I caught the dancing.": "Late train, but danced.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_model(tmp_path_factory.mktemp("win_rate") / "model")


@pytest.fixture
def options(model: Path, tmp_path: Path) -> Any:
    pairs = tmp_path / "posts.jsonl"
    rows = [
        {"prompt": f"POST: {post}\n\nTL;DR:", "chosen": f" {summary}", "rejected": " Something."}
        for post, summary in SUMMARIES.items()
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def made(**changes: Any) -> WinRate:
        plain = {"model": str(model), "max_new_tokens": 4, "storage": tmp_path / "runs", "out": tmp_path / "out"}
        judged = {"judge": ["openai:judge"], "judge_prompts": "builtin:tldr", "pairs": str(pairs)}
        return WinRate(**(plain | judged | changes))

    return made


def judged(options: WinRate) -> dict[str, Any]:
    return options.prepare(options.out, None)(lambda judgement: None)


def shown(messages: list[dict[str, str]], letter: str) -> str:
    return messages[-1]["content"].partition(f"[Summary {letter}]\n")[2].partition("\n[End")[0]


def test_a_judge_that_knows_the_reference_summaries_lets_them_win(options):
    known = set(SUMMARIES.values())
    with EndpointServer.replying(lambda said: "[[A]]" if shown(said, "A") in known else "[[B]]") as server:
        document = judged(options(judge_url=server.url))
        assert len(server.requests) == 24
    assert (document["wins"], document["ties"], document["losses"], document["prompts"]) == (0, 0, 12, 12)
    assert (document["win_rate_adjusted"], document["interval"]) == (0.0, (0.0, 0.0))


def test_a_judge_reads_a_conversation_turn_by_turn(options, tmp_path):
    talk = tmp_path / "talk.jsonl"
    turns = [("user", "My soup is salty."), ("assistant", "Add a potato."), ("user", "And then?")]
    said = {"prompt": [{"role": role, "content": text} for role, text in turns]}
    said |= {key: [{"role": "assistant", "content": text}] for key, text in (("chosen", "Boil."), ("rejected", "No."))}
    talk.write_text(json.dumps(said) + "\n", encoding="utf-8")
    with EndpointServer.replying(lambda said: "[[C]]") as server:
        judged(options(judge_url=server.url, judge_prompts="builtin:dialogue", pairs=str(talk)))
        asked = server.requests[0]["body"]["messages"][-1]["content"]
    assert "user: My soup is salty.\n\nassistant: Add a potato.\n\nuser: And then?" in asked
    assert "Boil." in asked and "No." not in asked


def test_a_judge_that_prefers_a_position_decides_nothing_and_a_tie_is_one_half(options):
    with EndpointServer.replying(lambda said: "[[A]]") as server:
        document = judged(options(judge_url=server.url))
    assert (document["wins"], document["ties"], document["losses"]) == (0, 12, 0)
    assert document["win_rate_adjusted"] == 0.5


def test_the_interval_is_over_prompts(options):
    won = set(list(SUMMARIES)[:3])

    def reply(said: list[dict[str, str]]) -> str:
        loses = not any(post in said[-1]["content"] for post in won)
        reference_first = shown(said, "A") in SUMMARIES.values()
        return "[[A]]" if loses == reference_first else "[[B]]"

    with EndpointServer.replying(reply) as server:
        document = judged(options(judge_url=server.url))
    assert (document["wins"], document["losses"], document["win_rate_adjusted"]) == (3, 9, 0.25)
    low, high = document["interval"]
    # Three of twelve: a standard error of sqrt(0.25 * 0.75 / 12), 0.125.
    assert low == pytest.approx(0.25 - 1.96 * 0.125, abs=0.1) and high == pytest.approx(0.25 + 1.96 * 0.125, abs=0.1)
    (line,) = bench_lines(document)
    assert "in 25.0 %" in line and "of 12 prompts by openai:judge; 3 won, 0 tied, 9 lost" in line


def test_answers_and_judgements_are_made_once(options, monkeypatch):
    with EndpointServer.replying(lambda said: "[[C]]") as server:
        first = judged(options(judge_url=server.url))
        monkeypatch.setattr("tune_dlrml.benches.win_rate._completed", None)
        again = judged(options(judge_url=server.url))
        assert len(server.requests) == 24
    assert (first["calls"], again["calls"], again["cached"]) == (24, 0, 24)
    assert again["win_rate_adjusted"] == 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": None}, "give --pairs DATASET"),
        ({"judge_prompts": None}, "needs criteria: give --judge-prompts builtin:tldr"),
        ({"judge_prompts": "builtin:poems"}, "no built-in judge prompts 'poems'. Built-in are: mt-bench, tldr"),
        ({"engine": "vllm"}, "prompts that are texts are continued as they stand"),
        ({"judge": ["openai:a", "openai:b"]}, "win-rate has one judge, but got openai:a, openai:b"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, changes, says):
    with pytest.raises(InputError, match=says):
        judged(options(judge_url="http://127.0.0.1:9/v1", **changes))
