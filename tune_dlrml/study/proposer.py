"""Where the trials of a search come from. The study numbers and records them; what each of them is is said here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from tune_dlrml.config import SearchConfig, SearchSettings
from tune_dlrml.domains import Domain
from tune_dlrml.space import BRANCH, Point, SearchSpace, TrialSpec
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.study.sampling import Draw


@dataclass(frozen=True)
class Proposal:
    """What a trial is.

    Attributes:
        spec: The trial.
        domains: Of those of its parameters that samplers learn from; empty for a trial that is no point of the space.
    """

    spec: TrialSpec
    domains: Mapping[str, Domain] = field(default_factory=dict)


class Proposer(Protocol):
    """A source of trials.

    A proposal follows from the history, the proposer's own settings and the number alone: where a driver died before it
    had recorded one, the next driver asks for it again and gets the same.
    """

    def total(self, rows: Sequence[TrialRow]) -> int:
        """How many trials there are to be in all, those that the study has already (`rows`) among them."""

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """What the trial of this number is; the history has it under way and knows no more of it."""


@dataclass(frozen=True)
class RandomPoints:
    """Each parameter by itself, uniformly on the scale of its domain."""

    space: SearchSpace
    settings: SearchSettings

    def total(self, rows: Sequence[TrialRow]) -> int:
        """As many as are asked for."""
        assert self.settings.num_trials is not None  # config: only a grid ends by itself
        return self.settings.num_trials

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """What all branches share, the choice of the branch among it, then what that branch has of its own."""
        draw = Draw(history.optuna_study, number, self.settings)
        common = self.space.common()
        point = self._values(draw, "", common)
        branch = self.space.branch_of(point)
        own = {name: domain for name, domain in self.space.domains(branch).items() if name not in common}
        return _point(self.space, number, point | self._values(draw, branch, own))

    def _values(self, draw: Draw, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        return {name: draw.alone(name, domain) for name, domain in domains.items()}


class TpePoints(RandomPoints):
    """Parameters that always occur together are drawn together, once there are trials enough to model them.

    It is what TPESampler(group=True) infers from all past trials at each draw; but the space knows it, and the branches
    that were not chosen need not be drawn.
    """

    def _values(self, draw: Draw, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        return super()._values(draw, group, domains) | draw.jointly(group, domains)


@dataclass(frozen=True)
class GridPoints:
    """Every point of each branch's grid, in order.

    Attributes:
        first: Number of the trial that is the first point.
        skipped: A point that is a trial already.
    """

    space: SearchSpace
    settings: SearchSettings
    first: int = 0
    skipped: Point | None = None

    @cached_property
    def _points(self) -> Sequence[Point]:
        return [point for point in self.space.grid() if point != self.skipped]

    def total(self, rows: Sequence[TrialRow]) -> int:
        """All points, or as many as are asked for."""
        every, asked = self.first + len(self._points), self.settings.num_trials
        return every if asked is None else min(asked, every)

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The point at that place."""
        return _point(self.space, number, self._points[number - self.first])


@dataclass(frozen=True)
class BaselineFirst:
    """The baseline as trial 0, then the trials of another source.

    Where the space holds the baseline it is a point of it, so that samplers learn from it.
    """

    space: SearchSpace
    baseline: TrialSpec
    then: Proposer

    def total(self, rows: Sequence[TrialRow]) -> int:
        """The other source counts the baseline among its own."""
        return self.then.total(rows)

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The baseline or what the other source says."""
        if number > 0:
            return self.then.propose(history, number)
        point = self.space.baseline_point()
        return Proposal(self.baseline) if point is None else _point(self.space, number, point)


@dataclass(frozen=True)
class WantedTrials:
    """Trials that are known beforehand, and of which only those are issued that the study has not.

    Trials that were issued keep their numbers, also where they are wanted no more.

    Attributes:
        wanted: In the order in which they are issued, told apart by their parameters; their numbers do not count.
    """

    wanted: Sequence[TrialSpec]

    def total(self, rows: Sequence[TrialRow]) -> int:
        """What was issued and what is missing."""
        return max(len(rows), len(_issued(rows)) + len(self._missing(rows)))

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The next one that is missing, after those that become the trials before."""
        rows = history.rows()
        before = number - sum(each < number for each in _issued(rows))
        return Proposal(self._missing(rows)[before].model_copy(update={"number": number}))

    def _missing(self, rows: Sequence[TrialRow]) -> list[TrialSpec]:
        known = [spec.params for spec in _issued(rows).values()]
        return [spec for spec in self.wanted if spec.params not in known]


def proposer_of(config: SearchConfig) -> Proposer:
    """The source of a search's trials as its settings have it."""
    space, settings = SearchSpace(config), config.search
    baseline = space.baseline_spec(0)
    if settings.sampler == "grid":
        grid = GridPoints(space, settings, 0 if baseline is None else 1, space.baseline_point())
        return grid if baseline is None else BaselineFirst(space, baseline, grid)
    points = {"tpe": TpePoints, "random": RandomPoints}[settings.sampler](space, settings)
    return points if baseline is None else BaselineFirst(space, baseline, points)


def _point(space: SearchSpace, number: int, values: Point) -> Proposal:
    choice = space.choice_of_branch()
    domains = ({} if choice is None else {BRANCH: choice}) | space.domains(space.branch_of(values))
    return Proposal(space.spec(number, {name: values[name] for name in domains}), domains)


def _issued(rows: Sequence[TrialRow]) -> dict[int, TrialSpec]:
    """Trials by number, without those whose driver died before it had recorded what they are."""
    return {row.number: row.spec for row in rows if row.spec is not None}
