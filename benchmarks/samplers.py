"""Which sampler and which scheduler find a good setting with the fewest tokens, on planted surfaces and real curves.

Run: PYTHONPATH=tests python -m benchmarks.samplers [--on seen held_out table] [--ways NAME ...] [--seeds 50] [--table]

A way is a sampler with a scheduler. It searches a world (replay.py) one trial after another until it has spent the
tokens of 24 trials at full budget, or has had 64 trials. Study, proposer and successive halving are those of a search
(`SearchStudy`, without a database); a way that the package does not have is defined here, as another proposer or as an
Optuna pruner in the study.

After each trial the regret of a search is the true value of the world's best point less that of the point that the
search calls its best: of the complete trials, the one that was observed to be the best. Before the first it is the
regret of the untrained model. A way's figure is how many times fewer tokens it takes until the mean regret of its
searches is as low as that of random search without pruning at its end (`ratio`, against random search's own first time
there); where it never is, 24 trials count, and the figure is an upper bound. Intervals are 95 % of a bootstrap over the
searches' seeds, of both sides.

Surfaces are `seen`, on which ways may be tuned, and `held_out`, which have other spaces, other hills and more of them;
the table is held out, too. Every search goes to a file of its world and way at once; run again, it goes on where it
was. `--table` shows what is there and searches nothing. CMA-ES needs `pip install cmaes`, on which this project
does not depend; without it that way is left out.
"""

import argparse
import importlib.util
import itertools
import json
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import optuna
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Printed

from benchmarks.replay import UNTRAINED, Planted, Table, World, config_of, place
from benchmarks.replay_table import SPACE, TABLE, document
from tune_dlrml.config import load_config
from tune_dlrml.domains import Domain
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.space import BRANCH, SearchSpace
from tune_dlrml.space_points import values_at
from tune_dlrml.study.history import StudyHistory
from tune_dlrml.study.proposer import (
    PointsFirst,
    Proposal,
    Proposer,
    RandomPoints,
    TpePoints,
    point_proposal,
    proposer_of,
)
from tune_dlrml.study.sampling import Draw, derived_seed, distribution
from tune_dlrml.study.study import SearchStudy

FULL, MOST = 24, 64
"""Trials at full budget whose tokens a search may spend, and most trials that it may have."""
GRID = np.geomspace(1 / 64, 1, 61)
"""Shares of the tokens of a search at which regrets are compared."""
AT = {"1/6 of the tokens": 1 / 6, "1/3": 1 / 3, "the end": 1.0}
RESAMPLES = 2000
SPACES = Path(__file__).parents[1] / "search_spaces"


class Memory(optuna.storages.InMemoryStorage):  # type: ignore[misc]
    """A storage without a database."""

    engine = SimpleNamespace(dispose=lambda: None)


# Samplers that the package does not have


class QuasiRandomStart(TpePoints):
    """TPE whose first trials are a scrambled Sobol sequence over the branches and their cubes."""

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        if number >= self.settings.n_startup_trials:
            return super().propose(history, number)
        from scipy.stats import qmc

        widest = max(len(self.space.domains(branch)) for branch in self.space.branches)
        engine = qmc.Sobol(1 + widest, scramble=True, rng=self.settings.seed)
        row = engine.random_base2(max(1, math.ceil(math.log2(self.settings.n_startup_trials))))[number]
        choice = self.space.choice_of_branch()
        point = {} if choice is None else {BRANCH: values_at(choice, row[:1])[0]}
        domains = self.space.domains(self.space.branch_of(point))
        own = {key: values_at(domain, row[at : at + 1])[0] for at, (key, domain) in enumerate(domains.items(), 1)}
        return point_proposal(self.space, number, point | own)


class MiddlePoints(RandomPoints):
    """Draws by chance around the middle of each domain, as CMA-ES begins: what a surface gives for that alone."""

    def _values(self, draw: Draw, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        drawn = super()._values(draw, group, domains)
        rng = np.random.default_rng(derived_seed(self.settings.seed, self._number(draw), group))
        units = {key: np.clip(rng.normal(0.5, 1 / 6, 1), 0, 1) for key in drawn if key != BRANCH}
        return drawn | {key: values_at(domains[key], unit)[0] for key, unit in units.items()}

    @staticmethod
    def _number(draw: Draw) -> int:
        return int(draw._trial.number)


class JointPoints(TpePoints):
    """TPE that draws the branch first, and then all parameters of the branch together, the shared ones among them."""

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        draw, choice = Draw(history.optuna_study, number, self.settings), self.space.choice_of_branch()
        point = {} if choice is None else self._values(draw, "", {BRANCH: choice})
        branch = self.space.branch_of(point)
        return point_proposal(self.space, number, point | self._values(draw, branch, self.space.domains(branch)))


@dataclass(frozen=True)
class WithinBranch(RandomPoints):
    """TPE draws the branch; another sampler of Optuna draws its parameters, from a study of that branch alone.

    There a trial's value is its last observed objective, and that of one that diverged the untrained model's.
    """

    sampler: Callable[[int], optuna.samplers.BaseSampler] = optuna.samplers.RandomSampler
    _studies: dict[str, optuna.Study] = field(default_factory=dict)
    _open: dict[int, tuple[str, optuna.Trial]] = field(default_factory=dict)

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        self._tell(history)
        draw, choice = Draw(history.optuna_study, number, self.settings), self.space.choice_of_branch()
        assert choice is not None
        branch = (draw.jointly("", {BRANCH: choice}) or {BRANCH: draw.alone(BRANCH, choice)})[BRANCH]
        if branch not in self._studies:
            sampler = self.sampler(derived_seed(self.settings.seed, 0, branch))
            self._studies[branch] = optuna.create_study(direction="maximize", sampler=sampler)
        domains = self.space.domains(branch)
        trial = self._studies[branch].ask({key: distribution(domain) for key, domain in domains.items()})
        self._open[number] = branch, trial
        return point_proposal(self.space, number, {BRANCH: branch} | dict(trial.params))

    def _tell(self, history: StudyHistory) -> None:
        trials = history.optuna_study.get_trials(deepcopy=False)
        for number, (branch, trial) in list(self._open.items()):
            seen = trials[number].intermediate_values
            diverged = trials[number].constraints.get("diverged", 0.0) > 0 or not seen
            self._studies[branch].tell(trial, UNTRAINED if diverged else seen[max(seen)])
            del self._open[number]


@dataclass(frozen=True)
class GaussianProcess(RandomPoints):
    """One Gaussian process over all branches: the learning rate is shared, the branch a distance of its own.

    Matern-5/2, length scales and noise by marginal likelihood on a grid, expected improvement over the mean of the best
    point, maximized over random points. A trial that was pruned counts with its last objective and what complete trials
    gained on the average from there; one that diverged as untrained.
    """

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        rng = np.random.default_rng(derived_seed(self.settings.seed, number, "gp"))
        trials = [own for own in history.optuna_study.get_trials(deepcopy=False) if own.state.is_finished()]
        if len(trials) < self.settings.n_startup_trials:
            return super().propose(history, number)
        x, y = np.array([self._features(own.params) for own in trials]), expected_ends(trials)
        points = [self._random(rng) for _ in range(384)]
        found = expected_improvement(x, (y - y.mean()) / (y.std() or 1.0), np.array([*map(self._features, points)]))
        return point_proposal(self.space, number, points[int(np.argmax(found))])

    def _random(self, rng: np.random.Generator) -> dict[str, Any]:
        branch = str(rng.choice([*self.space.branches]))
        domains = self.space.domains(branch)
        return {BRANCH: branch} | {key: values_at(each, rng.random(1))[0] for key, each in domains.items()}

    def _features(self, point: Mapping[str, Any]) -> NDArray[np.float64]:
        """Learning rate, the branch's own parameters, and the branch as a number."""
        branch, where = place(self.space, point)
        widest = max(len(self.space.domains(name)) for name in self.space.branches)
        own = np.pad(where[:-1], (0, widest - len(where)), constant_values=0.5)
        return np.array([where[-1], *own, [*self.space.branches].index(branch)])


def expected_ends(trials: Sequence[optuna.trial.FrozenTrial]) -> NDArray[np.float64]:
    """The objective of each trial at the full budget, as far as it can be said."""
    complete = [own.intermediate_values for own in trials if own.value is not None]

    def end(own: optuna.trial.FrozenTrial) -> float:
        seen = own.intermediate_values
        if own.value is not None or not seen or own.constraints.get("diverged", 0.0) > 0:
            return UNTRAINED if own.value is None else float(own.value)
        last = max(seen)
        gains = [values[max(values)] - values[last] for values in complete if last in values]
        return float(seen[last] + (np.mean(gains) if gains else 0.0))

    return np.array([end(own) for own in trials])


def expected_improvement(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each row of `at`, given the values `y` of the rows of `x`."""
    from scipy.linalg import cho_solve, cholesky
    from scipy.stats import norm

    def kernel(one: NDArray[np.float64], other: NDArray[np.float64], rate: float, own: float, branch: float) -> Any:
        off = one[:, None, :] - other[None, :, :]
        square = (off[..., 0] / rate) ** 2 + ((off[..., 1:-1] / own) ** 2).sum(axis=-1)
        distance = np.sqrt(5 * (square + (off[..., -1] != 0) / branch**2))
        return (1 + distance + distance**2 / 3) * np.exp(-distance)

    best = (-math.inf, None)
    for scales in itertools.product((0.15, 0.3, 0.6), (0.4, 1.0), (0.7, 2.0), (0.1, 0.4)):
        *lengths, noise = scales
        root = cholesky(kernel(x, x, *lengths) + noise * np.eye(len(x)), lower=True)
        weights = cho_solve((root, True), y)
        likelihood = -0.5 * float(y @ weights) - float(np.log(np.diag(root)).sum())
        if likelihood > best[0]:
            best = likelihood, (lengths, root, weights)
    assert best[1] is not None
    lengths, root, weights = best[1]
    top = float((kernel(x, x, *lengths) @ weights).max())
    across = kernel(at, x, *lengths)
    mean = across @ weights
    spread = np.sqrt(np.maximum(1e-9, 1 - (across * cho_solve((root, True), across.T).T).sum(axis=1)))
    z = (mean - top) / spread
    found: NDArray[np.float64] = (mean - top) * norm.cdf(z) + spread * norm.pdf(z)
    return found


def gp(space: SearchSpace, settings: Any) -> Proposer:
    return WithinBranch(space, settings, lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=4))


def cma(space: SearchSpace, settings: Any) -> Proposer:
    return WithinBranch(space, settings, lambda seed: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=4))


def branches_first(space: SearchSpace, settings: Any) -> Proposer:
    """TPE behind one trial of each branch, whose parameters are drawn by chance."""
    points = [{BRANCH: branch} for branch in space.branches]
    return PointsFirst(space, settings, points, 0, TpePoints(space, settings))


# Schedulers that the package does not have, as pruners of the same rungs


class Pasha(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Successive halving whose last rung moves up only while the two highest rank trials differently.

    Bohdal et al., arXiv 2207.06940, with a soft ranking of one standard error, as a stopping rule.
    """

    def __init__(self, rungs: Sequence[int], factor: int) -> None:
        self._rungs, self._factor, self._last = rungs, factor, 1
        self._asha = optuna.pruners.SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=factor)

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        step, trials = trial.last_step, study.get_trials(deepcopy=False)
        at = self._rungs.index(step) if step in self._rungs else len(self._rungs)
        stops = bool(self._asha.prune(study, trial))
        if stops or at < self._last or at >= len(self._rungs):
            return stops
        lower, upper = self._rungs[at - 1], step
        both = [own.intermediate_values for own in trials if upper in own.intermediate_values]
        if self._differ([(own[lower], own[upper]) for own in both]):
            self._last = at + 1
            return False
        best = max(own[upper] for own in both)
        return bool(trial.intermediate_values[upper] < best)

    @staticmethod
    def _differ(values: Sequence[tuple[float, float]], soft: float = 0.03) -> bool:
        for one in values:
            for other in values:
                if one[0] > other[0] + soft and one[1] < other[1] - soft:
                    return True
        return False


class Predicted(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Prunes where the end, predicted from a rung by a line through complete trials, is below the best one by 1 sd."""

    def __init__(self, steps: int, least: int = 6) -> None:
        self._steps, self._least = steps, least

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        step = trial.last_step
        done = [own.intermediate_values for own in study.get_trials(deepcopy=False) if own.value is not None]
        done = [own for own in done if step in own and self._steps in own]
        if len(done) < self._least or step == self._steps:
            return False
        x, y = np.array([[own[step], own[self._steps]] for own in done]).T
        if np.ptp(x) == 0:
            return False
        slope, offset = np.polyfit(x, y, 1)
        spread = float(np.std(y - slope * x - offset, ddof=2))
        return bool(slope * trial.intermediate_values[step] + offset + spread < y.max())


@dataclass(frozen=True)
class Way:
    """A sampler with a scheduler.

    Attributes:
        search: Settings that differ from the defaults; `scheduler` with a first rung as a share of the full budget.
        proposer: A source of trials that the package does not have.
        pruner: A rule at the rungs that the package does not have, made of the rungs, the full budget and the factor.
    """

    search: Mapping[str, Any] = field(default_factory=dict)
    grace: float | None = 1 / 16
    factor: int = 4
    proposer: Callable[[SearchSpace, Any], Proposer] | None = None
    pruner: Callable[[Sequence[int], int, int], Any] | None = None

    def settings(self, world: World, seed: int) -> dict[str, Any]:
        first = None if self.grace is None else max(world.least, round(self.grace * world.steps))
        scheduler = None if first is None else {"grace_period": first, "reduction_factor": self.factor}
        return {"num_trials": MOST, "baseline": None, "seed": seed, "scheduler": scheduler} | dict(self.search)


def hyperband(rungs: Sequence[int], steps: int, factor: int) -> Any:
    return optuna.pruners.HyperbandPruner(min_resource=rungs[0], max_resource=steps, reduction_factor=factor)


def after(count: int) -> Callable[[Sequence[int], int, int], Any]:
    """Successive halving that promotes none of the first trials of a rung (Optuna's `bootstrap_count`)."""
    return lambda rungs, steps, factor: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=rungs[0], reduction_factor=factor, bootstrap_count=count
    )


RANDOM = "random, no pruning"
TPE = "tpe, asha 4 from 1/16"
WAYS: dict[str, Way] = {
    RANDOM: Way({"sampler": "random"}, grace=None),
    "random, asha 4 from 1/16": Way({"sampler": "random"}),
    "random near the middle, asha 4 from 1/16": Way({"sampler": "random"}, proposer=MiddlePoints),
    "tpe, no pruning": Way(grace=None),
    TPE: Way(),
    "tpe, asha 2 from 1/16": Way(factor=2),
    "tpe, asha 8 from 1/8": Way(grace=1 / 8, factor=8),
    "tpe, asha 4 from 1/4": Way(grace=1 / 4),
    "tpe, asha 2 from 1/4": Way(grace=1 / 4, factor=2),
    "tpe, asha 2 from 1/8": Way(grace=1 / 8, factor=2),
    "tpe, asha 4 from 1/16, after 4": Way(pruner=after(4)),
    "tpe, asha 2 from 1/8, after 4": Way(grace=1 / 8, factor=2, pruner=after(4)),
    "tpe, hyperband 4 from 1/16": Way(pruner=hyperband),
    "tpe, pasha 2 from 1/16": Way(factor=2, pruner=lambda rungs, steps, factor: Pasha(rungs, factor)),
    "tpe, predicted from 1/8": Way(grace=1 / 8, factor=2, pruner=lambda rungs, steps, factor: Predicted(steps)),
    "tpe of 5 first, asha 4 from 1/16": Way({"n_startup_trials": 5}),
    "tpe of 20 first, asha 4 from 1/16": Way({"n_startup_trials": 20}),
    "tpe of quasi-random first, asha 4 from 1/16": Way(proposer=QuasiRandomStart),
    "tpe of branches first, asha 4 from 1/16": Way(proposer=branches_first),
    "tpe of whole branches, asha 4 from 1/16": Way(proposer=JointPoints),
    "gp over branches, asha 4 from 1/16": Way(proposer=GaussianProcess),
    "gp over branches, asha 2 from 1/8": Way(proposer=GaussianProcess, grace=1 / 8, factor=2),
    "gp in a branch, asha 4 from 1/16": Way(proposer=gp),
    "cma-es in a branch, asha 4 from 1/16": Way(proposer=cma),
}


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
    }


def search(world: World, way: Way, seed: int) -> list[tuple[float, float]]:
    """One search: tokens spent until the end of each trial, and the regret then."""
    config = config_of(world, way.settings(world, seed))
    proposer = proposer_of(config) if way.proposer is None else way.proposer(SearchSpace(config), config.search)
    with mock.patch("tune_dlrml.study.study.open_storage", lambda url: Memory()):
        study = SearchStudy(config, proposer, "", world.steps)
    if way.pruner is not None:
        study.optuna_study.pruner = way.pruner(study.rungs, world.steps, way.factor)
    spent, best, regret, course = 0.0, -math.inf, world.best(seed) - UNTRAINED, []
    while spent < FULL * world.tokens and (spec := study.ask()) is not None:
        tokens, value = run(world, study, spec, seed)
        spent += tokens
        if value is not None and value > best:
            best, regret = value, world.best(seed) - world.truth(spec.params, seed)
        course.append((spent, regret))
    return course


def run(world: World, study: SearchStudy, spec: Any, seed: int) -> tuple[float, float | None]:
    """One trial through its rungs: its tokens, and its objective at the full budget where it got there."""
    curve = world.curve(spec.params, spec.number, seed)
    for step in (*study.rungs, world.steps):
        if step not in curve.seen:
            study.finish(TrialOutcome(spec.number, State.DIVERGED, "diverged"), step)
            assert curve.diverged_after is not None
            return curve.diverged_after, None
        seen = curve.seen[step]
        if study.judge(spec.number, step, {study.metric: seen.value}) == "prune":
            study.finish(TrialOutcome(spec.number, State.PRUNED, "pruned"), step)
            return seen.tokens, None
    study.finish(TrialOutcome(spec.number, State.COMPLETE, "done"), world.steps)
    return seen.tokens, seen.value


def on_grid(course: Sequence[tuple[float, float]], world: World) -> NDArray[np.float64]:
    """The regret at each share of the tokens of a search."""
    spent, regret = np.array(course).T
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
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    import warnings

    warnings.simplefilter("ignore")
    world = worlds()[group]()[at]
    file = out / f"{world.name}, {name}.jsonl".replace("/", "-").replace(": ", "-")
    known = len(file.read_text().splitlines()) if file.exists() else 0
    for seed in range(known, seeds):
        regrets = on_grid(search(world, WAYS[name], seed), world)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([round(float(regret), 5) for regret in regrets]) + "\n")


def read(out: Path, world: World, name: str, seeds: int) -> NDArray[np.float64] | None:
    file = out / f"{world.name}, {name}.jsonl".replace("/", "-").replace(": ", "-")
    if not file.exists():
        return None
    return np.array([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:seeds])


def show(group: str, out: Path, seeds: int) -> list[dict[str, Any]]:
    """A line a way: ratios on each world and, with their interval, on all of them: the geometric mean."""
    found = worlds()[group]()
    printed = Printed("way", *(f"{world.name}: ratio" for world in found), "all", *(f"regret, {at}" for at in AT))
    rows = []
    for name in WAYS:
        sides = [(read(out, world, RANDOM, seeds), read(out, world, name, seeds)) for world in found]
        if any(random is None or way is None for random, way in sides):
            continue
        row = summary(name, sides)
        rows.append(row)
        each = (f"{ratio:.2f}" for ratio in row["ratios"])
        low, high = row["interval"]
        regrets = (spread(row[at]) for at in AT)
        printed.add_row(name, *each, f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})", *regrets)
    Console(width=180).print(printed)
    return rows


def spread(mean_and_se: tuple[float, float]) -> str:
    return f"{mean_and_se[0]:.4f} +- {1.96 * mean_and_se[1]:.4f}"


def summary(name: str, sides: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    ratios = [ratio(random, way) for random, way in sides]
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = [[side[rng.integers(len(side), size=len(side))] for side in both] for both in sides]
        means.append(float(np.mean([math.log(ratio(random, way)) for random, way in drawn])))
    low, high = np.exp(np.quantile(means, [0.025, 0.975]))
    return {
        "way": name,
        "ratios": ratios,
        "ratio": math.exp(float(np.mean(np.log(ratios)))),
        "interval": (float(low), float(high)),
        **{words: regret_at(share, [way for _, way in sides]) for words, share in AT.items()},
        "seeds": min(len(way) for _, way in sides),
    }


def regret_at(share: float, ways: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The mean over worlds of the mean regret at a share of the tokens, and its standard error."""
    at = int(np.argmin(np.abs(GRID - share)))
    means = [float(way[:, at].mean()) for way in ways]
    errors = [float(way[:, at].std(ddof=1)) / len(way) ** 0.5 for way in ways]
    return float(np.mean(means)), math.hypot(*errors) / len(ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=list(worlds()), nargs="+", default=list(worlds()))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/samplers"))
    parser.add_argument("--table", action="store_true", help="show the searches that are there, and make none")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("cmaes") is None:
        print("cmaes is not installed: CMA-ES is left out")
        arguments.ways = [name for name in arguments.ways if not name.startswith("cma-es")]
    if not arguments.table:
        tasks = [
            (group, at, name, arguments.seeds, arguments.out)
            for name in arguments.ways
            for group in arguments.on
            for at in range(len(worlds()[group]()))
        ]
        with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(work, tasks))
    for group in arguments.on:
        show(group, arguments.out, arguments.seeds)


if __name__ == "__main__":
    main()
