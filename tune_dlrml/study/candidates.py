"""Trials of losses that become known while a search runs: first those that its file names, then the proposed ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import NamedTuple, Protocol

from tune_dlrml.config import SearchConfig
from tune_dlrml.domains import middle_of
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.space import SearchSpace
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.study.proposer import BaselineFirst, Proposal, Proposer, When, drawn_points, point_proposal


class Candidate(NamedTuple):
    """A loss that is trained.

    Attributes:
        label: Branch of its trials.
        loss: Its searched fields hold domains.
    """

    label: str
    loss: AnyLoss


class Candidates(Protocol):
    """The proposed losses so far."""

    def accepted(self) -> Sequence[Candidate]:
        """Those that are trained, in the order of their acceptance: more are only added at the end."""

    @property
    def ended(self) -> bool:
        """Whether no more will be added."""


class NoneYet:
    """No proposed loss so far, as before a search."""

    ended = False

    def accepted(self) -> Sequence[Candidate]:
        """None."""
        return ()


@dataclass(frozen=True)
class CandidateTrials(Proposer):
    """Each loss in its turn, for as many trials as `discovery.trials_per_candidate` says; one if it has no domains.

    The first trial of a loss is the middle of its domains, the others are drawn by the search's sampler.

    Attributes:
        config: A search with `discovery`.
        candidates: The proposed losses.
        first: Number of the first trial.
    """

    config: SearchConfig
    candidates: Candidates
    first: int

    def total(self, rows: Sequence[TrialRow]) -> int:
        """As many as there are if every candidate is found."""
        assert self.config.discovery is not None
        seeds = sum(trials_of(self.config, each) for each in self._seeds())
        return self.first + seeds + self.config.discovery.candidates * self.config.discovery.trials_per_candidate

    def when(self, history: StudyHistory, number: int) -> When:
        """Now if its loss is known; never if that will not be found any more."""
        ended = self.candidates.ended  # before the candidates: the last one may come between
        if self._at(number) is not None:
            return "now"
        return "never" if ended else "later"

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        """The middle of a loss's domains, or a point that the sampler draws."""
        found = self._at(number)
        assert found is not None, "when() says whether there is one"
        (label, loss), place = found
        space = SearchSpace(self.config, {label: loss})
        if place > 0:
            return drawn_points(space, self.config.search).propose(history, number)
        return point_proposal(space, number, {name: middle_of(domain) for name, domain in space.domains(label).items()})

    def _at(self, number: int) -> tuple[Candidate, int] | None:
        """The loss of a trial, and which of its trials it is."""
        left = number - self.first
        for each in (*self._seeds(), *self.candidates.accepted()):
            trials = trials_of(self.config, each)
            if left < trials:
                return each, left
            left -= trials
        return None

    def _seeds(self) -> list[Candidate]:
        return [Candidate(label, loss) for label, loss in self.config.known_losses().branches().items()]


def trials_of(config: SearchConfig, candidate: Candidate) -> int:
    """Trials of a loss in a search with `discovery`: one where there is nothing to vary."""
    assert config.discovery is not None
    domains = SearchSpace(config, {candidate.label: candidate.loss}).domains(candidate.label)
    return config.discovery.trials_per_candidate if domains else 1


def candidate_proposer(config: SearchConfig, candidates: Candidates) -> Proposer:
    """The source of the trials of a search with `discovery`."""
    space = SearchSpace(config, {})  # the baseline is a point of no candidate
    baseline = space.baseline_spec(0)
    trials = CandidateTrials(config, candidates, 0 if baseline is None else 1)
    return trials if baseline is None else BaselineFirst(space, baseline, trials)


def free_label(name: str, taken: Sequence[str]) -> str:
    """The name, with a number behind it where it is taken."""
    labels = chain([name], (f"{name}_{index}" for index in count(2)))
    return next(label for label in labels if label not in taken)
