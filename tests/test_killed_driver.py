"""A short run of faults/driver.py and leftovers.py: a search whose driver is killed twice and started again."""

import random

import pytest

from faults import driver, leftovers
from faults.toy_search import PROGRESS_S, ToySearch, check_ended, check_mlflow, ended_afterwards, wait_for

pytestmark = pytest.mark.slow


def test_a_search_whose_driver_is_killed_loses_nothing_repeats_nothing_and_leaves_nothing(tmp_path):
    search = ToySearch(tmp_path, trials=3, steps=160)
    temporary = leftovers.own_temporary_folder(search)
    failures: list[str] = []
    driver.kill_once(search, random.Random(2), failures, booting=False)
    assert driver.lost_steps(search) <= driver.INTERVAL
    kill_while_ray_starts(search, temporary)
    search.run()
    assert failures == []
    check_ended(search)
    assert check_mlflow(search) > 0
    assert max(row.attempt for row in search.rows()) >= 1
    leftovers.check_nothing_is_left(temporary)


def kill_while_ray_starts(search, temporary):
    """Where the killed driver before it has left its own Ray behind."""

    def raylets():
        return set(temporary.glob("ray_*/session_*/sockets/raylet"))

    before, process = raylets(), search.start()
    assert before, "the killed driver left nothing to clear away"
    with ended_afterwards(process):
        wait_for(lambda: raylets() - before, PROGRESS_S, "the start of Ray", process)
        assert process.poll() is None
        process.kill()
        process.wait()
