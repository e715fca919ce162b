import pickle
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.tune.utils import flatten_dict

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.records import Fault, Report, State, TrialOutcome
from tune_dlrml.search.tune.scheduler import StudyScheduler
from tune_dlrml.search.tune.searcher import Silence, StudySearcher, headline_of_traceback
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.study import SearchStudy

Config = Callable[..., SearchConfig]
Open = Callable[..., SearchStudy]
MEMORY = "memory"


@dataclass
class Witness:
    """Remembers what it is told, and whether the study knew it already."""

    study: SearchStudy | None = None
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def on_start(self, spec: TrialSpec) -> None:
        self.events.append(("start", spec.number, spec.attempt))

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        known = None if self.study is None else self.study.row(spec.number).value
        self.events.append(("report", spec.number, report.step, known))

    def on_pause(self, spec: TrialSpec, step: int) -> None:
        self.events.append(("pause", spec.number, step))

    def on_loss(self, spec: TrialSpec, reason: str, left: int) -> None:
        self.events.append(("loss", spec.number, left))

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        self.events.append(("end", spec.number, row.state))


@dataclass
class TuneTrial:
    trial_id: str
    error_file: str | None = None
    pickled_error_file: str | None = None


class Tune:
    """Calls searcher and scheduler in the order in which Ray 2.60's TuneController does."""

    def __init__(self, study: SearchStudy, **options: Any) -> None:
        self.witness = Witness(study)
        self.searcher = StudySearcher(study, self.witness, **options)
        self.scheduler = StudyScheduler(self.searcher)
        self.trials = 0

    def next(self) -> str | None:
        """Tune's id of the next trial; None if there is none."""
        self.trials += 1
        config = self.searcher.suggest(f"tune-{self.trials}")
        if not isinstance(config, dict):
            return config
        self.spec = TrialSpec.from_json(config["spec"])
        return f"tune-{self.trials}"

    def result(self, trial_id: str, *reports: Report, outcome: TrialOutcome | None = None) -> str:
        result = {
            "number": 0,
            "reports": [report.as_json() for report in reports],
            "outcome": None if outcome is None else asdict(outcome),
            "done": outcome is not None,
        }
        flat = flatten_dict(result)
        stop = flat["done"] or self.scheduler.on_trial_result(None, TuneTrial(trial_id), flat) == "STOP"
        if not stop:
            self.searcher.on_trial_result(trial_id, flat)
            return "CONTINUE"
        self.scheduler.on_trial_complete(None, TuneTrial(trial_id), flat)
        self.searcher.on_trial_complete(trial_id, result=flat)
        return "STOP"

    def error(self, trial_id: str, folder: Path, text: str, error: Exception) -> None:
        file = folder / "error.txt"
        file.write_text(f"Failure # 1 (occurred at noon)\n{text}\n")
        pickled = folder / "error.pkl"
        pickled.write_bytes(pickle.dumps(error))
        self.scheduler.on_trial_error(None, TuneTrial(trial_id, str(file), str(pickled)))
        self.searcher.on_trial_complete(trial_id, error=True)


def report(number: int, step: int, accuracy: float | None = None, rung: bool = False) -> Report:
    metrics = {"train_loss": 0.5} | ({} if accuracy is None else {"eval_accuracy": accuracy})
    return Report(number, step, 1000 * step, metrics, evaluated=rung or accuracy is not None, rung=rung)


def complete(tune: Tune, trial_id: str, accuracy: float = 0.9) -> None:
    number = tune.spec.number
    tune.result(
        trial_id, report(number, 40, accuracy), outcome=TrialOutcome(number, State.COMPLETE, "done", seconds={"x": 1.0})
    )


def fail(tune: Tune, trial_id: str, reason: str) -> None:
    tune.result(trial_id, outcome=TrialOutcome(tune.spec.number, State.FAILED, reason, "Traceback ..."))


@pytest.fixture
def tune_with(config_with: Config, open_study: Open) -> Callable[..., Tune]:
    def make(expired: Callable[[], bool] = lambda: False, **search: Any) -> Tune:
        return Tune(open_study(config_with(sampler="random", **search), MEMORY), expired=expired)

    return make


def study_of(tune: Tune) -> SearchStudy:
    assert tune.witness.study is not None
    return tune.witness.study


def test_reports_are_passed_on_once_in_order_and_before_the_study_learns_of_them(
    tune_with: Callable[..., Tune],
) -> None:
    tune = tune_with()
    trial = tune.next()
    tune.result(trial)
    tune.result(trial, report(0, 1), report(0, 5, 0.6, rung=True))
    tune.result(trial)
    tune.result(trial, report(0, 9), report(0, 10, 0.7, rung=True))
    complete(tune, trial, 0.9)
    assert tune.witness.events == [
        ("start", 0, 0),
        ("report", 0, 1, None),
        ("report", 0, 5, None),
        ("report", 0, 9, 0.6),
        ("report", 0, 10, 0.6),
        ("report", 0, 40, 0.7),
        ("end", 0, State.COMPLETE),
    ]
    row = study_of(tune).row(0)
    assert (row.value, row.steps, row.stop_reason, row.attrs["seconds"]) == (0.9, 40, "done", {"x": 1.0})


def test_a_trial_that_the_study_prunes_is_stopped_and_reported_once(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with()
    for accuracy, decision in ((0.8, "CONTINUE"), (0.4, "STOP")):
        trial = tune.next()
        assert tune.result(trial, report(tune.spec.number, 5, accuracy, rung=True)) == decision
    assert tune.witness.events[2:] == [("start", 1, 0), ("report", 1, 5, None), ("end", 1, State.PRUNED)]
    row = study_of(tune).row(1)
    assert (row.state, row.value, row.steps) == (State.PRUNED, 0.4, 5)
    assert row.stop_reason == "successive halving at step 5"


PROMOTION = {"type": "promotion", "grace_period": 5, "reduction_factor": 2}


def test_a_paused_trial_gives_its_slot_to_others_and_comes_again_when_it_is_promoted(
    tune_with: Callable[..., Tune],
) -> None:
    tune = tune_with(scheduler=PROMOTION, baseline=None, num_trials=2)
    for accuracy in (0.8, 0.4):
        trial = tune.next()
        assert tune.result(trial, report(tune.spec.number, 5, accuracy, rung=True)) == "STOP"
    assert tune.witness.events == [
        ("start", 0, 0), ("report", 0, 5, None), ("pause", 0, 5),
        ("start", 1, 0), ("report", 1, 5, None), ("pause", 1, 5),
    ]  # fmt: skip
    assert [row.state for row in study_of(tune).rows()] == [State.PAUSED, State.PAUSED]
    assert tune.searcher.silences(0.0) == []  # nobody waits for a report of a paused trial
    promoted = tune.next()
    assert (tune.spec.number, tune.spec.attempt) == (0, 0)
    assert tune.next() is None  # 1 may be promoted yet
    assert tune.result(promoted, report(0, 5, 0.8, rung=True)) == "CONTINUE"  # sent again, from its checkpoint
    for step in (10, 20):  # as the last trial of the search it goes on where it would be promoted next
        assert tune.result(promoted, report(0, step, 0.9, rung=True)) == "CONTINUE"
    complete(tune, promoted)
    assert tune.next() == "FINISHED"
    row = study_of(tune).row(1)
    assert (row.state, row.steps, row.stop_reason) == (State.PRUNED, 5, "successive halving at step 5")
    assert tune.witness.events[-1] == ("end", 1, State.PRUNED)


def test_failures_with_paused_trials_between_them_are_not_in_a_row(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with(scheduler=PROMOTION | {"reduction_factor": 8}, baseline=None)
    for accuracy in (0.4, 0.3, 0.2):
        fail(tune, tune.next(), "OOM: 20 MiB")
        assert tune.result(tune.next(), report(tune.spec.number, 5, accuracy, rung=True)) == "STOP"
    assert not tune.searcher.same_failures and tune.next() != "FINISHED"


def test_failures_of_resumed_trials_are_in_a_row_though_new_ones_are_paused_between_them(
    tune_with: Callable[..., Tune],
) -> None:
    tune = tune_with(scheduler=PROMOTION, baseline=None, num_trials=20)
    accuracy, failed = 0.9, 0
    while (trial := tune.next()) != "FINISHED" and failed < 5:
        number = tune.spec.number
        if study_of(tune).steps_reached(number):
            fail(tune, trial, "RuntimeError: the checkpoint has another format")
            failed += 1
            continue
        accuracy -= 0.01
        assert tune.result(trial, report(number, 5, accuracy, rung=True)) == "STOP"
    assert failed == 3
    assert tune.searcher.same_failures.startswith("3 resumed trials in a row failed in the same way: RuntimeError")


def test_one_failure_on_resuming_is_not_in_a_row_with_those_of_new_trials_after_others_went_well(
    tune_with: Callable[..., Tune],
) -> None:
    tune = tune_with(scheduler=PROMOTION, baseline=None, num_trials=20)
    for accuracy in (0.8, 0.7):
        assert tune.result(tune.next(), report(tune.spec.number, 5, accuracy, rung=True)) == "STOP"
    promoted = tune.next()
    assert study_of(tune).steps_reached(tune.spec.number) == 5
    fail(tune, promoted, "OOM: 20 MiB")
    assert tune.result(tune.next(), report(tune.spec.number, 5, 0.1, rung=True)) == "STOP"
    for _ in range(2):
        fail(tune, tune.next(), "OOM: 20 MiB")
    assert not tune.searcher.same_failures


def test_a_loss_that_becomes_known_while_the_next_trial_is_asked_for_ends_no_paused_trial() -> None:
    known: list[bool] = []

    def ask() -> None:
        known.append(True)  # from here on another thread has the loss

    study: Any = SimpleNamespace(interrupted=list, ask=ask, waits=lambda: not known, paused={3: 10})
    searcher = StudySearcher(study, Witness(study))
    assert searcher.suggest("tune-1") is None


def test_a_promoted_trial_is_silent_since_it_was_issued_until_it_reports(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with(scheduler=PROMOTION, baseline=None, num_trials=2)
    for accuracy in (0.8, 0.4):
        tune.result(tune.next(), report(tune.spec.number, 5, accuracy, rung=True))
    promoted = tune.next()
    assert [silence.steps for silence in tune.searcher.silences(0.0)] == [0]
    tune.result(promoted, report(0, 6))
    assert [silence.steps for silence in tune.searcher.silences(0.0)] == [6]


def test_paused_trials_stay_so_when_the_time_is_up(tune_with: Callable[..., Tune]) -> None:
    up: list[bool] = []
    tune = tune_with(lambda: bool(up), scheduler=PROMOTION, baseline=None)
    tune.result(tune.next(), report(0, 5, 0.8, rung=True))
    up.append(True)
    assert tune.next() == "FINISHED"
    assert study_of(tune).row(0).state is State.PAUSED


def test_a_promoted_trial_that_loses_its_workers_is_issued_again(
    tune_with: Callable[..., Tune], tmp_path: Path
) -> None:
    tune = tune_with(scheduler=PROMOTION, baseline=None, num_trials=2)
    for accuracy in (0.8, 0.4):
        tune.result(tune.next(), report(tune.spec.number, 5, accuracy, rung=True))
    promoted = tune.next()
    assert promoted is not None
    tune.error(promoted, tmp_path, "gone", ActorDiedError())
    assert tune.next() is not None and (tune.spec.number, tune.spec.attempt) == (0, 1)


def test_the_full_budget_is_complete_however_bad(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with()
    for accuracy in (0.9, 0.1):
        trial = tune.next()
        assert tune.result(trial, report(tune.spec.number, 40, accuracy)) == "CONTINUE"
        tune.result(trial, outcome=TrialOutcome(tune.spec.number, State.COMPLETE, "done"))
    assert [row.state for row in study_of(tune).rows()] == [State.COMPLETE, State.COMPLETE]


def test_a_diverged_trial_is_recorded_with_its_reason(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with()
    trial = tune.next()
    tune.result(trial, report(0, 3), outcome=TrialOutcome(0, State.DIVERGED, "mean margin -600 nats at step 3"))
    row = study_of(tune).row(0)
    assert (row.state, row.steps, row.stop_reason) == (State.DIVERGED, 3, "mean margin -600 nats at step 3")


def test_a_rung_without_the_metric_is_a_divergence(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with()
    trial = tune.next()
    assert tune.result(trial, report(0, 5, rung=True)) == "STOP"
    row = study_of(tune).row(0)
    assert (row.state, row.value, row.stop_reason) == (
        State.DIVERGED,
        None,
        "eval_accuracy is not finite at step 5",
    )


def test_an_error_of_the_trial_actor_is_a_failure_with_its_exception(
    tune_with: Callable[..., Tune], tmp_path: Path
) -> None:
    tune = tune_with()
    trial = tune.next()
    tune.result(trial, report(0, 1))
    text = "ray::TrialSlot.train() (pid=7)\n  File 'a.py', line 3\nRuntimeError: out of paper"
    tune.error(trial, tmp_path, text, RuntimeError("out of paper"))
    row = study_of(tune).row(0)
    assert (row.state, row.steps, row.stop_reason) == (State.FAILED, 1, "RuntimeError: out of paper")
    assert row.attrs["exception"].strip() == text


@pytest.mark.parametrize("end", ["silent", "without an outcome", "pending"])
def test_a_trial_that_tune_stops_of_its_own_accord_stays_under_way(
    config_with: Config, open_study: Open, end: str
) -> None:
    config = config_with(sampler="random")
    tune = Tune(open_study(config))
    trial = tune.next()
    tune.result(trial, report(0, 5, 0.6, rung=True))
    if end == "without an outcome":
        tune.searcher.on_trial_complete(trial, result={"number": 0, "reports": [], "outcome": None, "done": True})
    elif end == "pending":
        tune.searcher.on_trial_complete(trial)
    assert study_of(tune).row(0).state is State.RUNNING

    later = Tune(open_study(config))
    trial = later.next()
    assert (later.spec.number, later.spec.attempt) == (0, 1)
    complete(later, trial)
    assert later.witness.events[-1] == ("end", 0, State.COMPLETE)
    later.next()
    assert later.spec.number == 1


def test_a_verdict_that_was_not_acted_on_ends_the_trial_without_more_training(
    config_with: Config, open_study: Open
) -> None:
    config = config_with(sampler="random")
    study = open_study(config)
    for value in (0.8, 0.4):
        spec = study.ask()
        assert spec is not None
        study.record(spec.number, 5, value)
        study.verdict(spec.number, 5)
    tune = Tune(open_study(config))
    assert [tune.next(), tune.spec.number] == ["tune-1", 0]
    assert [tune.next(), tune.spec.number] == ["tune-2", 2]
    assert tune.witness.events == [
        ("start", 0, 1),
        ("start", 1, 0),
        ("end", 1, State.PRUNED),
        ("start", 2, 0),
    ]


def test_the_searcher_finishes_only_when_no_trial_is_under_way(tune_with: Callable[..., Tune]) -> None:
    tune = tune_with(num_trials=1)
    trial = tune.next()
    assert tune.next() is None
    complete(tune, trial)
    assert tune.next() == "FINISHED"


def test_ctrl_c_ends_a_search_that_waits_for_its_next_loss_without_a_running_trial() -> None:
    """Tune's handler sets its flag and puts back the earlier one; Tune itself looks at the flag ten minutes later."""
    study: Any = SimpleNamespace(interrupted=list, ask=lambda: None, waits=lambda: True)
    running: list[int] = []
    searcher = StudySearcher(study, Witness(study), waiting=running.append)
    earlier = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        assert [searcher.suggest("tune-1") for _ in range(3)] == [None] * 3
        signal.signal(signal.SIGINT, earlier)
        assert searcher.suggest("tune-1") == "FINISHED"
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert running == [0] * 4


def test_no_trial_is_issued_after_the_time_is_up(tune_with: Callable[..., Tune]) -> None:
    now = [0]
    tune = tune_with(expired=lambda: now[0] > 10)
    assert tune.next() == "tune-1"
    now[0] = 11
    assert tune.next() == "FINISHED"
    assert len(study_of(tune).rows()) == 1


@pytest.mark.parametrize(
    ("reasons", "ended"),
    [
        (["OOM: 20 MiB at 0x7f00ab", "OOM: 31 MiB at 0x7f11cd", "OOM: 5 MiB at 0x1"], True),
        (["OOM: 20 MiB", "OOM: 20 MiB"], False),
        (["OOM: 20 MiB", "ValueError: no", "OOM: 20 MiB", "OOM: 20 MiB"], False),
        (["OOM: 20 MiB", "OOM: 20 MiB", "complete", "OOM: 20 MiB"], False),
        (["complete", "complete", "complete", "OOM: 20 MiB"], False),
        (["ValueError: no", "OOM: 1", "OOM: 2", "OOM: 3"], True),
    ],
)
def test_three_failures_of_one_kind_in_a_row_end_the_search(
    tune_with: Callable[..., Tune], reasons: list[str], ended: bool
) -> None:
    tune = tune_with()
    for reason in reasons:
        trial = tune.next()
        if reason == "complete":
            complete(tune, trial)
        else:
            fail(tune, trial, reason)
    assert (tune.next() == "FINISHED") is ended
    assert bool(tune.searcher.same_failures) is ended
    if ended:
        assert tune.searcher.same_failures.startswith("3 trials in a row failed in the same way: OOM")


def test_an_error_of_the_observer_ends_the_search_and_leaves_the_trial_under_way(
    tune_with: Callable[..., Tune], tmp_path: Path
) -> None:
    tune = tune_with()
    trial = tune.next()

    def disk_full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    tune.witness.on_report = disk_full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        complete(tune, trial)
    tune.error(trial, tmp_path, "TuneError: what Tune makes of it", RuntimeError())
    assert study_of(tune).row(0).state is State.RUNNING
    with pytest.raises(OSError, match="No space left"):
        tune.next()
    assert isinstance(tune.searcher.broken, OSError)


def test_a_pickled_searcher_says_nothing_of_the_study(config_with: Config, open_study: Open, tmp_path: Path) -> None:
    (tmp_path / "canary").mkdir()
    tune = Tune(open_study(config_with(), f"sqlite:///{tmp_path}/canary/study.db"))
    tune.next()
    for value in (tune.searcher, tune.scheduler):
        assert b"canary" not in pickle.dumps(value)
        assert type(pickle.loads(pickle.dumps(value))) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Traceback (most recent call last):\n  File 'a'\nValueError: no\n", "ValueError: no"),
        ("ray::Slot.train() (pid=1)\nmy.module.OddError: one\nover two lines", "my.module.OddError: one"),
        ("a: first\n\nDuring handling:\nKeyError: 'x'", "KeyError: 'x'"),
        (
            "The actor died.\n\tpid: 5\nThe actor is dead because its worker died.",
            "The actor is dead because its worker died.",
        ),
        ("", "the trial's slot died"),
    ],
)
def test_the_headline_of_a_traceback_names_the_exception(text: str, line: str) -> None:
    assert headline_of_traceback(text) == line


def lose(tune: Tune, trial_id: str) -> str:
    outcome = TrialOutcome(tune.spec.number, State.FAILED, "ActorDiedError: killed", fault=Fault.LOST)
    return tune.result(trial_id, outcome=outcome)


def test_a_trial_that_lost_its_workers_is_the_next_one_again_until_its_budget_is_used_up(
    tune_with: Callable[..., Tune],
) -> None:
    tune = tune_with(max_failures=2)
    issued = []
    for _ in range(3):
        trial = tune.next()
        issued.append((tune.spec.number, tune.spec.attempt))
        lose(tune, trial)
    assert issued == [(0, 0), (0, 1), (0, 2)]
    told = [event for event in tune.witness.events if event[0] != "start"]
    assert told == [("loss", 0, 1), ("loss", 0, 0), ("end", 0, State.FAILED)]
    assert (
        study_of(tune).row(0).stop_reason == "lost more often than search.max_failures allows: ActorDiedError: killed"
    )
    tune.next()
    assert tune.spec.number == 1


def test_the_death_of_a_driver_uses_up_none_of_a_trials_budget(config_with: Config, open_study: Open) -> None:
    config = config_with(sampler="random", max_failures=1)
    lose(first := Tune(open_study(config)), first.next())
    first.next()
    for attempt in (2, 3, 4):
        successor = Tune(open_study(config))
        trial = successor.next()
        assert (successor.spec.number, successor.spec.attempt) == (0, attempt)
    lose(successor, trial)
    assert successor.witness.events[-1] == ("end", 0, State.FAILED)


def test_the_death_of_a_slot_is_a_loss(tune_with: Callable[..., Tune], tmp_path: Path) -> None:
    tune = tune_with()
    tune.error(tune.next(), tmp_path, "ray.exceptions.ActorDiedError: gone", ActorDiedError())
    tune.next()
    assert (tune.spec.number, tune.spec.attempt) == (0, 1)


@pytest.mark.parametrize(("fault", "error"), [(Fault.STORAGE, StorageError), (Fault.INPUT, InputError)])
def test_a_fault_that_meets_every_trial_ends_the_search_and_fails_none(
    tune_with: Callable[..., Tune], fault: Fault, error: type[Exception]
) -> None:
    tune = tune_with()
    trial = tune.next()
    with pytest.raises(error, match="the disk is full"):
        tune.result(trial, outcome=TrialOutcome(0, State.FAILED, "the disk is full", fault=fault))
    assert study_of(tune).row(0).state is State.RUNNING
    with pytest.raises(error):
        tune.next()


def test_a_driver_that_lost_its_lock_issues_no_trial(config_with: Config, open_study: Open) -> None:
    def refuse() -> None:
        raise StorageError("the lock is gone")

    tune = Tune(open_study(config_with(sampler="random"), MEMORY), allowed=refuse)
    with pytest.raises(StorageError, match="the lock is gone"):
        tune.next()
    assert study_of(tune).rows() == []


def test_silence_is_counted_from_the_last_report_and_not_from_heartbeats(
    tune_with: Callable[..., Tune], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tune = tune_with()
    trial = tune.next()
    now[0] = 130.0
    tune.result(trial)
    assert tune.searcher.silences(20) == [Silence(0, 0, 30.0)]
    tune.result(trial, report(0, 3))
    now[0] = 145.0
    assert tune.searcher.silences(20) == []
    assert tune.searcher.silences(10) == [Silence(0, 3, 15.0)]
    complete(tune, trial)
    assert tune.searcher.silences(0) == []
