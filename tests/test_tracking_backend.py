"""Any class with the methods of a `Backend` can keep the runs of a search; here one that keeps them in memory."""

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import InputError
from tune_dlrml.events import EventLog
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.records import Report, State
from tune_dlrml.space import TrialSpec
from tune_dlrml.tracking.backend import Backend, ClosedError, Point, RefusedError, RunGoneError
from tune_dlrml.tracking.cursor import run_of
from tune_dlrml.tracking.outbox import Outbox, untracked
from tune_dlrml.tracking.tracker import Tracker, keep_folder

PARENT = "search"


class Notebook:
    """A backend in memory. `fails` is asked before each call; a call that fails is carried out every other time."""

    title, key, place, name = "Notebook", "tracking.notebook", "a drawer", "notebook"
    points_a_call, doubtful = 3, False

    def __init__(self, fails: Callable[[str], bool] = lambda call: False) -> None:
        self._fails, self._carried_out = fails, itertools.cycle((True, False))
        self.runs: dict[str, dict[str, Any]] = {}
        self.error: Exception = ConnectionError("no ink")
        self.refused_names: set[str] = set()
        self.calls = 0

    def _call(self, name: str, act: Callable[[], Any]) -> Any:
        self.calls += 1
        if not self._fails(name):
            return act()
        if next(self._carried_out):
            act()
        raise self.error

    def _run(self, run: str) -> dict[str, Any]:
        if run not in self.runs:
            raise RunGoneError(run)
        return self.runs[run]

    def _made(self, run: str, **own: Any) -> str:
        self.runs.setdefault(run, {"points": set(), "files": set(), "status": "", **own})
        return run

    def open(self, known: str | None) -> str:
        return self._call("open", lambda: self._made(PARENT))

    def describe(self, parent: str, config_yaml: str, params: Mapping[str, Any]) -> None:
        self._call("describe", lambda: self._run(parent).update(config=config_yaml, params=dict(params)))

    def keep_tables(self, parent: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        self._call("keep_tables", lambda: self._run(parent).setdefault("tables", {}).update(tables))

    def close(
        self, parent: str, summary: Mapping[str, float], tags: Mapping[str, str], status: str, timestamp_ms: int
    ) -> None:
        self._call("close", lambda: self._run(parent).update(summary=dict(summary), status=status))

    def children(self, parent: str) -> Mapping[int, Sequence[str]]:
        return {run["number"]: [name] for name, run in self.runs.items() if name != parent}

    def child(self, number: int, event: Mapping[str, Any], parent: str) -> str:
        return self._call("child", lambda: self._made(f"trial {number}", number=number))

    def start(self, run: str, event: Mapping[str, Any]) -> None:
        self._call("start", lambda: self._run(run).update(params=event["params"], status="running"))

    def log(self, run: str, points: Sequence[Point]) -> None:
        assert 0 < len(points) <= self.points_a_call
        if refused := self.refused_names & {point.name for point in points}:
            raise RefusedError(f"{refused} is no word")
        self._call("log", lambda: self._run(run)["points"].update(points))

    def pause(self, run: str) -> None:
        self._call("pause", lambda: self._run(run).update(status="paused"))

    def end(self, run: str, event: Mapping[str, Any]) -> None:
        self._call("end", lambda: self._run(run).update(status=event["state"]))

    def add_files(self, run: str, paths: Sequence[Path]) -> None:
        self._call("add_files", lambda: self._run(run)["files"].update(path.name for path in paths))

    def drop_twins(self, parent: str, kept: Mapping[int, str | None]) -> None:
        self.doubtful = False

    def keep_folder(self, folder: Path) -> None:
        self._call("keep_folder", lambda: self._run(PARENT)["files"].add(folder.name))

    def is_away(self, error: Exception) -> bool:
        return isinstance(error, ConnectionError)

    def shown(self, error: object) -> str:
        return str(error)


@pytest.fixture
def events(tmp_path: Path) -> EventLog:
    (tmp_path / "toy").mkdir()
    return EventLog(tmp_path / "toy")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_S", "RETRY_S"):
        monkeypatch.setattr(f"tune_dlrml.tracking.tracker.{name}", 0.0)


def write_trial(events: EventLog, number: int, steps: int = 5) -> None:
    training = TrainingConfig(learning_rate=1e-5, max_steps=40)
    events.start(TrialSpec(number=number, branch="dpo", loss=DpoLoss(beta=0.1), training=training, params={}))
    for step in range(steps):
        events.report(Report(number, step, 10**12 + step, {"train_loss": 1 / (1 + step), "train_margin": float(step)}))
    events.end(number, State.COMPLETE, "done")
    (events.path(number).parent / "answers.json").write_text("{}")
    events.judged(number, steps, {"mt_bench/judge/score": 7.0}, ["answers.json"])


def expected(events: EventLog, number: int) -> set[Point]:
    reported = {
        Point(name, value, one.timestamp_ms, one.step)
        for one in events.reports(number)
        for name, value in one.metrics.items()
    }
    return reported | {("mt_bench/judge/score", 7.0, judged_at(events, number), 5)}


def judged_at(events: EventLog, number: int) -> int:
    return next(event["timestamp_ms"] for event in events._events(number) if event["kind"] == "judged")


@pytest.mark.parametrize(("share", "seed"), [(0.0, 0), (0.2, 1), (0.5, 2), (0.5, 3), (0.7, 4)])
def test_a_second_backend_is_filled_whole_whatever_its_calls_do(events: EventLog, share: float, seed: int) -> None:
    chance = random.Random(seed)
    # What is described is an extra: at its end a search does not wait for it.
    notebook = Notebook(lambda call: call != "describe" and chance.random() < share)
    backend: Backend = notebook
    tracker = Tracker(backend, events)
    tracker.describe_search("name: toy\n", {"search.num_trials": 3})
    for number in range(3):
        write_trial(events, number)
        tracker.notify(number)
    assert tracker.close({"trials_complete": 3.0}, {}, status="FINISHED") == 0
    assert {name: run["status"] for name, run in notebook.runs.items()} == {
        PARENT: "FINISHED",
        **{f"trial {number}": "complete" for number in range(3)},
    }
    for number in range(3):
        run = notebook.runs[f"trial {number}"]
        assert (run["points"], run["files"]) == (expected(events, number), {"answers.json"})
        assert tracker.run_id(number) == run_of(events, number, "notebook") == f"trial {number}"
    assert untracked(events, "notebook") == 0
    assert untracked(events, "another") > 0, "another backend has nothing of it"


def test_a_second_backend_is_asked_nothing_twice_once_it_has_everything(events: EventLog) -> None:
    notebook = Notebook()
    write_trial(events, 0)
    for _ in range(2):
        assert Tracker(notebook, events).close({}, {}, status="FINISHED") == 0
    before = notebook.calls
    assert Tracker(notebook, events).close({}, {}, status="FINISHED") == 0
    assert notebook.calls - before == 2, "the search's run is opened and closed"


def test_a_table_that_could_not_be_kept_is_sent_by_the_next_driver(events: EventLog) -> None:
    notebook, table = Notebook(lambda call: call == "keep_tables" and fails), {"columns": ["number"], "data": [[1]]}
    fails, kept = True, []
    write_trial(events, 0)
    for _ in range(2):
        tracker = Tracker(notebook, events)
        tracker.keep_table("proposals.json", table)
        kept.append((tracker.close({}, {}, status="FINISHED") == 0, untracked(events, "notebook") == 0))
        fails = False
    assert kept == [(False, False), (True, True)]
    assert notebook.runs[PARENT]["tables"] == {"proposals.json": table}


def test_what_a_second_backend_refuses_is_passed_over_and_the_rest_arrives(events: EventLog) -> None:
    notebook = Notebook()
    notebook.refused_names = {"train_margin"}
    write_trial(events, 0)
    assert Tracker(notebook, events).close({}, {}, status="FINISHED") == 5
    kept = {point for point in expected(events, 0) if point[0] != "train_margin"}
    assert notebook.runs["trial 0"]["points"] == kept


def test_a_run_that_is_gone_from_a_second_backend_is_sent_again(events: EventLog) -> None:
    notebook = Notebook()
    write_trial(events, 0)
    box = Outbox(events, notebook)
    box.open()
    box.deliver(0)
    del notebook.runs["trial 0"]
    write_trial(events, 1)
    again = Outbox(events, notebook)
    assert again.open() == {0, 1}
    for number in (0, 1):
        again.deliver(number)
        assert notebook.runs[f"trial {number}"]["points"] == expected(events, number)


def test_a_folder_is_kept_with_the_search_in_a_second_backend(tmp_path: Path) -> None:
    away = [False]
    notebook = Notebook(lambda call: away[0])
    notebook.open(None)
    assert keep_folder(notebook, tmp_path / "report") is None and notebook.runs[PARENT]["files"] == {"report"}
    away[0] = True
    assert keep_folder(notebook, tmp_path / "report") == "no ink"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("no ink"), "tracking.notebook: Notebook must answer .* a drawer does not .no ink."),
        (ClosedError("tracking.pen", "the pen is locked away; unlock it"), "^tracking.pen: the pen is locked away"),
    ],
)
def test_a_search_does_not_begin_where_a_second_backend_takes_nothing(
    events: EventLog, error: Exception, told: str
) -> None:
    notebook = Notebook(lambda call: True)
    notebook.error = error
    with pytest.raises(InputError, match=told):
        Tracker(notebook, events).require_answer()


@pytest.fixture
def seen_with_each_line() -> Iterator[tuple[list[Tracker], list[tuple[str, str]]]]:
    """Trackers to look at, and the lines of the log, each with the trouble that could be seen when it was written."""
    trackers: list[Tracker] = []
    seen: list[tuple[str, str]] = []

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), trackers[0].trouble if trackers else ""))

    logger, handler = logging.getLogger("tune_dlrml.tracking.tracker"), Looking()
    logger.addHandler(handler)
    yield trackers, seen
    logger.removeHandler(handler)


def test_trouble_is_in_the_log_before_anybody_can_see_it(
    events: EventLog, seen_with_each_line: tuple[list[Tracker], list[tuple[str, str]]]
) -> None:
    trackers, seen = seen_with_each_line
    away = [True]
    trackers.append(Tracker(Notebook(lambda call: away[0]), events))
    assert trackers[0]._tried.wait(60)
    assert trackers[0].trouble == "no ink"
    away[0] = False
    assert trackers[0].close({}, {}, status="FINISHED") == 0
    assert seen == [
        ("Notebook is unavailable; training continues, and everything is logged to Notebook later: no ink", ""),
        ("Notebook is available again and has everything up to now", "no ink"),
    ]
