"""The thread that sends the events of a search to a tracking backend."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.errors import InputError
from tune_dlrml.events import EventLog
from tune_dlrml.tracking.backend import Backend, ClosedError
from tune_dlrml.tracking.outbox import Outbox, untracked

log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""How long events are gathered before they are sent."""
RETRY_S = 5.0
"""Pause before the backend is called again."""
START_S = 60.0
"""Time limit of its first answer, which includes making the tables of a new database."""
CLOSE_S = 60.0
"""How long a search waits for it at its end."""


@dataclass(frozen=True)
class _Description:
    config_yaml: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class _Closing:
    summary: Mapping[str, float]
    tags: Mapping[str, str]
    status: str
    timestamp_ms: int


class Tracker:
    """A backend's view of one search. No method waits for the backend while the search runs.

    Args:
        backend: Has the runs of the search.
        events: The event logs of the search; events that were not sent yet are sent.
    """

    def __init__(self, backend: Backend, events: EventLog) -> None:
        self._backend, self._events = backend, events
        self._outbox = Outbox(events, backend)
        self._changed = threading.Condition()
        self._news: set[int] = set()
        self._description: _Description | None = None
        self._tables: Mapping[str, Mapping[str, Any]] = {}
        self._closing: _Closing | None = None
        self._tried = threading.Event()
        self._error: str | None = None
        self._closed_by = ""
        self._warned: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def require_answer(self) -> None:
        """Wait until the backend has answered for the first time.

        Raises:
            InputError: It does not.
        """
        answered = self._tried.wait(START_S)
        if not answered or self._error is not None:
            self.leave()
            if self._closed_by:
                raise InputError(f"{self._closed_by}: {self._error}")
            cause = self._error or f"no answer in {START_S:.0f} s"
            raise InputError(
                f"{self._backend.key}: {self._backend.title} must answer when a search starts, but "
                f"{self._backend.place} does not ({cause}); start it or change the URI"
            )

    def describe_search(self, config_yaml: str, params: Mapping[str, Any]) -> None:
        """Log the resolved search-space file to the parent run, and its settings as params."""
        with self._changed:
            self._description = _Description(config_yaml, params)
            self._changed.notify_all()

    def keep_table(self, name: str, table: Mapping[str, Any]) -> None:
        """Show a table in the parent run, in place of an earlier one of its name; see `Backend.keep_tables`."""
        with self._changed:
            self._tables = {**self._tables, name: table}
            self._changed.notify_all()

    def notify(self, number: int) -> None:
        """Signal that the log of a trial has new events."""
        with self._changed:
            self._news.add(number)
            self._changed.notify_all()

    def run_id(self, number: int) -> str | None:
        """The backend's run of a trial; None as long as there is none."""
        return self._outbox.run_id(number)

    def behind(self) -> int:
        """Number of events that were not sent or were refused, plus one for each open change of the parent run."""
        own = (self._description is not None) + len(self._tables)
        return untracked(self._events, self._backend.name) + self._outbox.refused + own

    @property
    def trouble(self) -> str:
        """Why the backend does not accept events, as far as it is known."""
        return self._error or ""

    def close(self, summary: Mapping[str, float], tags: Mapping[str, str], *, status: str) -> int:
        """Send what is left, for up to `CLOSE_S` seconds, and close the parent run with the numbers of the search.

        Returns:
            What is still `behind`; a later tracker of the same search continues where this one stopped.
        """
        with self._changed:
            self._closing = _Closing(summary, tags, status, int(time.time() * 1000))
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        self.leave()
        return self.behind()

    def leave(self) -> None:
        """Stop without waiting for the backend; the next tracker of this search sends the rest."""
        self._outbox.abandoned = True
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._outbox.abandoned:
            closing = self._closing
            done = self._attempt(closing)
            self._tried.set()
            if done and closing is not None:
                return
            self._rest(done)

    def _rest(self, done: bool) -> None:
        """Wait for new events and gather them for a while, or pause before the backend is called again."""
        with self._changed:
            self._changed.wait_for(lambda: not done or self._has_work() or self._outbox.abandoned)
            self._changed.wait_for(
                lambda: self._outbox.abandoned or (done and self._closing is not None), FLUSH_S if done else RETRY_S
            )

    def _has_work(self) -> bool:
        described = self._description is None and not self._tables
        return bool(self._news) or not described or self._closing is not None

    def _attempt(self, closing: _Closing | None) -> bool:
        """Send everything; False if something is left."""
        with self._changed:
            numbers, self._news = self._news, set()
        done = False
        try:
            numbers |= self._outbox.open()
            if closing is not None:
                numbers.update(self._events.numbers())
            sent = [self._is_delivered(number) for number in sorted(numbers)]
            described = self._is_described()
            done = all(sent) and (described or closing is not None)
            if self._backend.doubtful or closing is not None:
                self._outbox.drop_twins()
            if closing is not None:
                self._outbox.close(closing.summary, closing.tags, closing.status, closing.timestamp_ms, whole=described)
            self._note(None)
        except Exception as error:  # whatever the backend raises: the logs keep the events, and `behind` counts them
            done = False
            self._note(error)
        finally:
            if not done:
                with self._changed:
                    self._news |= numbers
        return done

    def _is_delivered(self, number: int) -> bool:
        """Send the events of one trial; an error of this trial alone does not delay the others."""
        try:
            self._outbox.deliver(number)
        except Exception as error:
            if self._backend.is_away(error):
                raise
            self._warn(f"trial {number} is not in {self._backend.title} yet", error)
            return False
        return True

    def _is_described(self) -> bool:
        """Describe the search; artifacts may have a store of their own, which alone may be unavailable."""
        description, tables = self._description, self._tables
        try:
            if description is not None:
                self._backend.describe(self._outbox.parent, description.config_yaml, description.params)
            if tables:
                self._backend.keep_tables(self._outbox.parent, tables)
        except Exception as error:
            self._warn(f"{self._backend.title} has no description of the search yet", error)
            return False
        with self._changed:
            if self._description is description:
                self._description = None
            newer = {name: table for name, table in self._tables.items() if tables.get(name) is not table}
            self._tables = newer
        return True

    def _warn(self, what: str, error: Exception) -> None:
        """Log a warning, once as long as the error is the same."""
        cause = self._backend.shown(error)
        if self._warned.get(what) != cause:
            log.warning("%s: %s", what, cause)
        self._warned[what] = cause

    def _note(self, error: Exception | None) -> None:
        """Log once that the backend is unavailable, and once that it is back, before `trouble` changes."""
        cause, title = None if error is None else self._backend.shown(error), self._backend.title
        closed_by = error.key if isinstance(error, ClosedError) else ""
        if self._error is None and cause is not None:
            what = f"{title} accepts nothing" if closed_by else f"{title} is unavailable"
            log.warning("%s; training continues, and everything is logged to %s later: %s", what, title, cause)
        elif self._error is not None and cause is None:
            log.warning("%s is available again and has everything up to now", title)
        self._error, self._closed_by = cause, closed_by


def keep_folder(backend: Backend, folder: Path) -> str | None:
    """Log a folder to the run of a search; return why that failed, None if it did not."""
    try:
        backend.keep_folder(folder)
    except Exception as error:  # whatever the backend raises: the files stay where they are
        return backend.shown(error)
    return None
