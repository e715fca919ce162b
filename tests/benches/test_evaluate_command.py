"""What `tune-dlrml evaluate` makes of its options, and how it ends."""

import json
import signal
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import toy
from command_line import started, without
from evaluation.endpoint_server import LATE, Act, EndpointServer
from typer.testing import CliRunner

from tune_dlrml.benches import request as requests
from tune_dlrml.cli.evaluate import folder_name
from tune_dlrml.cli.main import app
from tune_dlrml.config import JudgeLimits
from tune_dlrml.config.yaml_text import as_yaml_text

SOON_S = 90
"""Below the two minutes that a request may take, of which each has eight tries."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[requests.Request]:
    """The requests of the commands that a test gives, none of which is carried out."""
    made: list[requests.Request] = []

    def check(request: requests.Request) -> None:
        made.append(request)
        raise SystemExit(0)

    monkeypatch.setattr(requests.Request, "check", check)
    return made


def test_the_limits_hold_for_judges_and_for_a_served_model(asked):
    options = "--max-calls 5 --max-tokens 600 --deadline-s 70 --timeout-s 8 --judge openai:judge"
    CliRunner().invoke(app, ["evaluate", "openai:policy", "--model-url", "http://127.0.0.1:1/v1", *options.split()])
    (request,) = asked
    assert request.evaluation().limits == JudgeLimits(max_calls=5, max_tokens=600, deadline_s=70, timeout_s=8)
    served: Any = request.subject()
    settings = served.settings
    assert (settings.max_calls, settings.max_tokens, settings.deadline_s, settings.timeout_s) == (5, 600, 70, 8)


@pytest.mark.parametrize("form", ["option", "variable"])
def test_the_studys_database_is_given_as_to_the_other_commands(asked, form):
    url = "postgresql://somebody@db.example/studies"
    options = ["--study-url", url] if form == "option" else []
    environment = {"TUNE_DLRML_STUDY_URL": url} if form == "variable" else {}
    CliRunner(env=environment).invoke(app, ["evaluate", "search:0", *options])
    assert asked[0].place.study == url
    assert url not in repr(asked[0])


def test_a_trial_is_looked_for_in_the_study_that_was_named(tmp_path):
    """A database that no study can be in is refused, so it was looked at."""
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    document = toy.document(tmp_path / "model", tmp_path / "train.jsonl", tmp_path / "eval.jsonl")
    (folder / "search.yaml").write_text(as_yaml_text(document))
    options = ["--storage", str(tmp_path / "runs"), "--study-url", "mysql://db.example/studies", "--bench", "frontier"]
    for model in ("toy:0", "toy"):
        failed = CliRunner().invoke(app, ["evaluate", model, *options])
        assert "postgresql" in str(failed.exception).lower()


def test_models_whose_names_have_the_same_letters_have_folders_of_their_own():
    names = ["org/model", "org-model", "org:model", "org/model@main"]
    folders = [folder_name("mt-bench", name) for name in names]
    assert len(set(folders)) == len(names)
    assert all("/" not in folder and folder.startswith("mt-bench-org-model-") for folder in folders)
    assert folder_name("mt-bench", names[0]) == folders[0] != folder_name("frontier", names[0])
    assert len(folder_name("mt-bench", "x" * 1000)) < 200


@dataclass
class Interrupted:
    """A command of which requests are under way, and what it printed once it was told to end."""

    process: subprocess.Popen[str]
    under_way: threading.Event
    said: str = ""

    def end(self) -> None:
        try:
            assert self.under_way.wait(120)
            self.process.send_signal(signal.SIGTERM)  # as Ctrl-C, also where a shell has Ctrl-C ignored
            _, self.said = self.process.communicate(timeout=SOON_S)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Interrupted]:
    """One command for each of those that can be asked; they start together, since each is busy with imports first."""
    folder = tmp_path_factory.mktemp("interrupted")
    model = str(toy.write_model(folder / "model"))
    rows = [{"instruction": f"say {n}", "output": f"said {n}", "generator": "baseline"} for n in range(3)]
    (folder / "baseline.json").write_text(json.dumps(rows))
    comparing = ["--bench", "alpaca-eval", "--baseline", "baseline.json"]
    arguments = {"judge": [model], "comparer": [model, *comparing], "model": ["openai:policy"]}
    with ExitStack() as servers:
        running = {who: evaluating(words, folder, servers) for who, words in arguments.items()}
        for one in running.values():
            one.end()
    return running


def evaluating(arguments: list[str], folder: Path, servers: ExitStack) -> Interrupted:
    """An evaluation whose server answers no request."""
    under_way = threading.Event()

    def act(messages: list[dict[str, str]]) -> Act:
        under_way.set()
        return LATE

    url = servers.enter_context(EndpointServer(act)).url
    options = ["--limit", "3", "--max-new-tokens", "8", "--judge", "openai:judge"]
    argv = ["evaluate", *arguments, "--judge-url", url, "--model-url", url, *options]
    process = started(*argv, folder=folder, environment=without("OPENAI_API_KEY"))
    servers.callback(process.kill)
    return Interrupted(process, under_way)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["judge", "comparer", "model"])
def test_an_interrupt_ends_the_process_though_requests_are_under_way(interrupted, who):
    assert interrupted[who].process.returncode == 130, interrupted[who].said
    assert "the same command goes on" in interrupted[who].said
