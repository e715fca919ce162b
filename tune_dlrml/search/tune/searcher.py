"""Ray Tune's view of the study: which trial comes next, and what its results mean."""

import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ray.tune.search import Searcher
from ray.tune.utils.util import unflatten_dict

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.records import Fault, Report, State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow, Verdict
from tune_dlrml.study.study import SearchStudy

SLOT_DIED = "the trial's slot died"
SAME_FAILURES = 3
"""Number of trials in a row with the same exception that ends the search."""


class SearchObserver(Protocol):
    """Observes a search while it runs: the event log, MLflow, the progress display."""

    def on_start(self, spec: TrialSpec) -> None:
        """A trial is issued, for the first time or again, see its attempt; the study accepts attributes for it.

        Where the last driver died between a verdict and the trial's end, the attempt is the one that trained, and the
        end follows at once.
        """

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        """A report arrived; called before the study records it, so that the event log has all that the study has."""

    def on_pause(self, spec: TrialSpec, step: int) -> None:
        """A trial is paused at a rung; if it is promoted, it is issued again, with the same attempt."""

    def on_loss(self, spec: TrialSpec, reason: str, left: int) -> None:
        """A trial lost its workers and will be issued again; it may lose them `left` more times."""

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        """A trial ended, as the study now has it."""


@dataclass
class _LiveTrial:
    spec: TrialSpec
    steps: int = 0
    resumed: bool = False
    reported: int = 0
    paused: bool = False
    end: TrialOutcome | None = None
    error: TrialOutcome | None = None
    heard_s: float = field(default_factory=lambda: time.monotonic())


@dataclass
class _Row:
    """Failures of one kind that follow one another."""

    kind: str = ""
    count: int = 0

    def add(self, kind: str) -> int:
        self.kind, self.count = kind, self.count + 1 if kind == self.kind else 1
        return self.count

    def end(self) -> None:
        self.kind, self.count = "", 0


@dataclass(frozen=True)
class Silence:
    """A running trial without a report for a while.

    Attributes:
        steps: Of its last report since it was issued; 0 also while its worker group has not started.
        seconds: Since then.
    """

    number: int
    steps: int
    seconds: float


class StudySearcher(Searcher):  # type: ignore[misc]
    """Passes the study's trials to Tune and Tune's results to the study.

    A result of a trial is a dict with the trial's `number`, its `reports` since the last one (at most one of them at
    a rung, and that the last), its `outcome` once it has ended, and `done`. A result without reports and outcome is
    a heartbeat.

    A trial ends here by a verdict (PRUNED), by its outcome (COMPLETE, DIVERGED, FAILED) or by an error that Tune
    reports (FAILED). One that is paused has ended for Tune alone; if it is promoted, it comes as another of Tune's
    trials, and else it is PRUNED when no trial is left that could change that. One that only lost its workers, its
    slot or its node is issued again as the next one, with its number, until its budget of `search.max_failures` is used
    up. Tune stops trials by itself when the search is interrupted or its time is up. It then does not notify its
    searcher, or notifies it without outcome and verdict: such a trial stays RUNNING in the study, and the next driver
    that trains issues it again.

    Args:
        study: Makes and records the decisions.
        observer: Notified of starts, reports, losses and ends.
        expired: Whether the time of the search is up; then no new trial is issued.
        allowed: Raises if this driver must not drive the search any more; called before a trial is issued.
        waiting: Called with the number of running trials whenever the next one is not known yet.

    Attributes:
        same_failures: Why the search ended early, if trials kept failing in the same way; else empty.
        broken: An error of the study or the observer, which no trial caused. It ends the search: the next `suggest`
            raises it, since Tune would otherwise treat it as a trial's failure or wrap it.
    """

    def __init__(
        self,
        study: SearchStudy,
        observer: SearchObserver,
        *,
        expired: Callable[[], bool] = lambda: False,
        allowed: Callable[[], None] = lambda: None,
        waiting: Callable[[int], None] = lambda running: None,
    ) -> None:
        super().__init__()
        self._study, self._observer, self._expired, self._allowed = study, observer, expired, allowed
        self._waiting = waiting
        self._interrupted = deque(study.interrupted())
        self._live: dict[str, _LiveTrial] = {}
        self._failures, self._failures_on_resuming = _Row(), _Row()
        self._on_interrupt: Any = None
        self.same_failures = ""
        self.broken: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as Tune's configuration, or FINISHED; None while there may be one later."""
        if self.broken is not None:
            raise self.broken
        if self.same_failures or self._expired():
            return str(Searcher.FINISHED)
        with self._search_ends_on_error():
            self._allowed()
            waits = self._study.waits()  # before it is asked: another thread may make the next trial known between
            spec = self._next()
            if spec is None:
                if waits:
                    self._waiting(len(self._live))
                elif not self._live:
                    self._end_paused()
                return None if self._live or (waits and not self._is_interrupted()) else str(Searcher.FINISHED)
            reached = self._study.steps_reached(spec.number)
            self._live[trial_id] = _LiveTrial(spec, steps=reached, resumed=reached > 0)
            self._observer.on_start(spec)
        return {"spec": spec.model_dump(mode="json")}

    def _is_interrupted(self) -> bool:
        """Whether Ctrl-C has come since this was first called.

        Without a running trial Tune asks here for ten minutes before it looks at its own flag. Its handler puts back
        the one that was there before it.
        """
        handler = signal.getsignal(signal.SIGINT)
        self._on_interrupt = self._on_interrupt or handler
        return handler is not self._on_interrupt

    def _next(self) -> TrialSpec | None:
        while self._interrupted:
            number = self._interrupted.popleft()
            step = self._study.pruned_at(number)
            if step is None:
                return self._study.reissue(number)
            # The last driver died between the verdict and the trial's end.
            spec = self._study.row(number).spec
            assert spec is not None
            self._observer.on_start(spec)
            self._end(_LiveTrial(spec, steps=step), self._pruned(number, step))
        return self._study.ask()

    def _end_paused(self) -> None:
        for number, step in self._study.paused.items():
            spec = self._study.row(number).spec
            assert spec is not None
            self._end(_LiveTrial(spec, steps=step), self._pruned(number, step))

    def receive(self, trial_id: str, result: Mapping[str, Any]) -> Verdict:
        """Process the reports of a result; the scheduler, which Tune asks first, passes every result to this method."""
        with self._search_ends_on_error():
            return self._take(self._live[trial_id], result)

    def _take(self, live: _LiveTrial, result: Mapping[str, Any]) -> Verdict:
        verdict: Verdict = "continue"
        for line in result.get("reports", ()):
            report = Report.from_json(line)
            live.steps = live.reported = report.step
            live.heard_s = time.monotonic()
            self._observer.on_report(live.spec, report)
            if report.rung or (report.evaluated and report.step == self._study.full_steps):
                verdict = self._judge(live, report)
        return verdict

    def _judge(self, live: _LiveTrial, report: Report) -> Verdict:
        self._allowed()
        number, step = report.number, report.step
        missing = next((name for name in self._study.needed_metrics if name not in report.metrics), None)
        if missing is not None:
            live.end = TrialOutcome(number, State.DIVERGED, f"{missing} is not finite at step {step}")
            return "prune"
        verdict = self._study.judge(number, step, report.metrics)
        if verdict == "prune":
            live.end = self._pruned(number, step)
        elif verdict == "pause":
            live.paused = True
            self._went_well(live)
            self._observer.on_pause(live.spec, step)
        return verdict

    def _pruned(self, number: int, step: int) -> TrialOutcome:
        return TrialOutcome(number, State.PRUNED, self._study.prune_reason(number, step))

    def note_error(self, trial_id: str, text: str, *, lost: bool) -> None:
        """Keep the exception of a slot that Tune is about to drop; `on_trial_complete` does not carry it."""
        live = self._live.get(trial_id)
        if live is not None:
            fault = Fault.LOST if lost else Fault.TRIAL
            live.error = TrialOutcome(live.spec.number, State.FAILED, headline_of_traceback(text), text, fault=fault)

    def silences(self, longer_than_s: float) -> list[Silence]:
        """Running trials without a report for so long; safe to be called from another thread."""
        now = time.monotonic()
        every = [Silence(live.spec.number, live.reported, now - live.heard_s) for live in list(self._live.values())]
        return [silence for silence in every if silence.seconds > longer_than_s]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler has passed the result on to `receive`."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended for Tune; record how, unless Tune stopped it by itself."""
        live = self._live.pop(trial_id, None)
        if live is None or live.paused or self.broken is not None:
            return
        with self._search_ends_on_error():
            if error:
                live.end = live.error or TrialOutcome(live.spec.number, State.FAILED, SLOT_DIED)
            elif live.end is None and result is not None:
                # A result with `done` comes here directly; Tune does not show it to the scheduler.
                self._take(live, result)
                live.end = live.end or _outcome(result)
            if live.end is not None:
                self._end(live, live.end)

    def _end(self, live: _LiveTrial, outcome: TrialOutcome) -> None:
        if outcome.fault in _ENDS_THE_SEARCH:
            raise _ENDS_THE_SEARCH[outcome.fault](outcome.reason)
        if outcome.fault is Fault.LOST:
            left = self._study.count_loss(outcome.number)
            if left >= 0:
                self._interrupted.appendleft(outcome.number)
                self._observer.on_loss(live.spec, outcome.reason, left)
                return
            outcome = replace(outcome, reason=f"lost more often than search.max_failures allows: {outcome.reason}")
        row = self._study.finish(outcome, live.steps)
        self._count_failures(live, row)
        self._observer.on_end(live.spec, row)

    def _count_failures(self, live: _LiveTrial, row: TrialRow) -> None:
        if row.state is not State.FAILED:
            self._went_well(live)
            return
        rows = [(self._failures, ""), *([(self._failures_on_resuming, "resumed ")] if live.resumed else [])]
        for own, kind in rows:
            if own.add(_without_numbers(row.stop_reason)) >= SAME_FAILURES:
                self.same_failures = f"{own.count} {kind}trials in a row failed in the same way: {row.stop_reason}"

    def _went_well(self, live: _LiveTrial) -> None:
        self._failures.end()
        if live.resumed:  # the others do not show that a checkpoint can be read
            self._failures_on_resuming.end()

    @contextmanager
    def _search_ends_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.broken = error
            raise

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher to disk, and the study's URL may hold a password."""
        return {}


_ENDS_THE_SEARCH = {Fault.STORAGE: StorageError, Fault.INPUT: InputError}


def headline_of_traceback(traceback: str) -> str:
    """The line of a traceback that names the exception; in a text without one, the first sentence of its last line."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
    if named:
        return named[-1].strip()
    return re.split(r"(?<=\.) ", lines[-1].strip())[0] if lines else SLOT_DIED


def _without_numbers(reason: str) -> str:
    """A reason without counts, sizes and addresses, which differ between two cases of the same failure."""
    return re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "#", reason)


def _outcome(result: Mapping[str, Any]) -> TrialOutcome | None:
    """The outcome inside a result, whose nested keys Tune has joined by a slash."""
    own = {key: value for key, value in result.items() if key.partition("/")[0] == "outcome"}
    outcome = unflatten_dict(own).get("outcome")
    if outcome is None:
        return None
    return TrialOutcome(**{**outcome, "state": State(outcome["state"]), "fault": Fault(outcome["fault"])})
