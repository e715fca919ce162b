"""The same search with and without `search.constraints`: what each calls its best, and how far that is.

Run: PYTHONPATH=tests python -m benchmarks.constrained [--out FOLDER] [--trials 12] [--max-kl 1] [--max-length 1.5]

A toy that has learnt to write reviews of a few sentences prefers longer and kinder ones. Three searches of one seed
look for the most reward of what it then writes (VADER sentiment of 32 held-out prompts): without constraints, with a
bound of `eval_kl`, and with one of `eval_length_ratio` beside it. Leaves the searches and constrained.json in the
folder, and goes on where it was if it is run again. Prints a table.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import toy

from benchmarks.frontier import command
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.system.files import replace_file

NUMBERS = {"eval_reward": "reward", "eval_kl": "KL", "eval_length_ratio": "length"}
CHOSEN, REJECTED = (0.7, range(2, 6)), (0.4, range(1, 5))
"""Share of kind sentences, and how many there are."""


def review(rng: random.Random, kind: float, counts: range) -> str:
    words = [toy.GOOD if rng.random() < kind else toy.BAD for _ in range(rng.choice(counts))]
    return "".join(f" the {rng.choice(toy.THINGS)} was {rng.choice(each)} ." for each in words)


def write_reviews(path: Path, count: int, seed: int) -> Path:
    rng = random.Random(seed)
    pairs = [
        {"prompt": f"review {index}:", "chosen": review(rng, *CHOSEN), "rejected": review(rng, *REJECTED)}
        for index in rng.sample(range(10**6), count)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def document(folder: Path, trials: int) -> dict[str, Any]:
    """The search without constraints."""
    folder.mkdir(parents=True, exist_ok=True)
    made = toy.document(
        toy.write_model(folder / "model"),
        write_reviews(folder / "train.jsonl", 512, seed=0),
        write_reviews(folder / "eval.jsonl", 64, seed=1),
    )
    made["training"] |= {"max_length": 96, "max_steps": 24, "lora": None}
    made["training"]["warm_up"] = {"rule": "logarithmic", "steps": 200, "learning_rate": 3e-3}
    made["completions"] = {"prompts": 32, "max_new_tokens": 64, "reward": "vader"}
    made["search"] = {"num_trials": trials, "n_startup_trials": 5, "metric": "eval_reward", "scheduler": None}
    made["space"] = {
        "losses": [{"name": "dpo", "beta": {"log_uniform": [0.02, 0.5]}}],
        "training": {"learning_rate": {"log_uniform": [1e-4, 4e-3]}},
    }
    return made


def searched(name: str, constraints: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The best of a search, which is run, or goes on, first; and the one that it would be without constraints."""
    made = document(arguments.out, arguments.trials)
    made["search"] |= {"constraints": constraints or None}
    space = arguments.out / f"{name}.yaml"
    space.write_text(as_yaml_text(made))
    found = command("search", str(space), "--name", name, "--storage", str(arguments.out / "searches"))
    above = found["best_infeasible"]
    return {
        "constraints": constraints,
        "best": told(found, found["best"]),
        "without": told(found, found["best"] if above is None else above),
        "infeasible": sum(not trial["feasible"] for trial in found["trials"]),
        "trials": len(found["trials"]),
    }


def told(document: dict[str, Any], number: int | None) -> dict[str, Any] | None:
    if number is None:
        return None
    trial = document["trials"][number]
    return {"trial": number} | {word: trial["metrics"][name] for name, word in NUMBERS.items()}


def shown(trial: dict[str, Any] | None) -> str:
    return " ".join(f"{'-' if trial is None else form.format(trial[key]):>7}" for key, form in FORMS.items())


FORMS = {"trial": "{}", "reward": "{:.3f}", "KL": "{:.2f}", "length": "{:.2f}"}


def table(found: dict[str, dict[str, Any]]) -> None:
    headings = " ".join(f"{key:>7}" for key in FORMS)
    print(f"{'search':12} {'infeasible':>10}  {'best':^31}   {'best without constraints':^31}")
    print(f"{'':12} {'':>10}  {headings}   {headings}")
    for name, one in found.items():
        share = f"{one['infeasible']} of {one['trials']}"
        print(f"{name:12} {share:>10}  {shown(one['best'])}   {shown(one['without'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs") / "constrained")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--max-kl", type=float, default=1.0, help="nats a completion")
    parser.add_argument("--max-length", type=float, default=1.5, help="times the untrained model's")
    arguments = parser.parse_args()
    kl = {"eval_kl": {"max": arguments.max_kl}}
    length = {"eval_length_ratio": {"max": arguments.max_length}}
    searches: dict[str, dict[str, Any]] = {"free": {}, "kl": kl, "kl-length": kl | length}
    found = {name: searched(name, constraints, arguments) for name, constraints in searches.items()}
    replace_file(arguments.out / "constrained.json", json.dumps(found, indent=1))
    table(found)


if __name__ == "__main__":
    main()
