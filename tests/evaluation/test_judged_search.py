"""A search with a warm-up whose trials are judged by a real HTTP endpoint, ended in the middle, resumed and extended.

It trains on the cluster of this test session; that a search starts and ends one of its own is tested elsewhere.
"""

import hashlib
import json
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
import toy
from command_line import called, ended, on_this_cluster, said, started, without
from evaluation.endpoint_server import EndpointServer

from tune_dlrml.benches.frontier import Draw, search_frontier
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.evaluation.frontier.points import Sampling
from tune_dlrml.search.result import SearchPlace

pytestmark = pytest.mark.slow

QUESTIONS, TRIALS, ENDED_AFTER = 4, 4, 11
SEARCH_S = 300


class Judge:
    """Rates by the content of what it is asked, and lets its test end the search behind one of its answers."""

    def __init__(self) -> None:
        self.enough = threading.Event()
        self.asked: list[str] = []
        self.url = ""

    def reply(self, messages: list[dict[str, str]]) -> str:
        self.asked.append(json.dumps(messages))
        if len(self.asked) == ENDED_AFTER:
            self.enough.set()
        return f"Rating: [[{rating(messages)}]]"


def rating(messages: list[dict[str, str]]) -> int:
    return 1 + hashlib.sha256(messages[-1]["content"].encode()).digest()[0] % 10


COMMAND = ("search", "judged.yaml", "--json")


class Seen(NamedTuple):
    """What both drivers left.

    Attributes:
        document: What the second printed.
        before: How often the judge had been asked before that.
        told: Progress, as each driver reported it.
        warmed: When the model of the warm-up had been written, before the second began.
    """

    folder: Path
    document: dict[str, Any]
    judge: Judge
    before: int
    told: tuple[str, str]
    warmed: int


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, local_ray: str) -> Seen:
    folder, judge = tmp_path_factory.mktemp("judged"), Judge()
    document = toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", 64),
        toy.write_pairs(folder / "eval.jsonl", 32, seed=1),
        name="judged",
    )
    document["training"] |= {"max_steps": 8, "warm_up": {"rule": "brier", "steps": 4, "learning_rate": 3e-3}}
    strength = {"log_uniform": [0.01, 0.5]}
    document["space"]["losses"] = [{"name": "dpo", "beta": strength, "sft": {"rule": "spherical"}}]
    document["search"] = {"num_trials": TRIALS, "scheduler": None}
    with EndpointServer.replying(judge.reply) as server:
        judge.url = server.url
        document["evaluation"] = {
            "judges": ["openai:scripted"],
            "judge_url": judge.url,
            "limit": QUESTIONS,
            "max_new_tokens": 8,
            "limits": {"concurrency": 1},
        }
        (folder / "judged.yaml").write_text(as_yaml_text(document))
        fewer = ("--num-trials", str(TRIALS - 1))
        first = started(*COMMAND, *fewer, folder=folder, environment=on_this_cluster("OPENAI_API_KEY"))
        try:
            in_time = judge.enough.wait(SEARCH_S)
        finally:
            first.send_signal(signal.SIGTERM)
        interrupted = ended(first, within_s=SEARCH_S)
        assert (in_time, interrupted.returncode) == (True, 130), said(interrupted, folder / "runs")
        before, warmed = len(judge.asked), warm_up(folder).stat().st_mtime_ns
        second = ended(
            started(*COMMAND, folder=folder, environment=on_this_cluster("OPENAI_API_KEY")), within_s=SEARCH_S
        )
        assert second.returncode == 0, said(second, folder / "runs")
    return Seen(folder, json.loads(second.stdout), judge, before, (interrupted.stderr, second.stderr), warmed)


def warm_up(folder: Path) -> Path:
    return folder / "runs/judged/warm-up/model.safetensors"


def test_no_question_is_judged_twice_though_the_search_was_ended_in_the_middle(judged):
    assert ENDED_AFTER <= judged.before < (TRIALS - 1) * QUESTIONS * 2
    assert set(Counter(judged.judge.asked).values()) == {1}


def test_a_model_is_warmed_up_once_and_every_trial_starts_from_it(judged):
    first, second = judged.told
    assert "warmed up: loss" in first and "warmed up" not in second
    assert warm_up(judged.folder).stat().st_mtime_ns == judged.warmed
    assert warm_up(judged.folder).read_bytes() != (judged.folder / "model/model.safetensors").read_bytes()
    assert ["train_sft_loss" in trial["metrics"] for trial in judged.document["trials"]] == [False, True, True, True]


def test_the_score_of_every_trial_is_the_mean_of_the_ratings_of_its_answers(judged):
    folder, document, _, *_ = judged
    assert [trial["state"] for trial in document["trials"]] == ["complete"] * TRIALS
    for trial in document["trials"]:
        (score,) = trial["judged"]["scores"]
        lines = (folder / f"runs/judged/trials/{trial['number']}/judgements.jsonl").read_text().splitlines()
        ratings = [json.loads(line)["verdict"] for line in lines]
        assert len(ratings) == QUESTIONS * 2
        assert score["score"] == pytest.approx(sum(ratings) / len(ratings))
        assert (score["judge"], score["questions"], score["unscored"]) == ("openai:scripted", QUESTIONS, 0)
        assert trial["seconds"]["answering"] > 0


def test_every_trial_is_compared_with_the_baseline_turn_by_turn(judged):
    _, document, _, *_ = judged
    scores = [trial["judged"]["scores"][0]["score"] for trial in document["trials"]]
    assert document["trials"][0]["judged"]["differences"] == []
    for trial in document["trials"][1:]:
        (above,) = trial["judged"]["differences"]
        assert above["score"] == pytest.approx(scores[trial["number"]] - scores[0])
        assert above["interval"][0] <= above["score"] <= above["interval"][1]


def test_what_the_judge_was_asked_are_the_answers_that_the_trial_left(judged):
    folder, _, judge, *_ = judged
    asked = "".join(judge.asked)
    for number in range(TRIALS):
        (path,) = (folder / f"runs/judged/trials/{number}").glob("answers-*.jsonl")
        for line in path.read_text().splitlines():
            for answer in json.loads(line)["choices"][0]["turns"]:
                assert json.dumps(answer)[1:-1] in asked


def test_mlflow_has_each_score_once_with_its_judge_and_the_answers_to_read(judged):
    folder, document, _, *_ = judged
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs/mlflow.db'}")
    for trial in document["trials"]:
        history = client.get_metric_history(trial["mlflow_run_id"], "mt_bench/openai:scripted/score")
        assert [point.value for point in history] == [trial["judged"]["scores"][0]["score"]]
        artifacts = {artifact.path for artifact in client.list_artifacts(trial["mlflow_run_id"])}
        assert {"mt_bench.json", "mt_bench_0.png"} <= artifacts
        tags = client.get_run(trial["mlflow_run_id"]).data.tags
        assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "mt_bench.json", "type": "table"}]


def test_the_finished_search_asks_no_judge_when_its_command_is_given_again(judged):
    folder, document, judge, *_ = judged
    asked = len(judge.asked)
    again = called(*COMMAND, folder=folder, environment=on_this_cluster("OPENAI_API_KEY"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trials"] == document["trials"]
    assert len(judge.asked) == asked


def test_a_trial_examined_from_its_checkpoint_answers_as_it_did_on_the_resident_model(judged):
    folder, document, judge, *_ = judged
    asked = len(judge.asked)
    settings = {"when": "best", "best": 1, "limit": QUESTIONS - 1}
    arguments = [text for key, value in settings.items() for text in ("--set", f"evaluation.{key}={value}")]
    process = started(*COMMAND, *arguments, folder=folder, environment=on_this_cluster("OPENAI_API_KEY"))
    again = ended(process, within_s=SEARCH_S)
    assert again.returncode == 0, again.stderr
    assert len(judge.asked) == asked, "the same answers had been judged before"
    finalists = {document["best"], 0}  # the baseline is one of them, to be compared with
    for number in range(TRIALS):
        files = answer_files(folder, number)
        turns = [[json.loads(line)["choices"][0]["turns"] for line in path.read_text().splitlines()] for path in files]
        if number in finalists:
            assert sorted(map(len, turns)) == [QUESTIONS - 1, QUESTIONS]
            assert turns[0][: QUESTIONS - 1] == turns[1][: QUESTIONS - 1]
        else:
            assert len(turns) == 1


def test_evaluate_says_of_a_trial_what_its_search_says_and_buys_nothing(judged):
    folder, document, judge, *_ = judged
    asked, (score,) = len(judge.asked), document["trials"][0]["judged"]["scores"]
    options = f"--judge {score['judge']} --judge-url {judge.url} --limit {QUESTIONS} --max-new-tokens 8 --json"
    evaluated = called(
        "evaluate", "mt-bench", "judged:0", *options.split(), folder=folder, environment=without("OPENAI_API_KEY")
    )
    assert evaluated.returncode == 0, evaluated.stderr
    said = json.loads(evaluated.stdout)
    assert (said["model"], said["calls"], said["cached"]) == ("judged:0", 0, QUESTIONS * 2)
    assert {name: said[name] for name in score} == score
    assert len(judge.asked) == asked


def answer_files(folder: Path, number: int) -> list[Path]:
    return list((folder / f"runs/judged/trials/{number}").glob("answers-*.jsonl"))


def test_the_frontier_of_a_search_has_a_point_for_every_complete_trial(judged, tmp_path):
    folder, document, _, *_ = judged
    sampling = Sampling(samples=2, max_new_tokens=8, batch_size=8)
    said = search_frontier("judged", SearchPlace(folder / "runs"), Draw("vader", None, 4, sampling), tmp_path)
    complete = [f"judged:{trial['number']}" for trial in document["trials"]]
    assert [trial["model"] for trial in said["trials"]] == complete
    reward, kl = ({trial["model"]: trial[name]["mean"] for trial in said["trials"]} for name in ("reward", "kl"))
    dominated = {
        one
        for one in complete
        for other in complete
        if reward[other] >= reward[one]
        and kl[other] <= kl[one]
        and (reward[other], kl[other]) != (reward[one], kl[one])
    }
    assert set(said["pareto"]) == set(complete) - dominated
    assert (tmp_path / "frontier.png").exists()
