"""Which settings of dLRML and DiscoPOP fail, and how: beta_kl x beta_mix, and beta, with both numerics, on the toy.

Run: PYTHONPATH=tests python -m benchmarks.stability [--out FOLDER] [--seeds 0 1 2] [--steps 40]

One grid search for each training seed; run again, it goes on where it was. A run has failed if a step was not finite,
if more than half of the held-out pairs are trapped at its end, or if its held-out accuracy at the end is below one
half; the three are counted apart, and a run can fail in more than one way. A run that ended as diverged was evaluated
nowhere, so it is only counted as not finite or as diverged otherwise. The numbers go to stability.json in the folder,
the maps to the searches' own reports.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import toy
from rich.console import Console
from rich.table import Table

from tune_dlrml.config.yaml_text import as_yaml_text

BETAS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5]
MIXES = [0.05, 0.1, 0.2, 0.25, 0.5]
ALONE = [*BETAS, 1.0, 2.5]
TAU = 0.05


@dataclass(frozen=True)
class Run:
    """One trial: its setting, its seed, and in which ways it failed."""

    loss: str
    numerics: str
    beta_kl: float
    beta_mix: float
    seed: int
    diverged: bool
    nonfinite: bool
    trapped: bool
    wrong: bool
    accuracy: float | None
    stop_reason: str

    @property
    def failed(self) -> bool:
        return self.diverged or self.nonfinite or self.trapped or self.wrong

    @property
    def c(self) -> float:
        return self.beta_mix / (TAU * self.beta_kl)


def document(folder: Path, steps: int) -> dict[str, Any]:
    """The grid as a search file of the toy: 0.1 M parameters, LoRA, float32."""
    numerics = {"choice": ["stable", "published"]}
    training = {
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "max_length": 64,
        "max_steps": steps,
        "logging_steps": 10,
        "bf16": False,
        "lora": {"r": 4, "lora_alpha": 8},
    }
    mixed = {
        "name": "dlrml",
        "beta_kl": {"choice": BETAS},
        "beta_mix": {"choice": MIXES},
        "tau": TAU,
        "numerics": numerics,
    }
    alone = {"name": "discopop", "beta": {"choice": ALONE}, "tau": TAU, "numerics": numerics}
    return toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", 256),
        toy.write_pairs(folder / "eval.jsonl", 64, seed=1),
        name="stability",
        training=training,
        search={"sampler": "grid", "scheduler": None, "baseline": None},
        space={"losses": [mixed, alone]},
    )


def trials(space: Path, seed: int, storage: Path) -> list[dict[str, Any]]:
    """The trials of the search with this training seed, which is run, or goes on, first."""
    program = Path(sys.executable).with_name("tune-dlrml")
    name = f"stability-{seed}"
    arguments = ["search", str(space), "--name", name, "--set", f"training.seed={seed}", "--storage", str(storage)]
    done = subprocess.run([program, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} ended with {done.returncode}; the same command resumes")
    found: list[dict[str, Any]] = json.loads(done.stdout)["trials"]
    return found


def run_of(trial: Mapping[str, Any], seed: int) -> Run:
    params, metrics, complete = trial["params"], trial["metrics"], trial["state"] == "complete"
    nonfinite = any(metrics.get(f"nonfinite_{of}_fraction", 0.0) > 0 for of in ("loss", "grad"))
    accuracy = metrics["eval_accuracy"] if complete else None
    return Run(
        loss=params["loss"],
        numerics=params["numerics"],
        beta_kl=params.get("beta_kl", params.get("beta")),
        beta_mix=params.get("beta_mix", params.get("beta")),
        seed=seed,
        diverged=trial["state"] == "diverged",
        nonfinite=nonfinite or "not finite" in trial["stop_reason"],
        trapped=complete and metrics["eval_trap_fraction"] > 0.5,
        wrong=accuracy is not None and accuracy < 0.5,
        accuracy=accuracy,
        stop_reason=trial["stop_reason"],
    )


def share(runs: Iterable[Run], way: str) -> str:
    found = [bool(getattr(run, way)) for run in runs]
    return f"{sum(found)}/{len(found)}" if found else "-"


def show(runs: list[Run]) -> None:
    """A line for each setting of a loss, both numerics, all seeds; then the three expectations."""
    table = Table("loss", "numerics", "beta_kl", "beta_mix", "c", "not finite", "diverged", "trapped", "accuracy < 0.5")
    table.add_column("accuracy by seed")
    settings: dict[tuple[str, str, float, float], list[Run]] = defaultdict(list)
    for run in runs:
        settings[run.loss, run.numerics, run.beta_kl, run.beta_mix].append(run)
    for (loss, numerics, beta_kl, beta_mix), own in sorted(settings.items()):
        each = ", ".join("-" if run.accuracy is None else f"{run.accuracy:.2f}" for run in own)
        ways = (share(own, way) for way in ("nonfinite", "diverged", "trapped", "wrong"))
        table.add_row(loss, numerics, f"{beta_kl:g}", f"{beta_mix:g}", f"{own[0].c:.3g}", *ways, each)
    Console(width=140).print(table)
    discopop = [run for run in runs if run.loss == "discopop"]
    for numerics in ("published", "stable"):
        large = [run for run in discopop if run.beta_kl >= 0.25 and run.numerics == numerics]
        small = [run for run in discopop if run.beta_kl < 0.25 and run.numerics == numerics]
        print(
            f"DiscoPOP, {numerics}: failed {share(large, 'failed')} at beta >= 0.25, {share(small, 'failed')} below it"
        )
        mixed = [run for run in runs if run.loss == "dlrml" and run.numerics == numerics]
        inside = [run for run in mixed if run.c <= 9.109]
        print(
            f"dLRML, {numerics}: not finite {share(mixed, 'nonfinite')}, trapped {share(mixed, 'trapped')}, accuracy "
            f"below 0.5 {share(mixed, 'wrong')}; of c <= 9.109 failed {share(inside, 'failed')}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stability"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    space = out / "stability.yaml"
    if not space.exists():
        space.write_text(as_yaml_text(document(out, arguments.steps)))
    runs = [run_of(trial, seed) for seed in arguments.seeds for trial in trials(space, seed, out / "searches")]
    (out / "stability.json").write_text(json.dumps([asdict(run) for run in runs], indent=1))
    show(runs)


if __name__ == "__main__":
    main()
