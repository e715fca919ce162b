"""From the event logs to the backend: events after a cursor are sent, then the cursor moves."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tune_dlrml.events import Event, EventLog, parsed
from tune_dlrml.tracking.backend import Backend, Point, RefusedError, RunGoneError
from tune_dlrml.tracking.cursor import Cursor, cursor_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    """Data of one call: an event, or the points of several reports of which it is the first.

    A line that is not an event is None. `end` is the offset after the last line.
    """

    event: Event | None
    points: list[Point]
    end: int


class Outbox:
    """The event logs of a search and how far they were sent to the backend.

    Only one thread calls it, except for `run_id`.

    Args:
        events: The event logs.
        backend: Where the search's runs are.

    Attributes:
        refused: Number of events that the backend will never accept; they are skipped.
        abandoned: Set from outside to stop; no cursor moves after that.
    """

    def __init__(self, events: EventLog, backend: Backend) -> None:
        self._events, self._backend = events, backend
        self._parent: str | None = None
        self._store = backend.name
        self._run_ids = {number: self._cursor(number).run for number in events.numbers()}
        self.refused = 0
        self.abandoned = False

    def open(self) -> set[int]:
        """Find or make the parent run, once; returns the trials with events that were not sent.

        Where the run of a trial was deleted, its log is sent again from the beginning, into a new run.
        """
        if self._parent is not None:
            return set()
        path = _parent_path(self._events)
        parent = self._backend.open(Cursor.load(path, self._store).run)
        Cursor(self._store, parent).save(path)
        children = self._backend.children(parent)
        for number in self._events.numbers():
            run = self.run_id(number)
            if run is not None and run not in children.get(number, []):
                self._keep(number, Cursor(self._store))
        self._parent = parent
        return {number for number in self._events.numbers() if self._cursor(number).offset < self._events.size(number)}

    @property
    def parent(self) -> str:
        """Id of the parent run; `open` comes first."""
        assert self._parent is not None
        return self._parent

    def run_id(self, number: int) -> str | None:
        """Run of a trial, if there is one yet; from memory, so that it is cheap at every report."""
        return self._run_ids.get(number)

    def deliver(self, number: int) -> None:
        """Send the new events of one trial.

        Raises:
            Exception: Any error of the backend or the disk; events logged until then are not sent again.
        """
        cursor = self._cursor(number)
        if self._events.size(number) <= cursor.offset:
            return
        self._events.sync(number)
        while not self.abandoned and (lines := self._events.read(number, cursor.offset)):
            for batch in _batches(lines, self._backend.points_a_call):
                try:
                    cursor = replace(cursor, run=self._send(number, cursor.run, batch), offset=batch.end)
                except RunGoneError:
                    title = self._backend.title
                    log.warning("trial %d: its %s run was deleted; all its events are sent to a new one", number, title)
                    cursor = Cursor(self._store)
                self._keep(number, cursor)
                if self.abandoned or cursor.offset != batch.end:
                    break

    def drop_twins(self) -> None:
        """Delete runs that the backend made twice."""
        self._backend.drop_twins(self.parent, {number: self.run_id(number) for number in self._events.numbers()})

    def close(
        self,
        summary: Mapping[str, float],
        tags: Mapping[str, str],
        status: str,
        timestamp_ms: int,
        *,
        whole: bool = True,
    ) -> None:
        """Close the parent run, and record which events it includes.

        Where it lacks its description or a table and so is not `whole`, it counts as open: the next driver sends them.
        """
        total = sum(self._events.size(number) for number in self._events.numbers()) if whole else 0
        self._backend.close(self.parent, summary, tags, status, timestamp_ms)
        if not self.abandoned:
            Cursor(self._store, self.parent, total).save(_parent_path(self._events))

    def _send(self, number: int, run: str | None, batch: _Batch) -> str | None:
        event = batch.event
        if run is None and event is not None and event["kind"] == "start":
            run = self._backend.child(number, event, self.parent)
        if run is None or event is None:
            self._refuse(number, 1, "a line is not an event of a started trial")
            return run
        try:
            self._apply(number, run, event, batch.points)
        except RefusedError as error:
            self._refuse(number, 1, str(error))
        return run

    def _apply(self, number: int, run: str, event: Event, points: list[Point]) -> None:
        if event["kind"] == "start":
            self._backend.start(run, event)
        elif event["kind"] == "pause":
            self._backend.pause(run)
        elif event["kind"] == "end":
            self._backend.end(run, event)
        elif event["kind"] == "judged":
            self._backend.add_files(run, [*self._files(number, event["artifacts"])])
            self._apply_points(number, run, _points(event))
        else:
            self._apply_points(number, run, points)

    def _files(self, number: int, names: Sequence[str]) -> Iterator[Path]:
        """Files of a trial's own folder; links are refused, since they may lead to private files elsewhere."""
        for name in names:
            path = self._events.path(number).parent / name
            if path.is_symlink():
                self._refuse(number, 1, f"{name} is a link")
            else:
                yield path

    def _apply_points(self, number: int, run: str, points: list[Point]) -> None:
        if refused := self._log(run, points):
            steps = {point.step for point in refused}
            self._refuse(number, len(steps), f"metric {refused[0].name} at step {refused[0].step}")

    def _log(self, run: str, points: list[Point]) -> list[Point]:
        """Log points and find those that the backend refuses, by bisection, unless abandoned."""
        if self.abandoned:
            return []
        try:
            self._backend.log(run, points)
        except RefusedError:
            if len(points) == 1:
                return points
            half = len(points) // 2
            return self._log(run, points[:half]) + self._log(run, points[half:])
        return []

    def _refuse(self, number: int, count: int, what: str) -> None:
        if self.abandoned:  # nothing is skipped, since no cursor moves
            return
        title = self._backend.title
        log.warning("trial %d: %s refuses %d of its events: %s", number, title, count, self._backend.shown(what))
        self.refused += count

    def _cursor(self, number: int) -> Cursor:
        cursor = Cursor.load(cursor_path(self._events, number), self._store)
        # A log shorter than its cursor has lost its end, so its new events were never sent.
        return cursor if cursor.offset <= self._events.size(number) else Cursor(self._store)

    def _keep(self, number: int, cursor: Cursor) -> None:
        if not self.abandoned:
            cursor.save(cursor_path(self._events, number))
            self._run_ids[number] = cursor.run


def untracked(events: EventLog, store: str) -> int:
    """Number of events that were not sent to the backend of a name, plus one if the parent run must be closed again.

    Read from files alone; zero means that a tracker has nothing to do.
    """
    behind, total = 0, 0
    for number in events.numbers():
        size = events.size(number)
        offset = Cursor.load(cursor_path(events, number), store).offset
        behind += _count(events, number, offset if offset <= size else 0)
        total += size
    return behind + (Cursor.load(_parent_path(events), store).offset != total)


def _count(events: EventLog, number: int, offset: int) -> int:
    count = 0
    while lines := events.read(number, offset):
        count, offset = count + len(lines), lines[-1][1]
    return count


def _parent_path(events: EventLog) -> Path:
    return events.folder / "mlflow.json"


def _batches(lines: Sequence[tuple[bytes, int]], most: int) -> Iterator[_Batch]:
    """Group consecutive reports up to the limit of a call; every other line is a batch by itself."""
    first: Event | None = None
    points: list[Point] = []
    end = 0
    for line, behind in lines:
        event = parsed(line)
        own = _points(event) if event is not None and event["kind"] == "report" else []
        if points and (not own or len(points) + len(own) > most):
            yield _Batch(first, points, end)
            points = []
        if not own:
            yield _Batch(event, [], behind)
        first, points, end = first if points else event, points + own, behind
    if points:
        yield _Batch(first, points, end)


def _points(event: Event) -> list[Point]:
    """The metrics of a report or of a judgement."""
    return [Point(name, value, event["timestamp_ms"], event["step"]) for name, value in event["metrics"].items()]
