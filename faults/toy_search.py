"""A search over the toy model as a process of its own, and what it left behind, for those who kill it."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil
import toy

from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.records import State
from tune_dlrml.study.history import StudyHistory, TrialRow

PROGRAM = Path(sys.executable).with_name("tune-dlrml")
PROGRESS_S = 90.0
"""A search that was started again must have a new report by then."""
POLL_S = 0.05


class Failure(AssertionError):
    """What a fault run found to be wrong."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Failure(text)


class ToySearch:
    """One search of the toy in a folder of its own, with rungs that really prune: its objective is a margin."""

    def __init__(
        self,
        folder: Path,
        *,
        trials: int = 12,
        steps: int = 240,
        resources: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "said.txt").touch()
        self.folder = folder
        self.environment: dict[str, str] = {}
        self.name, self.trials, self.steps = "toy", trials, steps
        document = toy.document(
            toy.write_model(folder / "model"),
            toy.write_pairs(folder / "train.jsonl", 256),
            toy.write_pairs(folder / "eval.jsonl", 64, seed=1),
        )
        document["training"] |= {"max_steps": steps}
        document["checkpoint"] = {"save_steps": 20}
        document["resources"] = resources or {}
        document["search"] = {
            "num_trials": trials,
            "n_startup_trials": 4,
            "metric": "eval_margin",
            "scheduler": {"grace_period": steps // 8, "reduction_factor": 2},
        } | settings
        (folder / "toy.yaml").write_text(as_yaml_text(document))

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def place(self) -> Path:
        return self.runs / self.name

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line as a user would start it; what it says goes to a file."""
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | self.environment
        with (self.folder / "said.txt").open("a") as said:
            return subprocess.Popen(
                [PROGRAM, "search", "toy.yaml", *arguments],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=said,
                text=True,
            )

    def run(self, *arguments: str, timeout_s: float = 900) -> None:
        """To the end, which must be a success."""
        code = self.start(*arguments).wait(timeout_s)
        require(code == 0, f"the search ended with exit code {code}: {self.said()[-2000:]}")

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def reports(self, number: int) -> list[dict[str, Any]]:
        """Reports of one trial in its event log, which must be whole but for the line being written."""
        return [event for event in self.events(number) if event["kind"] == "report"]

    def events(self, number: int) -> list[dict[str, Any]]:
        path = self.place / "trials" / str(number) / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def progress(self) -> int:
        """Reports of all trials."""
        return sum(len(self.reports(number)) for number in range(self.trials))

    def rows(self) -> list[TrialRow]:
        url = self.environment.get("TUNE_DLRML_STUDY_URL") or f"sqlite:///{self.place / 'study.db'}"
        history = StudyHistory.open(url, self.name)
        try:
            return history.rows()
        finally:
            history.close()

    def scratch(self) -> str | None:
        """Temporary folder of the driver that runs now."""
        record = self.place / "scratch.json"
        return json.loads(record.read_text())["folder"] if record.exists() else None

    def processes(self, titles: tuple[str, ...]) -> list[psutil.Process]:
        """Ray's processes of this search whose title begins with one of these."""
        found, scratch = [], self.scratch()
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR") == scratch and " ".join(process.cmdline()).startswith(titles):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def weights(self, number: int) -> bytes:
        """The adapter that a complete trial ended with."""
        (path,) = (self.place / "trials" / str(number)).glob(
            f"attempt-*/checkpoint-{self.steps}/adapter_model.safetensors"
        )
        return path.read_bytes()


@functools.cache
def undisturbed(seed: int) -> ToySearch:
    """The search of that seed which nobody disturbs; made once for all that are compared with it."""
    search = ToySearch(Path(_KEPT.name) / str(seed), **SIZE, seed=seed)
    search.run()
    return search


SIZE: dict[str, Any] = {"trials": 12, "steps": 400, "max_failures": 30}
_KEPT = tempfile.TemporaryDirectory(prefix="fault_undisturbed_")


def wait_for(
    condition: Callable[[], object], timeout_s: float, what: str, driver: subprocess.Popen[str] | None = None
) -> None:
    """Wait until something is so; a driver that ends meanwhile ends the wait, too."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if driver is not None and driver.poll() is not None:
            return
        require(time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def outcome(rows: list[TrialRow]) -> list[tuple[Any, ...]]:
    """What a search decided, trial by trial."""
    return [(row.number, dict(row.params), row.state, row.steps, row.value, row.stop_reason) for row in rows]


def check_ended(search: ToySearch) -> None:
    """Exactly the trials that were asked for, all ended as trials should, and each step of each reported once."""
    rows = search.rows()
    require(
        [row.number for row in rows] == list(range(search.trials)), f"{len(rows)} trials instead of {search.trials}"
    )
    odd = [row for row in rows if row.state not in (State.COMPLETE, State.PRUNED)]
    require(not odd, f"trials that did not end well: {[(row.number, row.state, row.stop_reason) for row in odd]}")
    for row in rows:
        steps = [report["step"] for report in search.reports(row.number)]
        require(steps == list(range(row.steps + 1)), f"trial {row.number} of {row.steps} steps reported {steps}")


def check_mlflow(search: ToySearch, uri: str | None = None) -> int:
    """Every metric of the event logs is in MLflow once, with its time, and every trial has one run. How many points."""
    client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{search.runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tune_dlrml")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "tune_dlrml.trial" in run.data.tags]
    numbers = sorted(int(run.data.tags["tune_dlrml.trial"]) for run in children)
    require(len(runs) - len(children) == 1, f"{len(runs) - len(children)} parent runs")
    require(numbers == list(range(search.trials)), f"runs of trials {numbers}")
    points = 0
    for run in children:
        number = int(run.data.tags["tune_dlrml.trial"])
        require(run.info.status == "FINISHED", f"the run of trial {number} is {run.info.status}")
        points += _check_metrics(client, run.info.run_id, search.reports(number))
    return points


def _check_metrics(client: mlflow.MlflowClient, run: str, reports: list[dict[str, Any]]) -> int:
    expected: dict[str, list[tuple[int, int, float]]] = {}
    for report in reports:
        for name, value in report["metrics"].items():
            expected.setdefault(name, []).append((report["step"], report["timestamp_ms"], value))
    for name, points in expected.items():
        history = client.get_metric_history(run, name)
        found = sorted((point.step, point.timestamp, point.value) for point in history)
        require(found == sorted(points), f"{name} of run {run}: {len(found)} points instead of {len(points)}")
    return sum(len(points) for points in expected.values())


@contextmanager
def ended_afterwards(driver: subprocess.Popen[str]) -> Iterator[None]:
    """Do not leave a driver running when a check fails."""
    try:
        yield
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGTERM)
            try:
                driver.wait(60)
            except subprocess.TimeoutExpired:
                driver.kill()


def row(name: str, tried: int, failures: list[str], detail: str) -> dict[str, Any]:
    """One line of the table."""
    return {"name": name, "tried": tried, "failed": len(failures), "detail": "; ".join([*failures, detail])}


def generator(name: str, seed: int) -> random.Random:
    return random.Random(f"{seed}/{name}")
