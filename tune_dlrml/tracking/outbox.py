"""From the event logs to MLflow: what is behind a cursor is sent, then the cursor moves."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from tune_dlrml.events import Event, EventLog, parsed
from tune_dlrml.tracking.cursor import Cursor, MlflowStore, cursor_path
from tune_dlrml.tracking.limits import METRICS_A_CALL, short_key
from tune_dlrml.tracking.runs import RunGoneError, SearchRuns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    """What goes in one call: an event, or the metrics of several reports of which it is the first.

    A line that is no event is None. `end` is the offset behind the last line.
    """

    event: Event | None
    metrics: list[Metric]
    end: int


class Outbox:
    """The event logs of a search and how far MLflow has them.

    One thread calls it; `run_id` may be called by any.

    Args:
        events: The event logs.
        runs: The search's runs in MLflow.
        store: The MLflow that the runs are in.

    Attributes:
        refused: Events that MLflow answered it will never take; they are passed over.
        abandoned: Set from outside when nobody waits for this any more; no cursor moves after that.
    """

    def __init__(self, events: EventLog, runs: SearchRuns, store: MlflowStore) -> None:
        self._events, self._runs, self._store = events, runs, store
        self._parent: str | None = None
        self._run_ids = {number: self._cursor(number).run for number in events.numbers()}
        self.refused = 0
        self.abandoned = False

    def open(self) -> set[int]:
        """Find or make the parent run, once; the trials of which MLflow does not have everything.

        Where the run of a trial was deleted, its log is sent again from the beginning, into a new run.
        """
        if self._parent is not None:
            return set()
        path = _parent_path(self._events)
        parent = self._runs.open(Cursor.load(path, self._store.name).run)
        Cursor(self._store.name, parent).save(path)
        children = self._runs.children()
        for number in self._events.numbers():
            run, there = self.run_id(number), children.get(number, [])
            if run is not None and run not in [other.info.run_id for other in there]:
                self._keep(number, Cursor(self._store.name))
            self._runs.adopt(parent, there)
        self._parent = parent
        return {number for number in self._events.numbers() if self._cursor(number).offset < self._events.size(number)}

    @property
    def parent(self) -> str:
        """Id of the parent run; `open` comes first."""
        assert self._parent is not None
        return self._parent

    def run_id(self, number: int) -> str | None:
        """Run of a trial, if there is one yet; from memory, so that it may be asked at every report."""
        return self._run_ids.get(number)

    def deliver(self, number: int) -> None:
        """Send what is new in the log of one trial.

        Raises:
            Exception: Whatever MLflow or the disk answers; what was taken until then stays taken.
        """
        cursor = self._cursor(number)
        if self._events.size(number) <= cursor.offset:
            return
        self._events.sync(number)
        while not self.abandoned and (lines := self._events.read(number, cursor.offset)):
            for batch in _batches(lines):
                try:
                    cursor = replace(cursor, run=self._send(number, cursor.run, batch), offset=batch.end)
                except RunGoneError:
                    log.warning("trial %d: its MLflow run was deleted; all of it goes into a new one", number)
                    cursor = Cursor(self._store.name)
                self._keep(number, cursor)
                if self.abandoned or cursor.offset != batch.end:
                    break

    def drop_twins(self) -> None:
        """Delete runs that MLflow made twice."""
        self._runs.drop_twins(self.parent, {number: self.run_id(number) for number in self._events.numbers()})

    def close(self, summary: Mapping[str, float], tags: Mapping[str, str], status: str, timestamp_ms: int) -> None:
        """Close the parent run, and note behind which events it is closed."""
        total = sum(self._events.size(number) for number in self._events.numbers())
        self._runs.close(self.parent, summary, tags, status, timestamp_ms)
        if not self.abandoned:
            Cursor(self._store.name, self.parent, total).save(_parent_path(self._events))

    def _send(self, number: int, run: str | None, batch: _Batch) -> str | None:
        event = batch.event
        if run is None and event is not None and event["kind"] == "start":
            run = self._runs.child(number, event, self.parent)
        if run is None or event is None:
            self._refuse(number, 1, "a line is no event of a trial that has started")
            return run
        try:
            self._apply(number, run, event, batch.metrics)
        except MlflowException as error:
            self._runs.raise_unless_refused(error, run)
            self._refuse(number, 1, error.message)
        return run

    def _apply(self, number: int, run: str, event: Event, metrics: list[Metric]) -> None:
        if event["kind"] == "start":
            self._runs.start(run, event)
        elif event["kind"] == "end":
            self._runs.end(run, event)
        elif event["kind"] == "judged":
            self._runs.add_files(run, [*self._files(number, event["artifacts"])])
            self._apply_metrics(number, run, _metrics(event))
        else:
            self._apply_metrics(number, run, metrics)

    def _files(self, number: int, names: Sequence[str]) -> Iterator[Path]:
        """Files of a trial's own folder; a link may lead out of it, to what nobody meant to publish."""
        for name in names:
            path = self._events.path(number).parent / name
            if path.is_symlink():
                self._refuse(number, 1, f"{name} is a link")
            else:
                yield path

    def _apply_metrics(self, number: int, run: str, metrics: list[Metric]) -> None:
        if refused := self._log(run, metrics):
            steps = {metric.step for metric in refused}
            self._refuse(number, len(steps), f"metric {refused[0].key} at step {refused[0].step}")

    def _log(self, run: str, metrics: list[Metric]) -> list[Metric]:
        """Log metrics and find those that MLflow refuses, by halving, as long as anyone waits for it."""
        if self.abandoned or self._runs.log(run, metrics):
            return []
        if len(metrics) == 1:
            return metrics
        half = len(metrics) // 2
        return self._log(run, metrics[:half]) + self._log(run, metrics[half:])

    def _refuse(self, number: int, count: int, what: str) -> None:
        if self.abandoned:  # nothing is passed over, since no cursor moves
            return
        log.warning("trial %d: MLflow never takes %d of its events: %s", number, count, self._store.shown(what))
        self.refused += count

    def _cursor(self, number: int) -> Cursor:
        cursor = Cursor.load(cursor_path(self._events, number), self._store.name)
        # A log shorter than what was sent of it has lost its end, and what follows it now was never sent.
        return cursor if cursor.offset <= self._events.size(number) else Cursor(self._store.name)

    def _keep(self, number: int, cursor: Cursor) -> None:
        if not self.abandoned:
            cursor.save(cursor_path(self._events, number))
            self._run_ids[number] = cursor.run


def untracked(events: EventLog, store: MlflowStore) -> int:
    """Events that MLflow has not taken, and one more while the parent run is not closed behind them.

    From files alone; zero means that a tracker would have nothing to do.
    """
    behind, total = 0, 0
    for number in events.numbers():
        size = events.size(number)
        offset = Cursor.load(cursor_path(events, number), store.name).offset
        behind += _count(events, number, offset if offset <= size else 0)
        total += size
    return behind + (Cursor.load(_parent_path(events), store.name).offset != total)


def _count(events: EventLog, number: int, offset: int) -> int:
    count = 0
    while lines := events.read(number, offset):
        count, offset = count + len(lines), lines[-1][1]
    return count


def _parent_path(events: EventLog) -> Path:
    return events.folder / "mlflow.json"


def _batches(lines: Sequence[tuple[bytes, int]]) -> Iterator[_Batch]:
    """Neighbouring reports together as far as one call takes them, every other line by itself."""
    first: Event | None = None
    metrics: list[Metric] = []
    end = 0
    for line, behind in lines:
        event = parsed(line)
        own = _metrics(event) if event is not None and event["kind"] == "report" else []
        if metrics and (not own or len(metrics) + len(own) > METRICS_A_CALL):
            yield _Batch(first, metrics, end)
            metrics = []
        if not own:
            yield _Batch(event, [], behind)
        first, metrics, end = first if metrics else event, metrics + own, behind
    if metrics:
        yield _Batch(first, metrics, end)


def _metrics(event: Event) -> list[Metric]:
    """The metrics of a report or of a judgement."""
    return [
        Metric(short_key(name), value, event["timestamp_ms"], event["step"]) for name, value in event["metrics"].items()
    ]
