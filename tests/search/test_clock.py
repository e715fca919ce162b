"""The time budget of a search: kept over drivers, spent once, and an end like any other."""

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy import document, write_model, write_pairs

from tune_dlrml.config import SearchConfig, parse_config, to_yaml
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.search import clock as clock_module
from tune_dlrml.search import driver
from tune_dlrml.search.clock import SearchClock, TimeIsUp
from tune_dlrml.search.preparation import PreparedSearch, prepare
from tune_dlrml.search.result import SearchPlace, SearchResult
from tune_dlrml.search.tune.searcher import StudySearcher
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.study.study import SearchStudy

Config = Callable[..., SearchConfig]
Open = Callable[..., SearchStudy]


class Keeper:
    def __init__(self, spent_s: float = 0.0) -> None:
        self.spent_s = spent_s

    def keep_time(self, spent_s: float) -> None:
        self.spent_s = spent_s


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time of every clock, which stands unless a test moves it."""
    hands = [1000.0]
    monkeypatch.setattr(clock_module, "monotonic", lambda: hands[0])
    yield hands


def test_a_clock_goes_on_where_the_last_driver_s_stood(now: list[float]) -> None:
    keeper = Keeper()
    for budget, spends, is_up in ((60, 25, False), (60, 34, False), (60, 2, True), (100, 30, False), (100, 9, True)):
        clock = SearchClock(keeper, budget)
        with clock.running():
            now[0] += spends
        assert clock.is_up() is is_up
    assert keeper.spent_s == 100


def test_a_clock_that_was_not_let_run_stands_and_writes_nothing(now: list[float]) -> None:
    keeper = Keeper(7.0)
    clock = SearchClock(keeper, 8.0)
    with clock.running(False):
        now[0] += 100
    assert (clock.spent_s, keeper.spent_s, clock.is_up()) == (7.0, 7.0, False)


def test_what_comes_after_the_training_is_not_counted(now: list[float]) -> None:
    keeper = Keeper()
    clock = SearchClock(keeper, 10.0)
    with clock.running():
        now[0] += 4
        clock.stop()
        now[0] += 1000
    assert keeper.spent_s == clock.spent_s == 4 and not clock.is_up()


def test_without_a_budget_time_is_counted_and_never_up(now: list[float]) -> None:
    keeper = Keeper(1e9)
    clock = SearchClock(keeper, None)
    with clock.running():
        now[0] += 5
    assert keeper.spent_s == 1e9 + 5 and not clock.is_up()


def test_a_write_that_fails_is_made_good_and_the_last_has_to_succeed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Keeper):
        writes = 0

        def keep_time(self, spent_s: float) -> None:
            self.writes += 1
            raise OSError(28, "No space left on device", "study.db")

    monkeypatch.setattr(clock_module, "TICK_S", 0.01)
    keeper = Failing()
    with pytest.raises(OSError, match="No space"), SearchClock(keeper, 1.0).running():
        while keeper.writes < 3:
            time.sleep(0.005)
    assert "study.db" in caplog.text


def test_tune_stops_when_the_time_is_up_and_gets_no_study(now: list[float]) -> None:
    clock = SearchClock(Keeper(), 5.0)
    stopper = TimeIsUp(clock)
    with clock.running():
        assert not stopper.stop_all() and not stopper("any", {"done": True})
        now[0] += 5
        assert stopper.stop_all()
        assert b"Keeper" not in pickle.dumps(stopper)


KILLED = """
import sys, time
from pathlib import Path
from tune_dlrml.search import clock
from tune_dlrml.search.clock import SearchClock
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.config import load_config
clock.TICK_S = 0.05
config = load_config(Path(sys.argv[1]))
study = SearchStudy(config, proposer_of(config), sys.argv[2], 40)
with SearchClock(study, None).running():
    print("runs", flush=True)
    time.sleep(600)
"""


def test_a_driver_that_is_killed_leaves_its_time_in_the_study(config_with: Config, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(to_yaml(config_with()))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "space.yaml"), url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "runs\n"
    history = StudyHistory.open(url, "planted")
    deadline = time.monotonic() + 30
    while history.spent_s < 0.3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0.3 <= history.spent_s < 30
    history.close()


# The whole driver, with a fake for Ray and Tune alone: what a search does when its time is up.


class View:
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.begun = 0

    def on_begin(self, num_trials: int, done: int, full_steps: int, paused: Mapping[int, int]) -> None:
        self.begun += 1

    def on_notice(self, text: str) -> None:
        self.notices.append(text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Cluster:
    """Stands for Ray and Tune: each trial takes `trial_s` on the clock; one in the middle of which time is up stays."""

    def __init__(self, now: list[float], trial_s: float) -> None:
        self.now, self.trial_s, self.started, self.trained = now, trial_s, 0, list[int]()

    @contextmanager
    def ray(self, *_: Any) -> Iterator[None]:
        self.started += 1
        self.now[0] += 3
        yield

    def tune(self, searcher: StudySearcher, group: Any, config: SearchConfig, clock: SearchClock) -> None:
        study = searcher._study
        while isinstance(given := searcher.suggest("one"), dict):
            spec = TrialSpec.from_json(given["spec"])
            self.now[0] += self.trial_s
            if clock.is_up():
                return
            study.record(spec.number, study.full_steps, 0.5 + spec.number / 100)
            searcher._end(searcher._live.pop("one"), TrialOutcome(spec.number, State.COMPLETE, "done"))
            self.trained.append(spec.number)


@pytest.fixture(scope="module")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clock")
    write_model(folder / "model")
    write_pairs(folder / "train.jsonl", 16)
    write_pairs(folder / "eval.jsonl", 8, seed=1)
    return folder


@pytest.fixture
def search(
    toy_files: Path, tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[SearchResult, View, Cluster]]:
    def run(trial_s: float = 10.0, **changes: Any) -> tuple[SearchResult, View, Cluster]:
        cluster, view = Cluster(now, trial_s), View()
        monkeypatch.setattr(driver, "ray_cluster", cluster.ray)
        monkeypatch.setattr(driver, "_tune", cluster.tune)
        monkeypatch.setattr(driver, "alive_nodes", lambda: [])
        return driver.run_search(prepared(toy_files, tmp_path, **changes), view), view, cluster

    return run


def prepared(files: Path, folder: Path, **search: Any) -> PreparedSearch:
    own = document(files / "model", files / "train.jsonl", files / "eval.jsonl")
    own["search"] = {"num_trials": 4, "sampler": "random", "scheduler": None} | search
    return prepare(parse_config(own, source="test"), SearchPlace(folder / "runs"))


def states(rows: tuple[TrialRow, ...]) -> list[str]:
    return [str(row.state) for row in rows]


def test_a_budget_is_spent_once_however_often_the_command_is_repeated(search: Any) -> None:
    result, view, cluster = search(time_budget_s=30)
    assert cluster.trained == [0, 1] and states(result.rows) == ["complete", "complete", "running"]
    assert result.out_of_time and not result.interrupted and result.spent_s == 33
    (told,) = view.notices
    assert "30 s" in told and "2 of 4 trials" in told and "1 were interrupted" in told and "larger" in told
    for _ in range(2):
        again, view, cluster = search(time_budget_s=30)
        assert (cluster.started, view.begun, view.notices) == (0, 0, [told])
        assert again.out_of_time and again.rows == result.rows and again.spent_s == 33
        assert again.runs == result.runs and None not in result.runs.values()  # MLflow heard of them at the very end


def test_a_larger_budget_goes_on_with_the_trial_that_was_under_way(search: Any) -> None:
    search(time_budget_s=30)
    result, view, cluster = search(time_budget_s=1000)
    assert cluster.trained == [2, 3] and not result.out_of_time and view.notices == []
    assert [row.attempt for row in result.rows] == [0, 0, 1, 0]
    result, _, cluster = search(time_budget_s=5)  # the search has ended, whatever its budget is now
    assert not result.out_of_time and not result.interrupted and cluster.started == 0


def test_time_that_was_spent_without_a_budget_counts(search: Any) -> None:
    result, _, _ = search(num_trials=2)
    assert result.spent_s == 23
    result, _, cluster = search(num_trials=4, time_budget_s=20)
    assert result.out_of_time and cluster.started == 0


def test_a_search_whose_time_ends_before_its_first_trial_has_no_best(search: Any) -> None:
    result, view, _ = search(time_budget_s=5)
    assert result.out_of_time and result.best is None and "0 of 4 trials" in view.notices[0]


def test_ray_s_start_is_part_of_the_budget(search: Any) -> None:
    result, view, cluster = search(time_budget_s=2)
    assert (cluster.started, cluster.trained, result.out_of_time) == (1, [], True)
    assert "0 of 4 trials have ended and 0" in view.notices[0]


def test_finalists_are_confirmed_beyond_the_budget_and_nothing_twice(search: Any) -> None:
    confirm = {"top": 1, "seeds": 2}
    result, _, cluster = search(time_budget_s=30, confirm=confirm)
    assert result.out_of_time and not result.interrupted
    assert cluster.started == 2 and cluster.trained == [0, 1, *range(6)]  # three rounds of the best and of DPO
    _, _, cluster = search(time_budget_s=30, confirm=confirm)
    assert cluster.started == 0
