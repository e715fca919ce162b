"""The sides of a benchmark of whole searches: `tune-dlrml search`, and naive.py or one_process.py on the same trials.

Both get one search-space document, a grid over DPO and DiscoPOP or a list of points, and from it the same points in the
same order, pairs, batches, steps, rungs, seed, precision, adapter, CPUs and trials at once. Each decides by its own
successive halving.
A side's time runs from the start of its process to its end; its own Ray, an empty storage and empty caches of models
and data sets are part of it.
"""

import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.config import SearchConfig
from tune_dlrml.config.loading import parse_config
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.models.loading import package_file, parse_model_reference
from tune_dlrml.space import SearchSpace

NAIVE = Path(__file__).with_name("naive.py")
ONE_PROCESS = Path(__file__).with_name("one_process.py")
TRL_LOSSES = {"dpo": "sigmoid", "discopop": "discopop"}
TAU = 0.05
"""TRL's default of `discopop_tau`, which DPO does not look at: the points of naive.py must all have the same keys."""
TRAINING = (
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "bf16",
    "seed",
)
"""Settings that have the same names here and in TRL."""


@dataclass(frozen=True)
class Trial:
    """What one trial did.

    Attributes:
        steps: Optimizer steps that it trained.
        accuracy: Its last held-out accuracy.
        handover_s: From its hand-over (here: drawn by the sampler; naive: its actor runs) to the end of its first step.
        loading_s: Spent on loading the model; None where models stay loaded.
    """

    steps: int
    accuracy: float
    handover_s: float
    loading_s: float | None = None


@dataclass(frozen=True)
class Run:
    """What one side did in one repeat."""

    wall_s: float
    trials: list[Trial]

    @property
    def steps(self) -> int:
        return sum(trial.steps for trial in self.trials)


def points(config: SearchConfig) -> list[dict[str, Any]]:
    """The points that the search trains, in its order, in the words of TRL."""
    space = SearchSpace(config)
    given = space.grid() if config.search.points is None else config.search.points
    specs = (space.spec(number, point) for number, point in enumerate(given))
    return [
        trl_loss(spec.loss.flat()) | {"learning_rate": spec.training.learning_rate}
        for spec in itertools.islice(specs, config.search.num_trials)
    ]


def trl_loss(loss: Mapping[str, Any]) -> dict[str, Any]:
    """A loss in the words of TRL, where dLRML with a fixed mix c is DiscoPOP at tau = 1 / c."""
    if loss["name"] == "dlrml":
        return {"loss": "discopop", "beta": loss["beta_kl"], "discopop_tau": 1 / loss["c"]}
    return {"loss": TRL_LOSSES[loss["name"]], "beta": loss["beta"], "discopop_tau": loss.get("tau", TAU)}


def naive_settings(config: SearchConfig, out: Path) -> dict[str, Any]:
    """The search in the words of naive.py."""
    reference, training, scheduler = parse_model_reference(config.model), config.training, config.search.scheduler
    assert training.lora is not None and scheduler is not None
    model = Path(str(package_file(reference))) if reference.kind == "package" else Path(reference.location)
    return {
        "model": str(model.parent if model.is_file() else model),
        "gguf": model.name if model.is_file() else None,
        "train": config.dataset.train,
        "eval": config.dataset.eval,
        "points": points(config),
        "steps": training.max_steps,
        "grace_period": scheduler.grace_period,
        "reduction_factor": scheduler.reduction_factor,
        "training": {key: getattr(training, key) for key in TRAINING},
        "lora": training.lora.model_dump(),
        "dtype": dtype(config),
        "cpus": config.resources.cpus_per_worker,
        "concurrent": config.resources.concurrent_trials,
        "out": str(out),
    }


def dtype(config: SearchConfig) -> str:
    return "bfloat16" if config.training.in_bfloat16 else "float32"


def run_ours(document: Mapping[str, Any], folder: Path) -> Run:
    """The search by this project's command, in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text(as_yaml_text(dict(document)))
    program = Path(sys.executable).with_name("tune-dlrml")
    wall_s = _timed([program, "search", "space.yaml", "--storage", "runs"], folder)
    logs = sorted((folder / "runs").glob("*/trials/*/events.jsonl"), key=lambda path: int(path.parent.name))
    return Run(wall_s, [_our_trial(_events(log)) for log in logs])


def _our_trial(events: Sequence[Mapping[str, Any]]) -> Trial:
    if events[-1]["kind"] != "end" or events[-1]["state"] not in ("complete", "pruned", "diverged"):
        sys.exit(f"a trial did not end well: {events[-1]}")
    reports = [event for event in events if event["kind"] == "report"]
    accuracies = [event["metrics"]["eval_accuracy"] for event in reports if "eval_accuracy" in event["metrics"]]
    first = next(event for event in reports if event["step"] >= 1)
    return Trial(reports[-1]["step"], accuracies[-1], _seconds(events[0], first))


def run_other(program: Path, document: Mapping[str, Any], folder: Path) -> Run:
    """The search by naive.py or one_process.py, in a folder of its own."""
    folder.mkdir(parents=True)
    settings = naive_settings(parse_config(dict(document), source="the benchmark"), folder / "out")
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))
    wall_s = _timed([sys.executable, program, folder / "settings.json"], folder)
    logs = sorted((folder / "out" / "trials").glob("*.jsonl"), key=lambda path: _events(path)[0]["timestamp_ms"])
    return Run(wall_s, [_naive_trial(_events(log)) for log in logs])


def _naive_trial(events: Sequence[Mapping[str, Any]]) -> Trial:
    of_kind = {kind: [event for event in events if event["kind"] == kind] for kind in ("step", "report")}
    first = {kind: next(event for event in events if event["kind"] == kind) for kind in ("started", "worker", "loaded")}
    return Trial(
        of_kind["step"][-1]["step"],
        of_kind["report"][-1]["accuracy"],
        _seconds(first["started"], of_kind["step"][0]),
        _seconds(first["worker"], first["loaded"]),
    )


def _timed(command: Sequence[str | Path], folder: Path) -> float:
    """Seconds that a command takes that finds no cluster and no cache, and must succeed."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "RAY_", "PYTHONPATH"))}
    environment = kept | {
        "RAY_AUTH_TOKEN_PATH": str(token),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    with (folder / "said.txt").open("w") as said:
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said)
        wall_s = time.monotonic() - began
    if done.returncode != 0:
        said_last = (folder / "said.txt").read_text(errors="replace")[-3000:]
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said_last}")
    return wall_s


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _seconds(first: Mapping[str, Any], last: Mapping[str, Any]) -> float:
    return float(last["timestamp_ms"] - first["timestamp_ms"]) / 1000


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """The folder given, or one that is gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix="bench_")) if kept is None else kept.resolve()
    try:
        yield work
    finally:
        if kept is None:
            shutil.rmtree(work, ignore_errors=True)
