"""Which metric ranks settings most repeatably: ten settings under ten seeds.

Run: PYTHONPATH=tests python -m benchmarks.objectives [--on toy] [--out FOLDER] [--seeds 0 1 2]
[--table] [--without SETTING]

On the model, pairs, batches and adapter of search_spaces/quickstart.yaml, or on the toy, a quarter of whose pairs are
swapped. One process trains all trials in turn; a seed moves the initialisation of the adapter and the order of the
pairs. What a trial reports at its end goes to trials.jsonl in the folder at once; run again, it goes on where it was.
The table is made of that file, of the seeds that have every setting; `--table` trains none. A trial that diverged
counts as the untrained reference.

Of x_sk, a metric of setting s under seed k, without the mean of each seed, which does not change its ranking:

- share: of the variance, what lies between settings: the intraclass correlation for consistency of one value, ICC(C, 1)
  of McGraw and Wong (1996), (B - E) / (B + (K - 1) E) with the mean squares B between settings and E of the rest.
- tau: Kendall's tau-b of the rankings under two seeds, mean over all pairs of seeds.
- seeds: how many two settings need to be told apart at 5 % with a power of 80 %, (1.96 + 0.84)^2 v / d^2 with mean d
  and variance v of their difference under the same seed; median over all pairs of settings.
- with accuracy, with KL: tau-b of the settings' means over seeds with those of eval_accuracy and eval_kl.

Intervals are 95 % of a bootstrap over settings, and so are those of the difference from eval_accuracy.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import toy
import toy_training
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tune_dlrml.config import SearchConfig, load_config
from tune_dlrml.config.loading import parse_config
from tune_dlrml.data import select_pairs
from tune_dlrml.metrics import METRICS, UNTRAINED
from tune_dlrml.search.validity import reader_of_model
from tune_dlrml.training.resident import Resident

Values = NDArray[np.float64]
"""A metric by setting and seed, shape (settings, seeds)."""
RESAMPLES = 4000
OF_BOTH_ERRORS = (1.96 + 0.84) ** 2
QUICKSTART = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
SLOW, USUAL, FAST = 0.25, 1.0, 3.0
"""Times the learning rate of the model."""
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "dpo 0.02": ({"name": "dpo", "beta": 0.02}, USUAL),
    "dpo 0.1": ({"name": "dpo", "beta": 0.1}, USUAL),
    "dpo 0.5": ({"name": "dpo", "beta": 0.5}, USUAL),
    "dpo 0.1, slow": ({"name": "dpo", "beta": 0.1}, SLOW),
    "ipo 0.1": ({"name": "ipo", "beta": 0.1}, USUAL),
    "hinge 0.1": ({"name": "hinge", "beta": 0.1}, USUAL),
    "apo_zero 0.1": ({"name": "apo_zero", "beta": 0.1}, USUAL),
    "dlrml 0.1, c 4": ({"name": "dlrml", "beta_kl": 0.1, "c": 4}, USUAL),
    "dlrml 0.1, c 4, fast": ({"name": "dlrml", "beta_kl": 0.1, "c": 4}, FAST),
    "discopop 0.05, trapped": ({"name": "discopop", "beta": 0.05, "tau": 0.05}, USUAL),
}
"""Loss and factor on the learning rate, by name."""
COMPARED = [name for name, metric in METRICS.items() if metric.objective or name == "eval_kl"]

Trial = dict[str, Any]
"""A line of trials.jsonl: `setting`, `seed`, `state`, and the numbers of its last report."""


def quickstart(folder: Path) -> SearchConfig:
    return load_config(QUICKSTART)


def of_toy(folder: Path) -> SearchConfig:
    """The toy with pairs that none can rank without fault, one completion of each being two sentences long."""
    training = {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "max_steps": 20, "max_length": 128}
    document = toy.document(
        toy.write_model(folder / "model"),
        write_noisy(folder / "train.jsonl", 256, 0),
        write_noisy(folder / "eval.jsonl", 128, 1),
    )
    return parse_config(document | {"training": document["training"] | training}, source="the toy")


def write_noisy(path: Path, count: int, seed: int) -> Path:
    rng, pairs = random.Random(seed), toy.pairs(count, seed)
    for pair in pairs:
        longer = "chosen" if rng.random() < 0.6 else "rejected"
        pair[longer] += " " + toy.sentence(toy.GOOD + toy.BAD, rng)
        if rng.random() < 0.25:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


MODELS = {"quickstart": quickstart, "toy": of_toy}


def train(lines: Path, of_model: Callable[[Path], SearchConfig], seeds: Sequence[int]) -> None:
    """Train what the file lacks, seed by seed, and append a line for each trial."""
    known = {(trial["setting"], trial["seed"]) for trial in read(lines)}
    missing = [(name, seed) for seed in seeds for name in SETTINGS if (name, seed) not in known]
    if not missing:
        return
    config = of_model(lines.parent)
    training = config.training
    pairs = select_pairs(config.dataset, training, lambda: reader_of_model(config)).pairs()
    resident = Resident.load(config.model, pairs, training)
    budget = toy_training.plan(training.steps(len(pairs.train), workers=1))
    for name, seed in missing:
        loss, factor = SETTINGS[name]
        own = training.at({"learning_rate": factor * training.learning_rate, "seed": seed})
        outcome, channel = toy_training.run(resident, loss, own, budget)
        assert outcome is not None, "nothing says stop"
        trial = {"setting": name, "seed": seed, "state": outcome.state} | channel.reports[-1].metrics
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")


def read(lines: Path) -> list[Trial]:
    return [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []


def numbers(trial: Trial) -> dict[str, float]:
    """What is compared of a trial; of one that diverged, the numbers of the untrained reference."""
    found = trial if trial["state"] == "complete" else UNTRAINED
    return {name: found[name] for name in COMPARED if name in found}


def share_between(values: Values) -> float:
    """Share of the variance between settings, 0 where nothing varies."""
    settings, seeds = values.shape
    centred = values - values.mean(axis=0)
    means = centred.mean(axis=1)
    between = seeds * (means**2).sum() / (settings - 1)
    rest = ((centred - means[:, None]) ** 2).sum() / ((settings - 1) * (seeds - 1))
    total = between + (seeds - 1) * rest
    return float((between - rest) / total) if total else 0.0


def mean_tau(values: Values) -> float:
    """Mean over pairs of seeds of tau-b: the cosine of the signs of all differences between two settings."""
    one, other = np.triu_indices(len(values), 1)
    signs = np.sign(values[one] - values[other])
    lengths = np.linalg.norm(signs, axis=0)
    products = signs.T @ signs / np.maximum(np.outer(lengths, lengths), 1e-12)
    return float(products[np.triu_indices(values.shape[1], 1)].mean())


def seeds_needed(values: Values) -> float:
    """Seeds that tell two settings apart, median over their pairs."""
    one, other = np.triu_indices(len(values), 1)
    differences = values[one] - values[other]
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = OF_BOTH_ERRORS * differences.var(axis=1, ddof=1) / differences.mean(axis=1) ** 2
    return float(np.median(np.nan_to_num(needed, nan=math.inf)))


def resampled(values: Values, measure: Callable[[Values], float]) -> Values:
    """A measure of settings drawn with replacement, the same ones for every metric, shape (RESAMPLES,)."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return np.array([measure(values[drawn]) for drawn in draws if len({*drawn}) > 1])


def with_interval(value: float, draws: Values) -> str:
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def lines_of(values: Mapping[str, Values]) -> Iterator[tuple[str, ...]]:
    """A line of the table for each metric."""
    measures = (share_between, mean_tau)
    accuracy = [resampled(values["eval_accuracy"], measure) for measure in measures]
    for name, own in values.items():
        shown = []
        for measure, theirs in zip(measures, accuracy, strict=True):
            draws = resampled(own, measure)
            shown.append(with_interval(measure(own), draws))
            more = measure(own) - measure(values["eval_accuracy"])
            shown.append("" if name == "eval_accuracy" else with_interval(more, draws - theirs))
        means = own.mean(axis=1)
        with_others = (
            mean_tau(np.stack([means, values[other].mean(axis=1)], axis=1)) for other in ("eval_accuracy", "eval_kl")
        )
        yield (
            name,
            *shown,
            f"{math.ceil(needed)}" if (needed := seeds_needed(own)) < math.inf else "-",
            *(f"{tau:.2f}" for tau in with_others),
        )


def show(trials: Sequence[Trial], names: Sequence[str]) -> None:
    """The settings of these names with their means over the seeds, then what each metric is worth."""
    found = {(trial["setting"], trial["seed"]): numbers(trial) for trial in trials}
    seeds = sorted({seed for _, seed in found if all((name, seed) in found for name in names)})
    if len(seeds) < 2:
        sys.exit(f"{len(seeds)} seeds have every setting, but rankings are compared between seeds; train more")
    shared = [name for name in COMPARED if all(name in own for own in found.values())]
    values = {name: np.array([[found[s, k][name] for k in seeds] for s in names]) for name in shared}
    console = Console(width=180)
    settings = Table("mean, spread over seeds", *(name.removeprefix("eval_") for name in shared), "diverged")
    for at, setting in enumerate(names):
        diverged = sum(trial["setting"] == setting and trial["state"] != "complete" for trial in trials)
        means = (f"{own[at].mean():.3f}, {own[at].std(ddof=1):.3f}" for own in values.values())
        settings.add_row(setting, *means, str(diverged))
    console.print(settings)
    heads = ("share", "more than accuracy's", "tau", "more than accuracy's", "seeds", "with accuracy", "with KL")
    table = Table(f"{len(names)} settings, {len(seeds)} seeds", *heads)
    for line in lines_of(values):
        table.add_row(*line)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=MODELS, default="quickstart")
    parser.add_argument("--out", type=Path, help="benchmarks/results/objectives-<model> by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(10)], help="of the training")
    parser.add_argument("--without", choices=SETTINGS, nargs="+", default=[], help="settings that the table leaves out")
    parser.add_argument("--table", action="store_true", help="of the trials that are there, and train none")
    arguments = parser.parse_args()
    out = (arguments.out or Path(f"benchmarks/results/objectives-{arguments.on}")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    lines = out / "trials.jsonl"
    if not arguments.table:
        train(lines, MODELS[arguments.on], arguments.seeds)
    show(read(lines), [name for name in SETTINGS if name not in arguments.without])


if __name__ == "__main__":
    main()
