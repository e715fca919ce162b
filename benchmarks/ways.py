"""Ways to search: samplers and schedulers that the package has, and others for its proposers and rungs, by name."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from benchmarks.replay import UNTRAINED, World, place
from tune_dlrml.domains import Domain
from tune_dlrml.space import BRANCH, SearchSpace
from tune_dlrml.space_points import values_at
from tune_dlrml.study.history import StudyHistory
from tune_dlrml.study.proposer import PointsFirst, Proposal, Proposer, RandomPoints, TpePoints, point_proposal
from tune_dlrml.study.sampling import Draw, derived_seed, distribution

MOST = 64
"""Most trials that a search may have."""

PUBLISHED: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.1},
    "discopop": {"beta": 0.05},
    "dlrml": {"beta_kl": 0.05, "beta_mix": 0.2},
    "ipo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "cpo": {"beta": 0.1, "nll_weight": 1.0},
    "orpo": {"beta": 0.1},
    "slic": {"delta": 1.0},
    "alphapo": {"alpha": 0.25, "beta": 2.5},
}
"""Values with which a loss was published or is run by default, by the loss and its field."""

# Samplers that the package does not have


class UniformStart(TpePoints):
    """TPE whose first trials are drawn anywhere in their domains, as Optuna's sampler draws them."""

    def _values(self, draw: Draw, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        return RandomPoints._values(self, draw, group, domains) | draw.jointly(group, domains)


class QuasiRandomStart(UniformStart):
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


class JointPoints(UniformStart):
    """TPE that draws the branch first, and then all parameters of the branch together, the shared ones among them."""

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        draw, choice = Draw(history.for_samplers(), number, self.settings), self.space.choice_of_branch()
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
        draw, choice = Draw(history.for_samplers(), number, self.settings), self.space.choice_of_branch()
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
        trials = [own for own in history.for_samplers().get_trials(deepcopy=False) if own.state.is_finished()]
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
    return PointsFirst(space, settings, points, 0, UniformStart(space, settings))


def published_first(space: SearchSpace, settings: Any) -> Proposer:
    """TPE behind one trial of each branch at PUBLISHED values; the learning rate, of another model, by chance."""

    def of(branch: str) -> dict[str, Any]:
        own = {f"{branch}.{key}": value for key, value in PUBLISHED.get(space.branches[branch].name, {}).items()}
        domains = space.domains(branch)
        return {key: value for key, value in own.items() if key in domains and within(domains[key], value)}

    points = [{BRANCH: branch} | of(branch) for branch in space.branches]
    return PointsFirst(space, settings, points, 0, UniformStart(space, settings))


def within(domain: Domain, value: float) -> bool:
    low, high = domain.extremes()
    return bool(low <= value <= high)


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
        promotes: Whether trials are paused at rungs and the best go on, instead of stopping there.
        knows_best: Whether the best is chosen by the truth.
        quiet: Whether a planted surface shows the truth, without noise.
    """

    search: Mapping[str, Any] = field(default_factory=dict)
    grace: float | None = 1 / 16
    factor: int = 4
    proposer: Callable[[SearchSpace, Any], Proposer] | None = None
    pruner: Callable[[Sequence[int], int, int], Any] | None = None
    promotes: bool = False
    knows_best: bool = False
    quiet: bool = False

    def settings(self, world: World, seed: int) -> dict[str, Any]:
        first = None if self.grace is None else max(world.least, round(self.grace * world.steps))
        scheduler = (
            None
            if first is None
            else {
                "type": "promotion" if self.promotes else "stopping",
                "grace_period": first,
                "reduction_factor": self.factor,
            }
        )
        return {"num_trials": MOST, "baseline": None, "seed": seed, "scheduler": scheduler} | dict(self.search)


def hyperband(rungs: Sequence[int], steps: int, factor: int) -> Any:
    return optuna.pruners.HyperbandPruner(min_resource=rungs[0], max_resource=steps, reduction_factor=factor)


def after(count: int) -> Callable[[Sequence[int], int, int], Any]:
    """Successive halving that promotes none of the first trials of a rung (Optuna's `bootstrap_count`)."""
    return lambda rungs, steps, factor: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=rungs[0], reduction_factor=factor, bootstrap_count=count
    )


STOPS, DEFAULT = "asha 4 from 1/16", "promotes 2 from 1/16"
RANDOM = "random, no pruning"
TPE = f"tpe, {STOPS}"
WAYS: dict[str, Way] = {
    RANDOM: Way({"sampler": "random"}, grace=None),
    "random, asha 4 from 1/16": Way({"sampler": "random"}),
    "random near the middle, asha 4 from 1/16": Way({"sampler": "random"}, proposer=MiddlePoints),
    "tpe, no pruning": Way(proposer=UniformStart, grace=None),
    TPE: Way(proposer=UniformStart),
    "tpe, asha 2 from 1/16": Way(proposer=UniformStart, factor=2),
    "tpe, asha 8 from 1/8": Way(proposer=UniformStart, grace=1 / 8, factor=8),
    "tpe, asha 4 from 1/4": Way(proposer=UniformStart, grace=1 / 4),
    "tpe, asha 2 from 1/4": Way(proposer=UniformStart, grace=1 / 4, factor=2),
    "tpe, asha 2 from 1/8": Way(proposer=UniformStart, grace=1 / 8, factor=2),
    "tpe, asha 4 from 1/16, after 4": Way(proposer=UniformStart, pruner=after(4)),
    "tpe, asha 2 from 1/8, after 4": Way(proposer=UniformStart, grace=1 / 8, factor=2, pruner=after(4)),
    "tpe, hyperband 4 from 1/16": Way(proposer=UniformStart, pruner=hyperband),
    "tpe, pasha 2 from 1/16": Way(
        proposer=UniformStart, factor=2, pruner=lambda rungs, steps, factor: Pasha(rungs, factor)
    ),
    "tpe, predicted from 1/8": Way(
        proposer=UniformStart, grace=1 / 8, factor=2, pruner=lambda rungs, steps, factor: Predicted(steps)
    ),
    "random, promotes 4 from 1/16": Way({"sampler": "random"}, promotes=True),
    "tpe, promotes 4 from 1/16": Way(proposer=UniformStart, promotes=True),
    "tpe of 5 first, asha 4 from 1/16": Way({"n_startup_trials": 5}, proposer=UniformStart),
    "tpe of 20 first, asha 4 from 1/16": Way({"n_startup_trials": 20}, proposer=UniformStart),
    "tpe of quasi-random first, asha 4 from 1/16": Way(proposer=QuasiRandomStart),
    "tpe of branches first, asha 4 from 1/16": Way(proposer=branches_first),
    "tpe of published first, asha 4 from 1/16": Way(proposer=published_first),
    "tpe of whole branches, asha 4 from 1/16": Way(proposer=JointPoints),
    "tpe of middle first, asha 4 from 1/16": Way(),
    "tpe of 20 middle first, asha 4 from 1/16": Way({"n_startup_trials": 20}),
    "gp over branches, asha 4 from 1/16": Way(proposer=GaussianProcess),
    "gp over branches, asha 2 from 1/8": Way(proposer=GaussianProcess, grace=1 / 8, factor=2),
    "gp in a branch, asha 4 from 1/16": Way(proposer=gp),
    "cma-es in a branch, asha 4 from 1/16": Way(proposer=cma),
}
# Every sampler once more behind the halving that the package has by default.
WAYS |= {
    name.replace(STOPS, DEFAULT): replace(way, factor=2, promotes=True)
    for name, way in WAYS.items()
    if name.endswith(STOPS)
}
