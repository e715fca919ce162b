"""Worlds in which a search takes milliseconds: the table of real runs, and planted surfaces.

A world says what a trial of a point reports (`curve`) and how good the point truly is (`truth`), which no search sees.
"""

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.replay_table import TABLE
from tune_dlrml.config import SearchConfig, parse_config
from tune_dlrml.domains import Choice, Domain
from tune_dlrml.space import Point, SearchSpace

UNTRAINED = 0.5
"""Accuracy of the model that nothing has trained."""


class Seen(NamedTuple):
    """What a trial reports at a step: tokens that it has trained until then, and its objective."""

    tokens: float
    value: float


@dataclass(frozen=True)
class Curve:
    """A trial: what it reports by step, and the tokens after which it diverged, where it did."""

    seen: Mapping[int, Seen]
    diverged_after: float | None = None


class World(Protocol):
    """One search's circumstances; `seed` makes its noise.

    Attributes:
        name: For tables.
        document: The search without its `search` section's sampler and scheduler.
        steps: Full budget of a trial.
        least: Step of the first evaluation.
        tokens: Of a trial that is trained to its full budget.
    """

    name: str
    document: Mapping[str, Any]
    steps: int
    least: int
    tokens: float

    def curve(self, point: Point, number: int, seed: int) -> Curve:
        """What the trial of this number reports."""

    def truth(self, point: Point, seed: int) -> float:
        """The expected objective of a point at the full budget, by numbers that this search's trials do not show."""

    def best(self, seed: int) -> float:
        """The largest truth."""


def unit(domain: Domain, value: Any) -> float:
    """Where a value lies in its domain, on the domain's own scale, from 0 to 1."""
    if isinstance(domain, Choice):
        return (domain.values.index(value) + 0.5) / len(domain.values)
    if domain.log:
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return float((value - domain.low) / (domain.high - domain.low))


def place(space: SearchSpace, point: Point) -> tuple[str, NDArray[np.float64]]:
    """Branch of a point, and where it lies in the unit cube of the branch."""
    branch = space.branch_of(point)
    return branch, np.array([unit(domain, point[key]) for key, domain in space.domains(branch).items()])


class Table:
    """The replay table: a point is the nearest setting of its branch.

    A search sees each setting under one of the three seeds, the same one throughout, and the truth is the mean of the
    other two, so that no luck of a run that was seen counts as worth. A run that diverged is worth the untrained model.
    """

    def __init__(self, file: Path = TABLE) -> None:
        made = json.loads(gzip.decompress(file.read_bytes()))
        self.name, self.document = "table", made["recipe"]["document"]
        config = parse_config(self.document, source=str(file))
        self._space = SearchSpace(config)
        self.steps = config.training.steps(0, workers=1)
        at = {name: number for number, name in enumerate(made["metrics"])}[config.search.metric]
        runs: dict[int, list[Curve]] = {}
        for run in made["runs"]:
            seen = {row[0]: Seen(row[1], row[2 + at]) for row in run["curve"]}
            curve = Curve(seen, None if run["state"] == "complete" else run["tokens"])
            runs.setdefault(run["setting"], []).append(curve)
        self._curves = list(runs.values())
        self.seeds = len(self._curves[0])
        self._worth = np.array([[self._final(curve) for curve in own] for own in self._curves])
        self.least = min(min(own[0].seen, default=self.steps) for own in self._curves)
        self.tokens = float(
            np.median([one.seen[self.steps].tokens for own in self._curves for one in own if self._done(one)])
        )
        self._places: dict[str, tuple[NDArray[np.float64], list[int]]] = {}
        for row, setting in enumerate(runs):
            branch, where = place(self._space, made["settings"][str(setting)])
            cube, rows = self._places.get(branch, (np.empty((0, len(where))), []))
            self._places[branch] = np.vstack([cube, where]), [*rows, row]

    def _done(self, curve: Curve) -> bool:
        return curve.diverged_after is None

    def _final(self, curve: Curve) -> float:
        return curve.seen[self.steps].value if self._done(curve) else UNTRAINED

    def _row(self, point: Point) -> int:
        branch, where = place(self._space, point)
        cube, rows = self._places[branch]
        return rows[int(np.argmin(((cube - where) ** 2).sum(axis=1)))]

    def _seen_seed(self, row: int, seed: int) -> int:
        return (row + seed) % self.seeds

    def _truths(self, seed: int) -> NDArray[np.float64]:
        rows = np.arange(len(self._worth))
        seen = self._worth[rows, (rows + seed) % self.seeds]
        found: NDArray[np.float64] = (self._worth.sum(axis=1) - seen) / (self.seeds - 1)
        return found

    def curve(self, point: Point, number: int, seed: int) -> Curve:
        row = self._row(point)
        return self._curves[row][self._seen_seed(row, seed)]

    def truth(self, point: Point, seed: int) -> float:
        return float(self._truths(seed)[self._row(point)])

    def best(self, seed: int) -> float:
        return float(self._truths(seed).max())


@dataclass(frozen=True)
class Hill:
    """Where the top lies in the unit cube, how wide it is along each parameter, how high, and how it leans."""

    top: NDArray[np.float64]
    width: NDArray[np.float64]
    height: float
    lean: float

    def at(self, where: NDArray[np.float64]) -> float:
        off = where - self.top
        if len(off) > 1:  # the best learning rate, the last one, moves with the first parameter
            off[-1] -= self.lean * off[0]
        return self.height * math.exp(-0.5 * float(((off / self.width) ** 2).sum()))


@dataclass(frozen=True)
class Branch:
    """One branch of a planted surface.

    Attributes:
        hills: The first is the highest.
        limit: Learning rate, from 0 to 1, beyond which ever more trials diverge.
        slowness: Share of the budget in which most is learnt at a middling learning rate.
        trap: Below this first parameter the model learns the opposite; 0 for most branches.
    """

    hills: Sequence[Hill]
    limit: float
    slowness: float
    trap: float

    def skill(self, where: NDArray[np.float64]) -> float:
        """How far the accuracy of a trained model lies above that of the untrained one."""
        skill = max(hill.at(where) for hill in self.hills)
        return -skill / 2 if where[0] < self.trap else skill

    def falling(self, rate: float) -> float:
        """Share of trials that diverge."""
        return min(1.0, max(0.0, 5 * (rate - self.limit)))


@dataclass(frozen=True)
class Planted:
    """A surface over the space of a search file: hills in each branch, learning curves that cross, noise.

    Its kind follows the first settings of the replay table: the losses have nearly the same best learning rate, around
    which accuracy falls over a decade or two, their own parameters matter less, and one in five has a trap, as DiscoPOP
    has there. A low learning rate learns slowly and a high one fast, so that the order at a rung is not that at the
    end. The noise is that of the order of the pairs and, shared by the evaluations of one trial, of held-out pairs.

    Attributes:
        document: The search.
        landscape: Seed of the surface.
        hills: Of a branch.
        outward: How far the tops, which lie between 0.2 and 0.8 of each domain, are moved away from its middle.
        noise: In units of what is said above.
    """

    name: str
    document: Mapping[str, Any]
    landscape: int
    hills: int = 1
    steps: int = 64
    least: int = 1
    tokens: float = 64 * 450.0
    outward: float = 0.0
    noise: float = 1.0

    @cached_property
    def _space(self) -> SearchSpace:
        return SearchSpace(parse_config(dict(self.document), source=self.name))

    @cached_property
    def _branches(self) -> dict[str, Branch]:
        rng = np.random.default_rng(self.landscape)
        rate = float(self._moved(rng.uniform(0.35, 0.7)))
        return {name: self._branch(rng, rate, len(self._space.domains(name))) for name in self._space.branches}

    def _moved(self, at: Any) -> Any:
        return at + self.outward * np.sign(at - 0.5)

    def _branch(self, rng: np.random.Generator, rate: float, size: int) -> Branch:
        height = rng.uniform(0.15, 0.3)
        hills = [
            Hill(
                top=np.append(self._moved(rng.uniform(0.2, 0.8, size - 1)), rate + rng.normal(0, 0.06)),
                width=np.append(rng.uniform(0.25, 0.8, size - 1), rng.uniform(0.12, 0.25)),
                height=height if hill == 0 else 0.8 * height,
                lean=rng.uniform(-0.3, 0.3),
            )
            for hill in range(self.hills)
        ]
        trap = rng.uniform(0, 0.2) if size > 1 and rng.random() < 0.2 else 0.0
        return Branch(hills, hills[0].top[-1] + rng.uniform(0.15, 0.3), rng.uniform(0.2, 0.6), trap)

    def _at(self, point: Point) -> tuple[Branch, NDArray[np.float64]]:
        branch, where = place(self._space, point)
        return self._branches[branch], where

    def curve(self, point: Point, number: int, seed: int) -> Curve:
        branch, where = self._at(point)
        rng = np.random.default_rng([self.landscape, seed, number])
        order, pairs = self.noise * rng.normal(0, 0.03), self.noise * rng.normal(0, 0.015)
        falls = rng.random() < branch.falling(where[-1])
        end = int(self.steps * rng.uniform(0.05, 0.5)) if falls else self.steps
        pace = branch.slowness * math.exp(2 * (0.5 - where[-1]))
        steps = np.arange(1, end + 1)
        learnt = np.expm1(-steps / self.steps / pace) / np.expm1(-1 / pace)
        values = UNTRAINED + (branch.skill(where) + order) * learnt + pairs + self.noise * rng.normal(0, 0.015, end)
        seen = {
            int(step): Seen(self.tokens * int(step) / self.steps, float(value))
            for step, value in zip(steps, np.clip(values, 0, 1), strict=True)
        }
        return Curve(seen, self.tokens * end / self.steps if falls else None)

    def truth(self, point: Point, seed: int) -> float:
        branch, where = self._at(point)
        return UNTRAINED + branch.skill(where) * (1 - branch.falling(where[-1]))

    def best(self, seed: int) -> float:
        """The top of the highest hill: it lies outside of traps, and no trial diverges there."""
        return UNTRAINED + max(branch.hills[0].height for branch in self._branches.values())


def config_of(world: World, search: Mapping[str, Any]) -> SearchConfig:
    """A search of a world, all of whose other settings are the defaults."""
    return parse_config({**world.document, "name": "replayed", "search": dict(search)}, source=world.name)
