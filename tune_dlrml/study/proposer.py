"""Where the trials of a search come from: a proposer chooses them, the study numbers and records them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from tune_dlrml.config import SearchConfig, SearchSettings
from tune_dlrml.domains import Domain
from tune_dlrml.space import BRANCH, Point, SearchSpace, TrialSpec
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.study.sampling import Draw, derived_seed

When = Literal["now", "later", "never"]
"""Whether a trial can be proposed; `never` where a source has ended before its total."""


@dataclass(frozen=True)
class Proposal:
    """A proposed trial.

    Attributes:
        spec: The trial.
        domains: Of its parameters that samplers learn from; empty for a trial outside the space.
    """

    spec: TrialSpec
    domains: Mapping[str, Domain] = field(default_factory=dict)


class Proposer(Protocol):
    """A source of trials.

    A proposal depends only on the history, the proposer's own settings and the number: if a driver dies before it has
    recorded one, the next driver gets the same proposal.
    """

    def total(self, rows: Sequence[TrialRow]) -> int:
        """Total number of trials, including those that the study already has (`rows`)."""

    def when(self, history: StudyHistory, number: int) -> When:
        """Whether the trial of this number, below the total and the next to be issued, can be proposed."""
        return "now"

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The trial of this number; in the history it is running, without parameters."""


@dataclass(frozen=True)
class RandomPoints(Proposer):
    """Draws each parameter by itself, uniformly on the scale of its domain."""

    space: SearchSpace
    settings: SearchSettings

    def total(self, rows: Sequence[TrialRow]) -> int:
        """The configured number."""
        assert self.settings.num_trials is not None  # config: only a grid ends by itself
        return self.settings.num_trials

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """Draw the parameters shared by all branches, including the branch, then the parameters of that branch."""
        draw = Draw(history.for_samplers(), number, self.settings)
        common = self.space.common()
        point = self._values(draw, "", common)
        branch = self.space.branch_of(point)
        own = {name: domain for name, domain in self.space.domains(branch).items() if name not in common}
        return point_proposal(self.space, number, point | self._values(draw, branch, own))

    def _values(self, draw: Draw, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        return {name: draw.alone(name, domain) for name, domain in domains.items()}


class TpePoints(RandomPoints):
    """Parameters that always occur together are drawn together, once there are trials enough to model them.

    TPESampler(group=True) infers these groups from all past trials at each draw. Here the space defines them, and only
    the chosen branch is drawn. Until then they are drawn near the middle of their domains, where Optuna's sampler draws
    them anywhere.
    """

    def _values(self, draw: Draw, group: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
        drawn = draw.jointly(group, domains)
        return drawn | {name: draw.near_middle(name, domains[name]) for name in domains.keys() - drawn.keys()}


@dataclass(frozen=True)
class GridPoints(Proposer):
    """Every point of each branch's grid, in order.

    Attributes:
        first: Number of the trial that is the first point.
        skipped: A point that already is a trial.
    """

    space: SearchSpace
    settings: SearchSettings
    first: int = 0
    skipped: Point | None = None

    @cached_property
    def _points(self) -> Sequence[Point]:
        return [point for point in self.space.grid() if point != self.skipped]

    def total(self, rows: Sequence[TrialRow]) -> int:
        """All points, or the configured number."""
        every, asked = self.first + len(self._points), self.settings.num_trials
        return every if asked is None else min(asked, every)

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The point at that place."""
        return point_proposal(self.space, number, self._points[number - self.first])


@dataclass(frozen=True)
class BaselineFirst(Proposer):
    """The baseline as trial 0, then the trials of another source.

    If the space contains the baseline, it is recorded as a point of it, so that samplers learn from it.
    """

    space: SearchSpace
    baseline: TrialSpec
    then: Proposer

    def total(self, rows: Sequence[TrialRow]) -> int:
        """The total of the other source, which includes the baseline."""
        return self.then.total(rows)

    def when(self, history: StudyHistory, number: int) -> When:
        """The baseline at any time."""
        return "now" if number == 0 else self.then.when(history, number)

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The baseline, or a proposal of the other source."""
        if number > 0:
            return self.then.propose(history, number)
        point = self.space.baseline_point()
        return Proposal(self.baseline) if point is None else point_proposal(self.space, number, point)


@dataclass(frozen=True)
class PointsFirst(Proposer):
    """Points that are known beforehand, then the trials of another source.

    Attributes:
        points: What a point leaves out is drawn by chance.
        first: Number of the trial that is the first point.
        then: A source whose trials do not depend on their numbers but for their seeds.
    """

    space: SearchSpace
    settings: SearchSettings
    points: Sequence[Point]
    first: int
    then: Proposer

    def total(self, rows: Sequence[TrialRow]) -> int:
        """The other source counts the points among its own."""
        return self.then.total(rows)

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The point at that place or, behind the last, what the other source proposes."""
        if not 0 <= number - self.first < len(self.points):
            return self.then.propose(history, number)
        point = self.points[number - self.first]
        draw = Draw(history.for_samplers(), number, self.settings)
        domains = self.space.domains(self.space.branch_of(point))
        drawn = {name: draw.alone(name, domain) for name, domain in domains.items() if name not in point}
        return point_proposal(self.space, number, drawn | dict(point))


class Wanted(NamedTuple):
    """Trials that are wanted, in order, and whether more may be once some of them have ended."""

    trials: Sequence[TrialSpec]
    more: bool


@dataclass(frozen=True)
class WantedTrials(Proposer):
    """A list of trials, of which those are issued that the study does not have.

    Issued trials keep their numbers, even if they are no longer in the list.

    Attributes:
        wanted: In the order in which they are issued; identified by their parameters, not their numbers.
    """

    wanted: Sequence[TrialSpec]

    def wanted_after(self, rows: Sequence[TrialRow]) -> Wanted:
        """Those of the list that are wanted after the trials so far: all of them."""
        return Wanted(self.wanted, more=False)

    def total(self, rows: Sequence[TrialRow]) -> int:
        """Issued trials and all missing ones."""
        return max(len(rows), len(_issued(rows)) + len(_missing(self.wanted, rows)))

    def when(self, history: StudyHistory, number: int) -> When:
        """Now if a wanted one is missing that no lower number gets; later if more may be wanted."""
        rows = history.rows()
        wanted = self.wanted_after(rows)
        if _before(rows, number) < len(_missing(wanted.trials, rows)):
            return "now"
        return "later" if wanted.more else "never"

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The next missing trial, after those that lower numbers get."""
        rows = history.rows()
        missing = _missing(self.wanted_after(rows).trials, rows)
        return Proposal(missing[_before(rows, number)].model_copy(update={"number": number}))


def proposer_of(config: SearchConfig, start: Sequence[Point] = ()) -> Proposer:
    """The source of a search's trials as its settings have it.

    Args:
        config: The search.
        start: Points that are issued first, behind the baseline.
    """
    space, settings = SearchSpace(config), config.search
    if settings.start_from is not None:  # by its own seed it would draw what the earlier search has drawn
        seed = derived_seed(settings.seed, 0, settings.start_from.search)
        settings = settings.model_copy(update={"seed": seed})
    baseline = space.baseline_spec(0)
    first = 0 if baseline is None else 1
    proposer: Proposer
    if settings.sampler == "grid":
        proposer = GridPoints(space, settings, first, space.baseline_point())
    else:
        proposer = drawn_points(space, settings)
    if start:
        proposer = PointsFirst(space, settings, start, first, proposer)
    return proposer if baseline is None else BaselineFirst(space, baseline, proposer)


def drawn_points(space: SearchSpace, settings: SearchSettings) -> RandomPoints:
    """The points that a sampler draws."""
    return {"tpe": TpePoints, "random": RandomPoints}[settings.sampler](space, settings)


def point_proposal(space: SearchSpace, number: int, values: Point) -> Proposal:
    """A point of a space as a trial that samplers learn from."""
    choice = space.choice_of_branch()
    domains = ({} if choice is None else {BRANCH: choice}) | space.domains(space.branch_of(values))
    return Proposal(space.spec(number, {name: values[name] for name in domains}), domains)


def _issued(rows: Sequence[TrialRow]) -> dict[int, TrialSpec]:
    """Trials by number, without those whose driver died before it had recorded them."""
    return {row.number: row.spec for row in rows if row.spec is not None}


def _missing(wanted: Sequence[TrialSpec], rows: Sequence[TrialRow]) -> list[TrialSpec]:
    known = [spec.params for spec in _issued(rows).values()]
    return [spec for spec in wanted if spec.params not in known]


def _before(rows: Sequence[TrialRow], number: int) -> int:
    """How many trials below this number have yet to be recorded, as their driver died before that."""
    return number - sum(each < number for each in _issued(rows))
