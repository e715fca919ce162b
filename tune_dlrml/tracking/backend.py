"""What the outbox asks of whatever keeps the runs of a search, one for the search and one for each of its trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tune_dlrml.events import Event


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class RunGoneError(Exception):
    """A run was deleted in the backend."""


class RefusedError(Exception):
    """The backend answered that it will never take what it was given; everything else is worth another try."""


class ClosedError(Exception):
    """The backend is there, and takes nothing before a person has done what the message says.

    Args:
        key: Of the search-space file, where else it could be changed.
        message: What is so, and the remedy.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Backend(Protocol):
    """The runs of one search. Only the tracker's thread calls it.

    Every call may raise, may be repeated, and then changes nothing twice: a run is looked for before it is made, and a
    point of the same name, step and timestamp is the same point. A call about a run raises RunGoneError if somebody has
    deleted that, RefusedError if the backend will never take what is given, and anything else if it may later.

    Attributes:
        title: What people call it.
        key: Of the search-space file, where it is chosen.
        points_a_call: Most points that `log` takes.
        doubtful: Whether a call that was given up may have made a run twice.
    """

    title: str
    key: str
    points_a_call: int
    doubtful: bool

    @property
    def place(self) -> str:
        """Where it is, without a password."""

    @property
    def name(self) -> str:
        """What tells it from other backends and places, without a password; cursors hold for a name."""

    def open(self, known: str | None) -> str:
        """The search's run, the known one if it is still there, now under way; its id.

        Raises:
            ClosedError: A person has to do something first.
        """

    def describe(self, parent: str, config_yaml: str, params: Mapping[str, Any], findings: Mapping[str, Any]) -> None:
        """The resolved search-space file, its settings, and a table of what was found in its data."""

    def close(
        self, parent: str, summary: Mapping[str, float], tags: Mapping[str, str], status: str, timestamp_ms: int
    ) -> None:
        """Close the search's run; a number that has changed since an earlier close gets the next step."""

    def children(self, parent: str) -> Mapping[int, Sequence[str]]:
        """Ids of the runs of every trial, all of them below the search's run from now on."""

    def child(self, number: int, event: Event, parent: str) -> str:
        """The run of a trial, made as of its start event if there is none yet; its id."""

    def start(self, run: str, event: Event) -> None:
        """A trial is under way as its start event says."""

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Keep points, `points_a_call` at most; all of them or, if it raises, any."""

    def end(self, run: str, event: Event) -> None:
        """Close a trial's run with what its end event says."""

    def add_files(self, run: str, paths: Sequence[Path]) -> None:
        """Keep files of a trial; a `.json` file is a table."""

    def drop_twins(self, parent: str, kept: Mapping[int, str | None]) -> None:
        """Delete runs that were made twice, but those in use; nothing is `doubtful` then."""

    def keep_folder(self, folder: Path) -> None:
        """Keep a folder, under its name, with the search's run, in place of the one of that name.

        Raises:
            RunGoneError: The search has no run.
        """

    def is_away(self, error: Exception) -> bool:
        """Whether the next call will hardly fare better than the one that raised this."""

    def shown(self, error: object) -> str:
        """What an error says, fit for a log: one line without a password."""
