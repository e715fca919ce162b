"""Frozen values that the stages of a search exchange."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

MARGINS = "margins.json"
"""File of a trial with the margin of every held-out pair at its end, in nats, in the same order for all trials."""


class State(StrEnum):
    """State of a trial: running, paused at a rung until it is promoted, or one of its four ends."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether a trial in it is trained no more."""
        return self not in (State.RUNNING, State.PAUSED)


@dataclass(frozen=True)
class Report:
    """Report of a trial after an optimizer step.

    Metrics are finite; a quantity that was not finite is left out and counted in the non-finite fractions.
    `evaluated` marks a report with held-out metrics, `rung` one that waits for a verdict.
    """

    number: int
    step: int
    timestamp_ms: int
    metrics: Mapping[str, float]
    evaluated: bool = False
    rung: bool = False

    def __post_init__(self) -> None:
        bad = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"a report holds finite numbers only, but {bad[0]} is {self.metrics[bad[0]]}")

    def as_json(self) -> dict[str, Any]:
        """One line of events.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """The report that `as_json` wrote."""
        return cls(**line)


@dataclass(frozen=True)
class Answer:
    """Answer to a trial's report.

    Attributes:
        go_on: Whether to continue training.
        acknowledged: Step of the newest report that is in the trial's event log; -1 while none is.
    """

    go_on: bool
    acknowledged: int = -1


class Completed(NamedTuple):
    """A policy's completion of a held-out prompt.

    Attributes:
        tokens: Its length, with the token that ended it if any did.
        reward: What it is worth; None where nothing rewards it.
    """

    tokens: int
    reward: float | None


class Fault(StrEnum):
    """Cause of a failure, which decides what follows from it."""

    TRIAL = "trial"
    """Training raised: the trial has failed, and would fail again."""
    LOST = "lost"
    """A process or a node died: the trial resumes elsewhere, from its last checkpoint."""
    STORAGE = "storage"
    """A disk is full or read-only: the search stops, and can be resumed."""
    INPUT = "input"
    """The search's own settings are invalid: no trial of it can be trained."""


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended in its worker group: complete, diverged or failed; the study decides about pruning."""

    number: int
    state: State
    reason: str
    exception: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    fault: Fault = Fault.TRIAL
