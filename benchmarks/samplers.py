"""Which sampler and which scheduler find a good setting with the fewest tokens, on planted surfaces and real curves.

Run: PYTHONPATH=tests python -m benchmarks.samplers [--on seen held_out ...] [--ways NAME ...] [--seeds 50] [--table]
     PYTHONPATH=tests python -m benchmarks.samplers --why --on held_out

A way is a sampler with a scheduler. It searches a world (replay.py) one trial after another until it has spent the
tokens of 24 trials at full budget, or has had 64 trials. Study, proposer and successive halving are those of a search
(`SearchStudy`, without a database); a way that the package does not have (ways.py) is another proposer, or an Optuna
pruner in the study.

After each trial the regret of a search is the true value of the world's best point less that of the point that the
search calls its best: of the complete trials, the one that was observed to be the best. Before the first it is the
regret of the untrained model. A way's figure is how many times fewer tokens it takes until the mean regret of its
searches is as low as that of random search without pruning at its end (`ratio`, against random search's own first time
there); where it never is, 24 trials count, and the figure is an upper bound. Intervals are 95 % of a bootstrap over the
searches' seeds, of both sides.

Surfaces are `seen`, on which ways may be tuned, and `held_out`, which have other spaces, other hills and more of them;
the table is held out, too. Their tops lie between 0.2 and 0.8 of each range, which favours what begins near the middle;
those of `off_centre` lie 0.15 further out, between 0.05 and 0.35 or 0.65 and 0.95, and those of `outer` 0.2, in the
outer three tenths. `--why` says where the tokens of TPE with halving that stops trials go, and runs ways that know the
truth (ceilings.py). Every search goes to a file of its world and way at once; run again, it goes on where it was.
`--table` shows what is there and searches nothing. CMA-ES needs `pip install cmaes`, on which this project does not
depend; without it that way is left out.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import optuna
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Printed

from benchmarks.ceilings import CEILINGS, Spent, parts
from benchmarks.replay import UNTRAINED, Curve, Planted, Table, World, config_of
from benchmarks.replay_table import SPACE, TABLE, document
from benchmarks.ways import RANDOM, TPE, WAYS, Way
from tune_dlrml.config import SearchSettings, load_config
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.space import SearchSpace
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy

FULL = 24
"""Trials at full budget whose tokens a search may spend."""
GRID = np.geomspace(1 / 64, 1, 61)
"""Shares of the tokens of a search at which regrets are compared."""
AT = {"1/6 of the tokens": 1 / 6, "1/3": 1 / 3, "the end": 1.0}
RESAMPLES = 2000
STARTUP = SearchSettings().n_startup_trials
SPACES = Path(__file__).parents[1] / "search_spaces"


class Memory(optuna.storages.InMemoryStorage):  # type: ignore[misc]
    """A storage without a database."""

    engine = SimpleNamespace(dispose=lambda: None)


def worlds(table: Path = TABLE) -> dict[str, Callable[[], list[World]]]:
    """Worlds by the name of their group."""
    own = document(Path())

    def of(file: str) -> dict[str, Any]:
        return own | {"space": load_config(SPACES / file).model_dump(mode="json")["space"]}

    def with_dpo(found: dict[str, Any]) -> dict[str, Any]:
        space = found["space"]
        return found | {"space": space | {"losses": [SPACE["losses"][0], *space["losses"]]}}

    return {
        "seen": lambda: [Planted(f"seen {number}", own | {"space": SPACE}, number) for number in (1, 2, 3)],
        "held_out": lambda: [
            Planted("held out: two hills", own | {"space": SPACE}, 101, hills=2),
            Planted("held out: dlrml-vs-discopop", of("dlrml-vs-discopop.yaml"), 102),
            Planted("held out: dpo, reference-free", with_dpo(of("reference-free.yaml")), 103, hills=2),
        ],
        "table": lambda: [Table(table)],
        "off_centre": lambda: [
            Planted(f"off centre {number}", own | {"space": SPACE}, number, outward=0.15) for number in (201, 202, 203)
        ],
        "outer": lambda: [
            Planted(f"outer {number}", own | {"space": SPACE}, number, outward=0.2) for number in (301, 302, 303)
        ],
    }


def search(world: World, way: Way, seed: int) -> list[Spent]:
    """One search: its trials, with the tokens spent until the end of each, and the regret then."""
    config = config_of(world, way.settings(world, seed))
    proposer = proposer_of(config) if way.proposer is None else way.proposer(SearchSpace(config), config.search)
    with mock.patch("tune_dlrml.study.study.open_storage", lambda url: Memory()):
        study = SearchStudy(config, proposer, "", world.steps)
    if way.pruner is not None:
        study.optuna_study.pruner = way.pruner(study.rungs, world.steps, way.factor)
    world = replace(world, noise=0.0) if way.quiet and isinstance(world, Planted) else world
    spent, best, regret, course = 0.0, -math.inf, world.best(seed) - UNTRAINED, []
    until: dict[int, float] = {}
    while spent < FULL * world.tokens and (spec := study.ask()) is not None:
        had = until.get(spec.number, 0.0)
        tokens, value, part = run(world, study, spec, world.curve(spec.params, spec.number, seed))
        until[spec.number] = tokens
        spent += tokens - had
        truth = world.truth(spec.params, seed)
        if value is not None and (found := truth if way.knows_best else value) > best:
            best, regret, part = found, world.best(seed) - truth, f"{part}, the best so far"
        course.append(Spent(spent, regret, tokens - had, part))
    return course


def run(world: World, study: SearchStudy, spec: Any, curve: Curve) -> tuple[float, float | None, str]:
    """One trial through its rungs: its tokens, its objective if it got to the full budget, and what became of it."""
    reached = study.steps_reached(spec.number)
    for step in (own for own in (*study.rungs, world.steps) if own > reached):
        if step not in curve.seen:
            study.finish(TrialOutcome(spec.number, State.DIVERGED, "diverged"), step)
            assert curve.diverged_after is not None
            return curve.diverged_after, None, "diverged"
        seen = curve.seen[step]
        verdict = study.judge(spec.number, step, {study.metric: seen.value})
        if verdict == "pause":
            return seen.tokens, None, f"paused at {step} of {world.steps} steps"
        if verdict == "prune":
            study.finish(TrialOutcome(spec.number, State.PRUNED, "pruned"), step)
            return seen.tokens, None, f"stopped at {step} of {world.steps} steps"
    study.finish(TrialOutcome(spec.number, State.COMPLETE, "done"), world.steps)
    return seen.tokens, seen.value, "full budget"


def on_grid(course: Sequence[Spent], world: World) -> NDArray[np.float64]:
    """The regret at each share of the tokens of a search."""
    spent, regret = np.array([(own.so_far, own.regret) for own in course]).T
    behind = np.searchsorted(spent, GRID * FULL * world.tokens, side="right") - 1
    return np.where(behind < 0, world.best(0) - UNTRAINED, regret[np.maximum(behind, 0)])


# Comparing


def ratio(random: NDArray[np.float64], way: NDArray[np.float64]) -> float:
    """How many times fewer tokens a way takes to the regret that random search ends with; rows are searches."""
    target = random.mean(axis=0)[-1]
    first = [
        next((share for share, mean in zip(GRID, own.mean(axis=0), strict=True) if mean <= target), 1.0)
        for own in (random, way)
    ]
    return float(first[0] / first[1])


def work(task: tuple[str, int, str, int, Path]) -> None:
    group, at, name, seeds, out = task
    quieten()
    world = worlds()[group]()[at]
    file = out / f"{world.name}, {name}.jsonl".replace("/", "-").replace(": ", "-")
    known = len(file.read_text().splitlines()) if file.exists() else 0
    for seed in range(known, seeds):
        way = CEILINGS[name](world, seed) if name in CEILINGS else WAYS[name]
        regrets = on_grid(search(world, way, seed), world)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([round(float(regret), 5) for regret in regrets]) + "\n")


def quieten() -> None:
    """In each process that searches."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")


def read(out: Path, world: World, name: str, seeds: int) -> NDArray[np.float64] | None:
    file = out / f"{world.name}, {name}.jsonl".replace("/", "-").replace(": ", "-")
    if not file.exists():
        return None
    found = np.array([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:seeds])
    return found if len(found) == seeds else None


def show(group: str, names: Sequence[str], out: Path, seeds: int) -> None:
    """A line a way, where all searches are there: ratios on each world, and their geometric means with intervals."""
    found = worlds()[group]()
    each = (f"{world.name}: ratio" for world in found)
    printed = Printed("way", *each, "all", f"against {TPE}", *(f"regret, {at}" for at in AT))
    known = {name: [read(out, world, name, seeds) for world in found] for name in {RANDOM, TPE, *names}}
    random, stopping = known[RANDOM], known[TPE]
    for name in names:
        if any(side is None for side in [*random, *stopping, *known[name]]):
            continue
        row = summary(random, stopping, known[name])
        ratios = (f"{ratio:.2f}" for ratio in row["ratios"])
        intervals = ("{:.2f} ({:.2f} to {:.2f})".format(*row[of]) for of in ("all", "against"))
        printed.add_row(name, *ratios, *intervals, *(spread(row[at]) for at in AT))
    Console(width=200).print(printed)


def why(group: str, seeds: int) -> None:
    """Where the tokens go of TPE with halving that stops, in the sixth of them that the goal allows, and in all."""
    quieten()
    found = []
    for world in worlds()[group]():
        for seed in range(seeds):
            course = search(world, WAYS[TPE], seed)
            found.append(
                [own._replace(so_far=own.so_far / world.tokens, tokens=own.tokens / world.tokens) for own in course]
            )
    printed = Printed(f"{TPE}, on {group}", "first sixth", "all")
    untils = (FULL / 6, math.inf)
    ended = ([sum(own.so_far <= until for own in course) for course in found] for until in untils)
    printed.add_row("trials", *(f"{np.mean(counts):.1f}" for counts in ended))
    early, whole = (parts(found, until) for until in untils)
    at_first = [
        [own._replace(part="start-up" if at < STARTUP else "later") for at, own in enumerate(course)]
        for course in found
    ]
    printed.add_row(
        f"the first {STARTUP}, by chance", *(f"{parts(at_first, until)['start-up']:.0%}" for until in untils)
    )
    for part, share in whole.items():
        printed.add_row(part, f"{early.get(part, 0.0):.0%}", f"{share:.0%}")
    Console(width=100).print(printed)


def spread(mean_and_se: tuple[float, float]) -> str:
    return f"{mean_and_se[0]:.4f} +- {1.96 * mean_and_se[1]:.4f}"


def summary(random: Sequence[Any], stopping: Sequence[Any], way: Sequence[Any]) -> dict[str, Any]:
    """Of searches by world: `all` against random search, `against` TPE with halving that stops; with their intervals.

    The same seed draws the same first points and noise for two rules, so that they are compared seed by seed.
    """
    rng, by_seed = np.random.default_rng(0), np.random.default_rng(0)
    alone, paired = [], []
    for _ in range(RESAMPLES):
        alone.append(
            mean_log_ratio(
                *zip(*([drawn(rng, side) for side in both] for both in zip(random, way, strict=True)), strict=True)
            )
        )
        at = [by_seed.integers(len(side), size=len(side)) for side in way]
        of_random, of_stopping, of_way = (
            [side[rows] for side, rows in zip(own, at, strict=True)] for own in (random, stopping, way)
        )
        paired.append(mean_log_ratio(of_random, of_way) - mean_log_ratio(of_random, of_stopping))
    ends = [(float(low), float(high)) for low, high in np.exp(np.quantile([alone, paired], [0.025, 0.975], axis=1)).T]
    own, of_stopping = mean_log_ratio(random, way), mean_log_ratio(random, stopping)
    return {
        "ratios": [ratio(*both) for both in zip(random, way, strict=True)],
        "all": (math.exp(own), *ends[0]),
        "against": (math.exp(own - of_stopping), *ends[1]),
        **{words: regret_at(share, way) for words, share in AT.items()},
    }


def drawn(rng: np.random.Generator, side: NDArray[np.float64]) -> NDArray[np.float64]:
    return side[rng.integers(len(side), size=len(side))]


def mean_log_ratio(random: Sequence[Any], way: Sequence[Any]) -> float:
    return float(np.mean([math.log(ratio(*both)) for both in zip(random, way, strict=True)]))


def regret_at(share: float, ways: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The mean over worlds of the mean regret at a share of the tokens, and its standard error."""
    at = int(np.argmin(np.abs(GRID - share)))
    means = [float(way[:, at].mean()) for way in ways]
    errors = [float(way[:, at].std(ddof=1)) / len(way) ** 0.5 for way in ways]
    return float(np.mean(means)), math.hypot(*errors) / len(ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=list(worlds()), nargs="+", default=["held_out", "table"])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *CEILINGS], default=list(WAYS))
    parser.add_argument("--why", action="store_true", help="where tokens go, and what ways reach that know the truth")
    parser.add_argument("--seeds", type=int, default=50, help="searches of each way in each world")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/samplers"))
    parser.add_argument("--table", action="store_true", help="show the searches that are there, and make none")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [RANDOM, TPE, *CEILINGS] if arguments.why else arguments.ways
    if importlib.util.find_spec("cmaes") is None:
        print("cmaes is not installed: CMA-ES is left out")
        names = [name for name in names if not name.startswith("cma-es")]
    if not arguments.table:
        tasks = [
            (group, at, name, arguments.seeds, arguments.out)
            for name in names
            for group in arguments.on
            for at in range(len(worlds()[group]()))
        ]
        with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(work, tasks))
    for group in arguments.on:
        if arguments.why:
            why(group, arguments.seeds)
        show(group, names, arguments.out, arguments.seeds)


if __name__ == "__main__":
    main()
