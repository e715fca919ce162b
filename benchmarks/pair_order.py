"""Whether grouping the pairs of a step by length costs held-out accuracy, or saves time: twenty seeds each way.

Run: PYTHONPATH=tests python -m benchmarks.pair_order [--on toy] [--out FOLDER] [--seeds 0 1 2] [--table]
     PYTHONPATH=tests python -m benchmarks.pair_order --waiting PAIRS.jsonl

DPO on the models, pairs, batches and adapters of benchmarks/objectives.py, with `training.train_sampling_strategy`
`group_by_length` and `random` under the same seeds, and with prompts that are shared, in packed rows, or padded
(`training.shared_prompt`). A seed moves the initialisation of the adapter and the order of the pairs. One process
trains all trials in turn; what a trial reports at its end goes to trials.jsonl in the folder at once, and a further run
goes on where it was. Differences are random less grouped under the same seed, with Student's 95 % intervals.

`--waiting` trains nothing. It counts the tokens that the rows of a step have, with the tokenizer of the embedded model,
and says how much longer a step takes than packed rows of equal ranks, if time is the tokens of the rank that has the
most: what grouping saves under several workers, to whom packed rows of different lengths are dealt. Padded rows compute
each prompt twice, too.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toy_training
from rich.console import Console
from rich.table import Table

from benchmarks.objectives import MODELS, read
from tune_dlrml.config import SearchConfig, TrainingConfig
from tune_dlrml.data import select_pairs
from tune_dlrml.data.plan import training_order
from tune_dlrml.search.confirm.paired import paired_difference
from tune_dlrml.search.validity import reader_of_model
from tune_dlrml.training.pairs.packed import PackedCollator
from tune_dlrml.training.reference.logps import Row, row_length
from tune_dlrml.training.resident import Resident

ORDERS = ("group_by_length", "random")
ROWS = {"packed": True, "padded": False}
LOSS = {"name": "dpo", "beta": 0.1}
MEASURED = ("eval_accuracy", "eval_margin", "eval_kl", "tokens", "steps_per_second")


def train(lines: Path, of_model: Callable[[Path], SearchConfig], seeds: Sequence[int], rows: str) -> None:
    """Train what the file lacks, seed by seed, and append a line for each trial."""
    known = {(trial["rows"], trial["order"], trial["seed"]) for trial in read(lines)}
    missing = [(order, seed) for seed in seeds for order in ORDERS if (rows, order, seed) not in known]
    if not missing:
        return
    config = of_model(lines.parent)
    training = config.training.at({"shared_prompt": ROWS[rows]})
    pairs = select_pairs(config.dataset, training, lambda: reader_of_model(config)).pairs()
    resident = Resident.load(config.model, pairs, training)
    budget = toy_training.plan(training.steps(len(pairs.train), workers=1))
    for order, seed in missing:
        own = training.at({"train_sampling_strategy": order, "seed": seed})
        outcome, channel = toy_training.run(resident, LOSS, own, budget)
        assert outcome is not None, "nothing says stop"
        trial = {"rows": rows, "order": order, "seed": seed, "state": outcome.state} | channel.reports[-1].metrics
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")


@dataclass(frozen=True)
class Counted:
    """Tokens of pairs: of the longer sequence before and after truncation, and of the packed row of each alone."""

    lengths: list[int]
    longest: list[int]
    packed: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row], training: TrainingConfig) -> "Counted":
        lengths = [row_length(row) for row in rows]
        most = max(lengths) if training.max_length is None else training.max_length
        pack = PackedCollator(training.max_length, training.truncation_mode)
        packed = [pack([row])["input_ids"].numel() for row in rows]
        return cls(lengths, [min(length, most) for length in lengths], packed)

    def waiting(self, training: TrainingConfig, workers: int, *, packed: bool) -> float:
        """Tokens that the largest rank of each step computes, over those that equal ranks have in packed rows."""
        steps = len(self.lengths) // training.pairs_per_step(workers)
        plan = training_order(self.lengths, training, steps=steps, workers=workers)
        size, per_step = training.per_device_train_batch_size, workers * training.gradient_accumulation_steps
        batches = [
            sum(self.packed[row] for row in own) if packed else 2 * size * max(self.longest[row] for row in own)
            for own in (plan[start : start + size] for start in range(0, len(plan), size))
        ]
        computed = sum(
            max(sum(batches[start + rank : start + per_step : workers]) for rank in range(workers))
            for start in range(0, len(batches), per_step)
        )
        return computed * workers / sum(self.packed[row] for row in plan)


def differences(trials: Sequence[dict[str, Any]], rows: str) -> list[tuple[str, ...]]:
    """A line of the table for each number, over the seeds that are there both ways."""
    found = {(trial["order"], trial["seed"]): trial for trial in trials if trial["rows"] == rows}
    seeds = sorted(seed for order, seed in found if order == ORDERS[0] and (ORDERS[1], seed) in found)
    lines = []
    for name in MEASURED if len(seeds) > 1 else ():
        grouped, by_chance = ([found[order, seed][name] for seed in seeds] for order in ORDERS)
        difference = paired_difference(by_chance, grouped)
        interval = "" if difference.low is None else f"{difference.low:+.4g} to {difference.high:+.4g}"
        spreads = (f"{math.fsum(each) / len(each):.4g} ({statistics.stdev(each):.2g})" for each in (grouped, by_chance))
        lines.append((rows, name, str(len(seeds)), *spreads, f"{difference.mean:+.4g}", interval))
    return lines


def show_waiting(pairs: Path) -> None:
    """For several groups, what each order and form of rows leaves to wait for."""
    config = MODELS["quickstart"](Path())
    dataset = config.dataset.model_copy(update={"train": str(pairs), "shared_prompts": "keep"})
    training = config.training.at({"max_length": 1024})
    counted = Counted.of(select_pairs(dataset, training, lambda: reader_of_model(config)).pairs().train, training)
    columns = [(rows, order) for rows in ROWS for order in ORDERS]
    table = Table("workers", "pairs a device", "accumulated", *(f"{rows}, {order}" for rows, order in columns))
    for workers, size, accumulated in ((1, 2, 8), (2, 1, 8), (2, 4, 1), (4, 2, 1), (4, 4, 4), (8, 1, 8), (8, 4, 1)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        found = (
            counted.waiting(training.at(sizes | {"train_sampling_strategy": order}), workers, packed=ROWS[rows])
            for rows, order in columns
        )
        table.add_row(str(workers), str(size), str(accumulated), *(f"{each:.2f}" for each in found))
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=MODELS, default="quickstart")
    parser.add_argument("--out", type=Path, help="benchmarks/results/pair_order-<model> by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(20)], help="of the training")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=[*ROWS])
    parser.add_argument("--table", action="store_true", help="of the trials that are there, and train none")
    parser.add_argument("--waiting", type=Path, help="count the tokens of these pairs, and train none")
    arguments = parser.parse_args()
    if arguments.waiting is not None:
        show_waiting(arguments.waiting)
        return
    out = (arguments.out or Path(f"benchmarks/results/pair_order-{arguments.on}")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    lines = out / "trials.jsonl"
    table = Table("rows", "", "seeds", "group_by_length (sd)", "random (sd)", "random less grouped", "95 %")
    for rows in arguments.rows:
        if not arguments.table:
            train(lines, MODELS[arguments.on], arguments.seeds, rows)
        for line in differences(read(lines), rows):
            table.add_row(*line)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
