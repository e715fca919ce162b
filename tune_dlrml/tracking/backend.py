"""The protocol of a tracking backend, which has a run for the search and one for each of its trials."""

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
    """The backend will never accept the data of a call; after any other error the call is worth repeating."""


class ClosedError(Exception):
    """The backend answers, but accepts nothing until the user has done what the message says.

    Args:
        key: Of the search-space file, for another remedy.
        message: The problem, and the remedy.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Backend(Protocol):
    """The runs of one search. Only the tracker's thread calls it.

    Every call may raise and may be repeated, and is idempotent: a run is searched for before it is made, and a point of
    the same name, step and timestamp is the same point. A call about a run raises RunGoneError if the run was deleted,
    RefusedError if the backend will never accept the data, and anything else if it may accept the data later.

    Attributes:
        title: Its name in messages.
        key: Of the search-space file, which selects it.
        points_a_call: Most points in a call of `log`.
        doubtful: Whether a call that timed out may have made a run twice.
    """

    title: str
    key: str
    points_a_call: int
    doubtful: bool

    @property
    def place(self) -> str:
        """Its address, without a password."""

    @property
    def name(self) -> str:
        """Its unique name among backends and addresses, without a password; a cursor belongs to a name."""

    def open(self, known: str | None) -> str:
        """Id of the search's run, the known one if it still exists, now running.

        Raises:
            ClosedError: The user has to do something first.
        """

    def describe(self, parent: str, config_yaml: str, params: Mapping[str, Any]) -> None:
        """Log the resolved search-space file and its settings."""

    def keep_tables(self, parent: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Show tables, each with `columns` and `data`, in the search's run, in place of earlier ones of their names."""

    def close(
        self, parent: str, summary: Mapping[str, float], tags: Mapping[str, str], status: str, timestamp_ms: int
    ) -> None:
        """Close the search's run; a number that has changed since an earlier close gets the next step."""

    def children(self, parent: str) -> Mapping[int, Sequence[str]]:
        """Ids of the runs of every trial, all of which are now children of the search's run."""

    def child(self, number: int, event: Event, parent: str) -> str:
        """Id of the run of a trial, which is made from its start event if it does not exist yet."""

    def start(self, run: str, event: Event) -> None:
        """Mark a trial's run as running, with the data of its start event."""

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Log points, at most `points_a_call`; all of them or, if it raises, any."""

    def pause(self, run: str) -> None:
        """Mark a trial's run as paused."""

    def end(self, run: str, event: Event) -> None:
        """Close a trial's run with the data of its end event."""

    def add_files(self, run: str, paths: Sequence[Path]) -> None:
        """Log files of a trial; a `.json` file is a table."""

    def drop_twins(self, parent: str, kept: Mapping[int, str | None]) -> None:
        """Delete runs that were made twice, except those in use; then `doubtful` is False."""

    def keep_folder(self, folder: Path) -> None:
        """Log a folder, under its name, to the search's run, in place of an earlier one.

        Raises:
            RunGoneError: The search has no run.
        """

    def is_away(self, error: Exception) -> bool:
        """Whether the backend is unavailable, so that the next call would fail like the one that raised this."""

    def shown(self, error: object) -> str:
        """The message of an error for a log: one line without a password."""
