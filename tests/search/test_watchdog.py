import threading
from typing import Any

import pytest

from tune_dlrml.config import ResourcesConfig
from tune_dlrml.search.tune.searcher import Silence
from tune_dlrml.search.tune.watchdog import Watchdog


class Searcher:
    def __init__(self) -> None:
        self.now: list[Silence] = []

    def silences(self, longer_than_s: float) -> list[Silence]:
        return [silence for silence in self.now if silence.seconds > longer_than_s]


@pytest.fixture
def watched() -> tuple[Searcher, Watchdog, list[str]]:
    searcher, told = Searcher(), []
    resources = ResourcesConfig(silence_s=100)
    options: Any = {"waiting": lambda _: "0 CPUs are free", "free": lambda: 0}
    dog: Any = Watchdog(searcher, resources, told.append, **options)  # type: ignore[arg-type]
    return searcher, dog, told


def look(watched: tuple[Searcher, Watchdog, list[str]], *silences: Silence) -> list[str]:
    searcher, dog, told = watched
    told.clear()
    searcher.now = list(silences)
    dog.look()
    return list(told)


def test_silence_is_reported_once_it_lasts_and_again_each_time_it_has_doubled(watched):
    assert look(watched, Silence(3, 0, 99)) == []
    assert len(look(watched, Silence(3, 0, 101))) == 1
    assert look(watched, Silence(3, 0, 150)) == look(watched, Silence(3, 0, 201)) == []
    assert len(look(watched, Silence(3, 0, 202))) == 1
    assert look(watched, Silence(3, 0, 403)) == []
    assert len(look(watched, Silence(3, 0, 404))) == 1


def test_a_trial_that_was_heard_again_starts_again(watched):
    assert look(watched, Silence(3, 0, 300))
    assert look(watched) == []
    assert look(watched, Silence(3, 9, 120))


def test_the_message_says_what_is_waited_for(watched):
    before, after = look(watched, Silence(3, 0, 120), Silence(4, 17, 120))
    assert before == "trial 3: no report for 120 s since it was issued; 0 CPUs are free"
    assert "trial 4: no report for 120 s since step 17" in after


def test_a_watchdog_looks_by_itself_and_ends_with_its_block(watched):
    searcher, _, _ = watched
    searcher.now = [Silence(3, 0, 1.0)]
    heard = threading.Event()
    resources = ResourcesConfig(silence_s=0.01)
    with Watchdog(searcher, resources, lambda text: heard.set(), waiting=lambda _: "") as dog:  # type: ignore[arg-type]
        assert heard.wait(30)
    assert not dog._thread.is_alive()


def test_a_quiet_trial_frees_what_dead_groups_hold_and_a_busy_one_does_not(watched):
    searcher, _, told = watched
    asked: list[int] = []

    def free() -> int:
        asked.append(len(asked))
        return len(asked) - 1

    options: Any = {"waiting": lambda _: "", "free": free}
    dog: Any = Watchdog(searcher, ResourcesConfig(silence_s=100), told.append, **options)
    for seconds in (1.0, 11.0, 16.0):
        searcher.now = [Silence(3, 0, seconds)]
        dog.look()
    assert len(asked) == 2
    assert told == ["removed 1 placement groups whose worker groups had died"]
