"""Models before a bench, outside a search: what `tune-dlrml evaluate` does, in this process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from evaluation.endpoint_server import Act, EndpointServer, completion, fails, says

from tune_dlrml.benches.answers import KeptTexts
from tune_dlrml.benches.subject import Loaded
from tune_dlrml.cli.benches import AlpacaEval, Frontier, MtBench
from tune_dlrml.errors import InputError, JudgeEndedError
from tune_dlrml.views.bench import bench_lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_model(tmp_path_factory.mktemp("benches") / "model")


@pytest.fixture
def bench(model: Path, tmp_path: Path) -> Any:
    """A bench with the options that a test changes, each of few answers."""

    def made(kind: type[Any] = MtBench, **changes: Any) -> Any:
        plain = {"model": str(model), "limit": 4, "max_new_tokens": 8, "batch_size": 4, "storage": tmp_path / "runs"}
        judged = {} if kind is Frontier else {"judge": ["openai:judge"]}
        return kind(**(plain | judged | {"out": tmp_path / "out"} | changes))

    return made


def answers_in(folder: Path) -> Path:
    (path,) = folder.glob("answers-*.jsonl")
    return path


def judged(options: Any) -> dict[str, Any]:
    return options.prepare(options.out, None)(lambda judgement: None)


def test_a_model_is_answered_for_judged_and_bought_once(bench, tmp_path):
    with EndpointServer.replying(lambda messages: "fine. Rating: [[6]]") as server:
        first = judged(bench(judge_url=server.url))
        again = judged(bench(judge_url=server.url))
        other = judged(bench(judge_url=server.url, out=tmp_path / "other"))
        assert len(server.requests) == 8
    assert (first["score"], first["interval"], first["questions"], first["unscored"]) == (6.0, (6.0, 6.0), 4, 0)
    assert (first["judge"], first["calls"], first["cached"]) == ("openai:judge", 8, 0)
    for document in (again, other):
        assert (document["score"], document["calls"], document["cached"]) == (6, 0, 8)
    assert first["turns"] == {1: 6.0, 2: 6.0} and set(first["categories"].values()) == {6.0}
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {answers_in(tmp_path / "out").name, "judgements.jsonl", "mt_bench.json", "mt_bench_0.png"}
    table = json.loads((tmp_path / "out/mt_bench.json").read_text())
    assert [row[table["columns"].index("rating")] for row in table["data"]] == [6.0] * 8


def test_two_judges_have_their_own_scores_and_their_mean_names_both(bench, model):
    judges = ["openai:judge", f"local:{model}"]
    with EndpointServer.replying(lambda messages: "Rating: [[2]]") as server:
        document = judged(bench(judge=judges, judge_url=server.url, limit=2))
    scripted, local = document["judges"]
    assert (scripted["judge"], local["judge"]) == ("openai:judge", f"local:{model}:logits")
    assert document["score"] == pytest.approx((scripted["score"] + local["score"]) / 2)
    assert scripted["judge"] in document["judge"] and local["judge"] in document["judge"]


def test_a_model_behind_an_endpoint_answers_there(bench, tmp_path):
    def reply(messages: list[dict[str, str]]) -> str:
        return "Rating: [[9]]" if messages[0]["role"] == "system" else f"answer {len(messages)}"

    with EndpointServer.replying(reply) as server:
        document = judged(bench(model="openai:policy", model_url=server.url, judge_url=server.url, limit=1))
        models = [request["body"]["model"] for request in server.requests]
    assert models == ["policy", "policy", "judge", "judge"]
    assert (document["model"], document["score"]) == ("openai:policy", 9.0)
    (line,) = answers_in(tmp_path / "out").read_text().splitlines()
    assert json.loads(line)["choices"][0]["turns"] == ["answer 1", "answer 3"]


def test_a_cap_ends_judging_with_what_was_said_kept(bench):
    with EndpointServer.replying(lambda messages: "Rating: [[5]]") as server:
        with pytest.raises(JudgeEndedError, match=r"`max_calls` is 3"):
            judged(bench(judge_url=server.url, max_calls=3))
        assert len(server.requests) == 3
        assert judged(bench(judge_url=server.url))["calls"] == 5


class Model:
    """A model and its judge behind one server; the model never replies to a chat that says `filtered`."""

    def __init__(self, filtered: str = "nobody says this") -> None:
        self.filtered = filtered
        self.chats: list[str] = []

    def act(self, messages: list[dict[str, str]]) -> Act:
        if messages[0]["role"] == "system":
            return says("Rating: [[9]]")
        self.chats.append(json.dumps(messages))
        if self.filtered in messages[-1]["content"]:
            return fails(400, code="content_filter")
        return says(f"answer {len(self.chats)}")


def test_a_models_endpoint_that_reached_a_cap_goes_on_and_is_paid_once(bench, tmp_path):
    model = Model()
    with EndpointServer(model.act) as server:
        served = bench(model="openai:policy", model_url=server.url, judge_url=server.url, batch_size=1)
        with pytest.raises(JudgeEndedError, match=r"openai:policy: `max_calls` is 3"):
            judged(replace(served, max_calls=3))
        assert len(model.chats) == 3
        with pytest.raises(JudgeEndedError, match=r"openai:policy: `max_tokens` is 1"):
            judged(replace(served, max_tokens=1))
        assert len(model.chats) == 4
        judged(served)
        document = judged(served)
    assert len(model.chats) == len(set(model.chats)) == 8
    assert (document["score"], document["cached"], document["unanswered"]) == (9.0, 8, 0)
    turns = [json.loads(line)["choices"][0]["turns"] for line in answers_in(tmp_path / "out").open()]
    assert {text for pair in turns for text in pair} == {f"answer {n}" for n in range(1, 9)}


def test_a_question_that_the_models_endpoint_refuses_is_reported_and_costs_no_other_its_answer(bench, tmp_path):
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "math", "turns": [text]} for n, text in enumerate(["sum", "secret", "root"])]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with EndpointServer(Model(filtered="secret").act) as server:
        served = bench(model="openai:policy", model_url=server.url, judge_url=server.url, questions=str(questions))
        document = judged(served)
    assert (document["unanswered"], document["questions"]) == (1, 3)
    answers = [json.loads(line)["choices"][0]["turns"][0] for line in answers_in(tmp_path / "out").open()]
    assert [bool(answer) for answer in answers] == [True, False, True]
    assert any("1 questions got no reply" in str(line) for line in bench_lines(document))


def test_a_line_that_a_crash_tore_costs_its_own_text_only(tmp_path):
    path = tmp_path / "replies.jsonl"
    kept = KeptTexts(path)
    for key in ("a", "b"):
        kept[key] = f"text of {key}\n"
    with path.open("ab") as file:
        file.write(b'{"key": "c", "text": "to')
    again = KeptTexts(path)
    assert dict(again) == {"a": "text of a\n", "b": "text of b\n"}
    again["c"] = "whole"
    assert KeptTexts(path)["c"] == "whole"


@pytest.mark.parametrize("changes", [{"limit": 3}, {"seed": 1}, {"max_new_tokens": 9}, {"other weights": True}])
def test_answers_are_those_of_this_model_to_these_questions_in_this_way(bench, tmp_path, changes):
    model = toy.write_model(tmp_path / "model")
    with EndpointServer.replying(lambda messages: "Rating: [[5]]") as server:
        first = bench(model=str(model), judge_url=server.url, limit=2)
        judged(first)
        kept = answers_in(first.out)
        before = kept.read_bytes()
        if changes.pop("other weights", False):
            toy.write_model(model, seed=1)
        judged(replace(first, **changes))
        (made,) = set(first.out.glob("answers-*.jsonl")) - {kept}
        fresh = replace(first, **changes, out=tmp_path / "fresh")
        judged(fresh)
    assert kept.read_bytes() == before
    assert made.read_bytes() == answers_in(fresh.out).read_bytes()


def test_a_trial_trained_again_is_another_model(tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    identities = []
    for sha256 in ("aa", "bb", "aa"):
        marker = {"files": {"adapter_model.safetensors": {"size": 8, "sha256": sha256}}}
        (checkpoint / "complete.json").write_text(json.dumps(marker))
        identities.append(Loaded("search:0", "org/base", checkpoint).identity())
    first, other, again = identities
    assert first == again != other
    assert replace(Loaded("search:0", "org/base", checkpoint), engine="vllm").identity() != again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": []}, "mt-bench needs a judge: give --judge"),
        ({"model": "no/such folder"}, "or it is"),
        ({"model": "nothing:3"}, "there is no search 'nothing'"),
        ({"kind": AlpacaEval}, "either --annotations FILE"),
        ({"kind": Frontier, "model": "openai:policy"}, "needs its log-probs"),
        ({"kind": Frontier, "limit": 1}, "at least 2 of them, but got --limit 1"),
        ({"kind": Frontier, "reward": "no_module:score"}, "no_module"),
        ({"judge_key_file": Path("missing.key")}, "missing.key: the key"),
    ],
)
def test_a_mistake_is_reported_with_its_remedy(bench, changes, message):
    with pytest.raises(InputError, match=f"(?i){message}"):
        judged(bench(**changes))


def test_the_frontier_of_a_base_model_is_at_no_divergence(bench, tmp_path):
    document = judged(bench(Frontier, limit=6, samples=2))
    assert document["kl"]["mean"] == 0.0
    assert (document["samples"], document["reward_function"]) == (12, "vader")
    lines = (tmp_path / "out/completions.jsonl").read_text().splitlines()
    rewards = [json.loads(line)["reward"] for line in lines]
    assert document["reward"]["mean"] == pytest.approx(sum(rewards) / len(rewards))


def write_outputs(path: Path, generator: str, count: int) -> Path:
    rows = [{"instruction": f"say {n}", "output": f"{generator} {n}", "generator": generator} for n in range(count)]
    path.write_text(json.dumps(rows))
    return path


def test_alpaca_eval_weighs_a_models_outputs_against_the_baselines(bench, tmp_path):
    """The judge says A or B with certainty, always for the baseline's text; so the model wins nothing."""

    def act(messages: list[dict[str, str]]) -> Act:
        shown = messages[-1]["content"]
        better, other = ("A", "B") if shown.index("baseline ") < shown.index('name="B"') else ("B", "A")
        tokens = [{"token": better, "logprob": 0.0}, {"token": other, "logprob": -100.0}]
        logprobs = {"content": [{"token": better, "logprob": 0.0, "top_logprobs": tokens}]}
        return Act("ok", completion(better, logprobs=logprobs))

    baseline = write_outputs(tmp_path / "baseline.json", "baseline", 5)
    with EndpointServer(act) as server:
        compared = bench(AlpacaEval, baseline=baseline, judge_url=server.url, limit=None)
        document = judged(compared)
        fewer = judged(replace(compared, limit=3))
        again = judged(compared)
    assert (document["score"], document["losses"], document["questions"]) == (pytest.approx(0.0), 5, 5)
    assert (document["judge"], document["calls"], document["length_controlled"]) == ("openai:judge", 5, None)
    assert (fewer["questions"], fewer["cached"], again["questions"], again["cached"]) == (3, 3, 5, 5)
    annotations = tmp_path / "out/annotations.json"
    model = json.loads(annotations.read_text())[0]["generator_2"]
    read = judged(bench(AlpacaEval, model=model, annotations=annotations))
    assert (read["score"], read["losses"], read["calls"]) == (document["score"], 5, 0)
    with pytest.raises(InputError, match=r"but not 'other'"):
        judged(bench(AlpacaEval, model="other", annotations=annotations))


def test_every_bench_is_shown_with_its_judge_or_its_reward(bench, tmp_path):
    with EndpointServer.replying(lambda messages: "Rating: [[5]]") as server:
        lines = [str(line) for line in bench_lines(judged(bench(judge_url=server.url, limit=2)))]
    assert "5.00 (5.00 to 5.00) of 10 on 2 questions by openai:judge" in lines[0]
    (line,) = bench_lines(judged(bench(Frontier, limit=3, out=tmp_path / "frontier")))
    assert "by vader" in str(line) and "nats" in str(line)
