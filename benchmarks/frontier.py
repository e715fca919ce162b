"""Reward against KL of DPO, DiscoPOP and dLRML at several strengths and seeds, on the embedded model.

Run: PYTHONPATH=tests python -m benchmarks.frontier [--out FOLDER] [--seeds 0 1 2] [--samples 2]
[--limit 64] [--set training.max_steps=40]

Searches search_spaces/imdb-small.yaml once for each training seed, samples from the base model and every complete
trial, and leaves frontier.png and frontier.json in the folder, with the searches. Run again, it goes on where it was.
Prints a table.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tune_dlrml.config import load_config
from tune_dlrml.evaluation.frontier.picture import Setting, frontier, mean_position
from tune_dlrml.evaluation.frontier.points import FrontierPoint
from tune_dlrml.evaluation.frontier.rewards import VADER, load_reward
from tune_dlrml.pareto import pareto_front
from tune_dlrml.system.files import replace_file

SPACE = Path(__file__).parents[1] / "search_spaces" / "imdb-small.yaml"


def command(*arguments: str) -> dict[str, Any]:
    """What one command of the project says as JSON; its messages go to this program's stderr."""
    program = Path(sys.executable).with_name("tune-dlrml")
    done = subprocess.run([program, *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"tune-dlrml {' '.join(arguments)} ended with {done.returncode}; the same command resumes")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measured(seed: int, arguments: argparse.Namespace) -> list[tuple[Setting, FrontierPoint]]:
    """The points of the search with this training seed, which is run, or goes on, first."""
    name, storage = f"imdb-small-{seed}", str(arguments.out / "searches")
    changes = [text for change in (f"training.seed={seed}", *arguments.settings) for text in ("--set", change)]
    command("search", str(SPACE), "--name", name, *changes, "--storage", storage)
    document = command("evaluate", "frontier", name, *sampling(arguments), "--storage", storage)
    return [(Setting(trial["label"], trial["note"]), FrontierPoint.from_json(trial)) for trial in document["trials"]]


def sampling(arguments: argparse.Namespace) -> list[str]:
    numbers = f"--samples {arguments.samples} --limit {arguments.limit} --batch-size 32"
    return ["--reward", VADER, *numbers.split()]


def table(points: dict[Setting, list[FrontierPoint]]) -> None:
    positions = [mean_position(policies) for policies in points.values()]
    front = pareto_front([(position.kl, position.reward) for position in positions])
    label, note = max(14, *(len(key.label) for key in points)), max(9, *(len(key.note) for key in points))
    numbers = f"{'seeds':>5} {'reward':>8} {'KL, nats':>9}   reward and KL of each seed, 95 %"
    print(f"{'loss':{label}} {'strength':{note}} {numbers}")
    for index, (key, policies) in enumerate(points.items()):
        reward, kl = positions[index]
        each = "; ".join(
            f"{p.reward.interval[0]:.3f}..{p.reward.interval[1]:.3f} at {p.kl.interval[0]:.2f}..{p.kl.interval[1]:.2f}"
            for p in policies
        )
        mark = " front" if index in front else ""
        print(f"{key.label:{label}} {key.note:{note}} {len(policies):5} {reward:8.3f} {kl:9.3f}   {each}{mark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/frontier"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training")
    parser.add_argument("--samples", type=int, default=2, help="completions of each prompt")
    parser.add_argument("--limit", type=int, default=64, help="prompts")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of the searches")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    points: dict[Setting, list[FrontierPoint]] = defaultdict(list)
    for seed in arguments.seeds:
        for setting, point in measured(seed, arguments):
            points[setting].append(point)
    untrained = command(
        "evaluate", "frontier", load_config(SPACE).model, *sampling(arguments), "--out", str(out / "untrained")
    )
    points[Setting("untrained")] = [FrontierPoint.from_json(untrained)]
    frontier(points, reward=load_reward(VADER).meaning).savefig(out / "frontier.png")
    numbers = [
        {"label": key.label, "note": key.note, **policy.as_json()}
        for key, policies in points.items()
        for policy in policies
    ]
    replace_file(out / "frontier.json", json.dumps(numbers, indent=2))
    table(points)


if __name__ == "__main__":
    main()
