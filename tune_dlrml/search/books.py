"""The records of a search: what happens to its trials is recorded before it is shown or logged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tune_dlrml.evaluation.judges.jury import Grading
from tune_dlrml.events import EventLog
from tune_dlrml.records import Report, State
from tune_dlrml.search.discovering import Discovering
from tune_dlrml.search.judging.stage import Evaluation
from tune_dlrml.search.tune.searcher import SearchObserver
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.tracking.tracker import Tracker
from tune_dlrml.training.checkpoint import discard_checkpoints, keep_newest_checkpoint


class SearchView(SearchObserver, Protocol):
    """Shows a search to the user."""

    def on_begin(self, num_trials: int, done: int, full_steps: int, paused: Mapping[int, int]) -> None:
        """The study is open; nothing was started yet. `paused` has the steps at which trials are paused."""

    def on_total(self, num_trials: int) -> None:
        """The number of trials of the search: fewer than at its begin where their source has ended early."""

    def on_notice(self, text: str) -> None:
        """Something that the user should know while the search runs; may come from another thread."""

    def on_judged(self, number: int, grading: Grading) -> None:
        """Judges have scored a trial's answers; comes from another thread."""


def reconcile(rows: Sequence[TrialRow], events: EventLog) -> None:
    """Update event logs and checkpoints to the study, where a driver died before it had written all of them."""
    for row in rows:
        if row.state.ended and not events.ended(row.number):
            _write_end(row, events)
        if row.state is State.PAUSED:
            _write_pause(row.number, row.steps, events, late=True)


def _write_pause(number: int, step: int, events: EventLog, *, late: bool = False) -> None:
    """Record that a trial is paused, if it is not; of its checkpoints the last is enough to go on.

    Args:
        number: The trial.
        step: Of its rung.
        events: Its log.
        late: Whether a driver does that died before: then the pause has begun with the trial's last report.
    """
    if not events.paused(number):
        times = [report.timestamp_ms for report in events.reports(number)] if late else []
        events.pause(number, step, max(times, default=None))
    keep_newest_checkpoint(events.path(number).parent)


def _write_end(row: TrialRow, events: EventLog) -> None:
    """Record the end of a trial; only a complete one keeps a checkpoint: the trained model."""
    trial_folder = events.path(row.number).parent
    if row.state is State.COMPLETE:
        keep_newest_checkpoint(trial_folder)
    else:
        discard_checkpoints(trial_folder)
    events.end(row.number, row.state, row.stop_reason)


class Books:
    """Records everything that happens, in this order: event log, MLflow, view.

    Submits answers to the judges, and tells the search for losses that something has changed.

    Args:
        tags: What the run of a trial in MLflow is tagged with.
    """

    def __init__(
        self,
        study: SearchStudy,
        events: EventLog,
        tracker: Tracker,
        view: SearchView,
        evaluation: Evaluation,
        discovering: Discovering,
        tags: Callable[[TrialSpec], Mapping[str, str]] = lambda spec: {},
    ) -> None:
        self._study, self._events, self._tracker, self._view = study, events, tracker, view
        self._evaluation, self._discovering = evaluation, discovering
        self._tags = tags
        self._runs: dict[int, str | None] = {}

    def on_start(self, spec: TrialSpec) -> None:
        """A trial is issued."""
        self._events.start(spec, self._tags(spec))
        self._tracker.notify(spec.number)
        self._view.on_start(spec)
        self._discovering.on_change()

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        """A report arrived; one whose step is already recorded is only shown."""
        if self._events.report(report):
            self._tracker.notify(spec.number)
            self._note_run(spec.number)
        self._view.on_report(spec, report)

    def _note_run(self, number: int) -> None:
        """Record the trial's MLflow run in the study once there is one, for readers of the study alone."""
        run = self._tracker.run_id(number)
        if run != self._runs.get(number):
            self._study.set_attribute(number, "mlflow_run_id", run)
            self._runs[number] = run

    def on_pause(self, spec: TrialSpec, step: int) -> None:
        """A trial is paused."""
        _write_pause(spec.number, step, self._events)
        self._tracker.notify(spec.number)
        self._view.on_pause(spec, step)
        self._discovering.on_change()

    def on_loss(self, spec: TrialSpec, reason: str, left: int) -> None:
        """A trial lost its workers."""
        self._view.on_loss(spec, reason, left)

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        """A trial ended."""
        _write_end(row, self._events)
        self._tracker.notify(row.number)
        self._view.on_total(self._study.num_trials)
        self._view.on_end(spec, row)
        self._evaluation.on_end(row)
        self._discovering.on_change()

    def on_judged(self, number: int, grading: Grading) -> None:
        """Judges have rated a trial's answers; comes from another thread."""
        self._tracker.notify(number)
        self._view.on_judged(number, grading)
        self._discovering.on_judged()
