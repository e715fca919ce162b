"""Tokens trained until a search has a model of a target accuracy: random search at full budget against this project's.

Run: PYTHONPATH=tests python -m benchmarks.tokens_to_target [--seeds 5] [--trials 24] [--steps 64]

Both sides draw from the same space and train trials on the same pairs, in the same batches, one trial after another:

- random search, and every trial is trained to its full budget;
- a search whose settings are all the defaults: TPE, and successive halving by 2 from 1/16 of the budget that pauses
  trials. It has four times as many trials, since it trains most of them for a few steps alone.

The target is the median over the seeds of random search's best accuracy at full budget, less one standard error of
that accuracy on its held-out pairs. A search has reached it with the first trial that has it *at its full budget*: what
a trial has at a rung counts on neither side. Its tokens are those of all trials up to and with that one, as their
reports say. A search that never reaches it counts all its tokens, a lower bound of what it would take. The figure is
the ratio of the medians over the seeds, and every seed is printed.

The setting was fixed before anything was measured, so that it is a search that somebody would run: a random Llama of
0.1 M parameters has to learn how much each of ten words is worth from 512 pairs, 64 steps of 8; it sees each pair once.
The worth of words runs from -1 to 1, and the sentence whose two words are worth more is chosen, so that accuracy grows
by degrees and does not end at 1 for half of the space. The space is that of tests/toy.py, four losses and their own
parameters, but with learning rates over four decades, from 1e-5 to 1e-1: nobody knows where a new model learns.

Study, searcher, scheduler and training are the project's own, in one process without Ray: a report goes to the
scheduler as Tune would pass it on.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import toy

from benchmarks.results import RESULTS, Row, header, record

GOAL = 4.0
SEEDS, TRIALS, STEPS = 5, 24, 64
BATCH, HELD_OUT = 8, 256
RANDOM = {"sampler": "random", "scheduler": None}
FOR_AS_MANY_TOKENS = 4
"""Our search has so many times the trials: with these, halving spends fewer tokens than random search without."""
WORDS = [*toy.GOOD, *toy.BAD]
WORTH = {word: 1 - 2 * place / (len(WORDS) - 1) for place, word in enumerate(WORDS)}


@dataclass
class Trained:
    """A trial from where it was issued, and maybe promoted, on: its tokens since then, and its accuracy by step."""

    had: float = 0.0
    tokens: float = 0.0
    accuracy: dict[int, float] = field(default_factory=dict)


@dataclass
class Search:
    """Trials in the order in which they were trained."""

    steps: int
    trials: list[Trained] = field(default_factory=list)

    @property
    def tokens(self) -> float:
        return sum(trial.tokens for trial in self.trials)

    @property
    def best(self) -> float:
        """The best accuracy at full budget; 0 if no trial got there."""
        return max((trial.accuracy.get(self.steps, 0.0) for trial in self.trials), default=0.0)

    def tokens_to(self, target: float) -> tuple[float, bool]:
        """Tokens until a trial has the target at full budget, and whether one has."""
        spent = 0.0
        for trial in self.trials:
            spent += trial.tokens
            if trial.accuracy.get(self.steps, 0.0) >= target:
                return spent, True
        return spent, False


class Books:
    """The observer of one search."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._tokens: dict[int, float] = {}

    def on_start(self, spec: Any) -> None:
        self._search.trials.append(Trained(self._tokens.get(spec.number, 0.0)))

    def on_report(self, spec: Any, report: Any) -> None:
        trial = self._search.trials[-1]
        self._tokens[spec.number] = report.metrics.get("tokens", self._tokens.get(spec.number, 0.0))
        trial.tokens = self._tokens[spec.number] - trial.had
        if report.evaluated and report.step > 0:
            trial.accuracy[report.step] = report.metrics["eval_accuracy"]

    def on_pause(self, spec: Any, step: int) -> None:
        pass

    def on_loss(self, spec: Any, reason: str, left: int) -> None:
        raise AssertionError("nothing can be lost in one process")

    def on_end(self, spec: Any, row: Any) -> None:
        pass


@dataclass(frozen=True)
class Line:
    """The way of a report to the scheduler and of its verdict back, which in a cluster goes through Tune and a slot."""

    scheduler: Any
    trial: Any
    number: int
    STOP: ClassVar[str] = "STOP"

    def send(self, report: Any) -> Any:
        from tune_dlrml.records import Answer

        result = {"number": self.number, "reports": [report.as_json()], "outcome": None, "done": False}
        verdict = self.scheduler.on_trial_result(None, self.trial, result)
        return Answer(go_on=verdict != self.STOP, acknowledged=report.step)


def write_pairs(path: Path, count: int, seed: int) -> Path:
    """Two sentences about the same things; the one whose words are worth more is chosen."""
    rng, lines = random.Random(seed), []
    while len(lines) < count:
        things = rng.choice(toy.THINGS), rng.choice(toy.THINGS)
        sides = sorted(([rng.choice(WORDS), rng.choice(WORDS)] for _ in range(2)), key=worth, reverse=True)
        if worth(sides[0]) - worth(sides[1]) > 1e-9:
            chosen, rejected = (
                f" the {things[0]} was {first} and the {things[1]} felt {second} ." for first, second in sides
            )
            pair = {"prompt": f"review {rng.randrange(10**6)}:", "chosen": chosen, "rejected": rejected}
            lines.append(json.dumps(pair) + "\n")
    path.write_text("".join(lines))
    return path


def worth(words: Sequence[str]) -> float:
    return sum(WORTH[word] for word in words)


def document(folder: Path, trials: int, steps: int) -> dict[str, Any]:
    """The search that both sides share; `search` is the only section in which they differ."""
    made = toy.document(
        toy.write_model(folder / "model"),
        write_pairs(folder / "train.jsonl", BATCH * steps, seed=0),
        write_pairs(folder / "eval.jsonl", HELD_OUT, seed=1),
        name="tokens",
    )
    made["training"] |= {"max_steps": steps, "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 64}
    made["checkpoint"] = {"save_steps": 10 * steps}
    made["search"] = {"num_trials": trials, "baseline": None}
    made["space"]["training"] = {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}
    return made


class Bench:
    """The model and pairs that all searches share.

    Args:
        folder: For the model, pairs, studies and checkpoints.
        trials: Of a search.
        steps: Full budget of a trial.
    """

    def __init__(self, folder: Path, trials: int, steps: int) -> None:
        import torch
        from datasets import disable_progress_bars

        from tune_dlrml.config import parse_config
        from tune_dlrml.search.preparation import prepare
        from tune_dlrml.search.result import SearchPlace
        from tune_dlrml.training.resident import Resident

        disable_progress_bars()
        torch.set_num_threads(1)  # of so small a model, two threads wait for each other
        self._folder, self._steps = folder, steps
        self._document = document(folder, trials, steps)
        config = parse_config(self._document, source="benchmark")
        self._pairs = prepare(config, SearchPlace(folder / "runs")).pairs
        self._resident = Resident.load(config.model, self._pairs, config.training)

    def search(self, name: str, **settings: Any) -> Search:
        """Run one search from its first trial to its last."""
        from ray.tune.search import Searcher

        from tune_dlrml.config import parse_config
        from tune_dlrml.search.tune.scheduler import StudyScheduler
        from tune_dlrml.search.tune.searcher import StudySearcher
        from tune_dlrml.space import TrialSpec
        from tune_dlrml.study.proposer import proposer_of
        from tune_dlrml.study.study import SearchStudy

        parts = self._document | {"name": name, "search": self._document["search"] | settings}
        config = parse_config(parts, source="benchmark")
        study = SearchStudy(config, proposer_of(config), f"sqlite:///{self._folder / name}.db", self._steps)
        found = Search(self._steps)
        searcher = StudySearcher(study, Books(found))
        scheduler = StudyScheduler(searcher)
        while (order := searcher.suggest(name)) != Searcher.FINISHED:
            spec = TrialSpec.from_json(order["spec"])
            outcome = self._train(config, study, scheduler, spec, name)
            result = {"reports": [], "outcome": None if outcome is None else asdict(outcome), "done": True}
            searcher.on_trial_complete(name, None if outcome is None else result)
        study.close()
        return found

    def _train(self, config: Any, study: Any, scheduler: Any, spec: Any, name: str) -> Any:
        from tune_dlrml.training.group_spec import TrialPlan
        from tune_dlrml.training.trial import train_trial

        rungs = frozenset(study.rungs)
        plan = TrialPlan(self._steps, rungs, 1, config.divergence, config.checkpoint, pauses=study.pauses)
        line = Line(scheduler, SimpleNamespace(trial_id=name), spec.number)
        return train_trial(self._resident, spec, plan, line, folder=self._folder / name / str(spec.number))


def target_of(searches: Sequence[Search]) -> float:
    """The median of the best accuracies, less one standard error of that accuracy on the held-out pairs."""
    best = statistics.median(search.best for search in searches)
    return best - (best * (1 - best) / HELD_OUT) ** 0.5


def rows(seeds: int = SEEDS, trials: int = TRIALS, steps: int = STEPS) -> tuple[list[Row], dict[str, Any]]:
    """The row `tokens_to_target`, and every search; prints each seed."""
    sides: dict[str, list[Search]] = {"random": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="tokens_") as folder:
        bench = Bench(Path(folder), trials, steps)
        for seed in range(seeds):
            for side, settings in (("random", RANDOM), ("ours", {"num_trials": FOR_AS_MANY_TOKENS * trials})):
                sides[side].append(bench.search(f"{side}-{seed}", seed=seed, **settings))
                print(f"{side} search, seed {seed}: {sides[side][-1].tokens:.0f} tokens in all", file=sys.stderr)
    target = target_of(sides["random"])
    print(f"{trials} trials of at most {steps} steps, {seeds} seeds; target accuracy {target:.4f} at full budget")
    medians = {}
    for side, searches in sides.items():
        spent = [search.tokens_to(target) for search in searches]
        for seed, (search, (tokens, reached)) in enumerate(zip(searches, spent, strict=True)):
            print(
                f"{side:>6}, seed {seed}: {'' if reached else '> '}{tokens:.0f} tokens"
                f"{'' if reached else ' (target not reached: a lower bound)'}, of {search.tokens:.0f} in all; "
                f"best {search.best:.4f}"
            )
        medians[side] = statistics.median(tokens for tokens, _ in spent)
        bounds = sum(not reached for _, reached in spent)
        print(f"{side:>6}, median: {medians[side]:.0f} tokens; {bounds} of {seeds} seeds did not reach the target")
    row = Row.judged("tokens_to_target", ours=medians["ours"], other=medians["random"], goal=GOAL, unit="tokens")
    raw = {side: [asdict(search) for search in searches] for side, searches in sides.items()}
    return [row], {"target": target, "sides": raw}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    measured_on = header(dtype="float32", threads=1)
    found, raw = rows(arguments.seeds, arguments.trials, arguments.steps)
    record("tokens_to_target", found, raw, measured_on=measured_on, folder=arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
