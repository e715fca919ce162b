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

from tune_dlrml.cli.benches import BENCHES, AlpacaEval, BenchOptions, Frontier, MtBench, WinRate
from tune_dlrml.cli.evaluate import folder_name
from tune_dlrml.cli.main import app
from tune_dlrml.config import JudgeLimits
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.errors import InputError

SOON_S = 90
"""Below the two minutes that a request may take, of which each has eight tries."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchOptions]:
    """What the commands that a test gives are told, none of which is carried out."""
    made: list[BenchOptions] = []

    def prepare(options: BenchOptions, out: Path, environment_key: str | None) -> Any:
        made.append(options)
        raise SystemExit(0)

    for bench in BENCHES:
        monkeypatch.setattr(bench, "prepare", prepare)
    return made


def test_the_limits_hold_for_judges_and_for_a_served_model(asked):
    options = "--max-calls 5 --max-tokens 600 --deadline-s 70 --timeout-s 8 --judge openai:judge"
    command = ["evaluate", "mt-bench", "openai:policy", "--model-url", "http://127.0.0.1:1/v1", *options.split()]
    CliRunner().invoke(app, command)
    (told,) = asked
    assert told.evaluation().limits == JudgeLimits(max_calls=5, max_tokens=600, deadline_s=70, timeout_s=8)
    settings = told.subject(None).settings
    assert (settings.max_calls, settings.max_tokens, settings.deadline_s, settings.timeout_s) == (5, 600, 70, 8)


def test_each_bench_has_its_own_options_and_defaults(asked):
    for bench in BENCHES:
        assert CliRunner().invoke(app, ["evaluate", bench.bench, "org/model"]).exit_code == 0
    assert [(type(told), told.model, told.max_new_tokens) for told in asked] == [
        (MtBench, "org/model", 1024),
        (AlpacaEval, "org/model", 2048),
        (WinRate, "org/model", 128),
        (Frontier, "org/model", 48),
    ]
    for bench, option in [
        ("mt-bench", "--reward=vader"),
        ("alpaca-eval", "--samples=2"),
        ("frontier", "--engine=vllm"),
    ]:
        refused = CliRunner().invoke(app, ["evaluate", bench, "org/model", option])
        assert (refused.exit_code, option.partition("=")[0] in refused.output) == (2, True)


def test_an_engine_is_one_of_the_table_that_loads_a_model_here(asked):
    for engine in ("transformers", "vllm"):
        CliRunner().invoke(app, ["evaluate", "mt-bench", "org/model", "--engine", engine])
    assert [told.engine for told in asked] == ["transformers", "vllm"]
    for engine in ("endpoint", "other"):
        refused = CliRunner().invoke(app, ["evaluate", "mt-bench", "org/model", "--engine", engine])
        assert "not one of transformers, vllm" in refused.output
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("quickstart:0", "mt-bench"),
        ("quickstart:0 --bench frontier --reward vader", "frontier"),
        ("quickstart:0 --bench=alpaca-eval", "alpaca-eval"),
        ("--bench frontier quickstart", "frontier"),
        ("--judge openai:m quickstart:0", "mt-bench"),
    ],
)
def test_a_command_without_its_bench_in_front_is_refused_with_the_spelling(words, meant):
    refused = CliRunner().invoke(app, ["evaluate", *words.split()])
    assert isinstance(refused.exception, InputError)
    assert f"give `tune-dlrml evaluate {meant} MODEL`" in str(refused.exception)


@pytest.mark.parametrize("form", ["option", "variable"])
def test_the_studys_database_is_given_as_to_the_other_commands(asked, form):
    url = "postgresql://somebody@db.example/studies"
    options = ["--study-url", url] if form == "option" else []
    environment = {"TUNE_DLRML_STUDY_URL": url} if form == "variable" else {}
    CliRunner(env=environment).invoke(app, ["evaluate", "mt-bench", "search:0", *options])
    assert asked[0].place.study == url
    assert url not in repr(asked[0])


def test_a_trial_is_looked_for_in_the_study_that_was_named(tmp_path):
    """A database that no study can be in is refused, so it was looked at."""
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    document = toy.document(tmp_path / "model", tmp_path / "train.jsonl", tmp_path / "eval.jsonl")
    (folder / "search.yaml").write_text(as_yaml_text(document))
    options = ["--storage", str(tmp_path / "runs"), "--study-url", "mysql://db.example/studies"]
    for model in ("toy:0", "toy"):
        failed = CliRunner().invoke(app, ["evaluate", "frontier", model, *options])
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
    comparing = ["alpaca-eval", model, "--baseline", "baseline.json"]
    arguments = {"judge": ["mt-bench", model], "comparer": comparing, "model": ["mt-bench", "openai:policy"]}
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
    assert "the same command resumes" in interrupted[who].said
