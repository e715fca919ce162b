"""A short run of tests/faults/driver.py and leftovers.py: a search whose driver is killed twice and started again."""

import random

import pytest
from faults import driver, leftovers
from faults.toy_search import ToySearch, check_ended, check_mlflow

pytestmark = pytest.mark.slow


def test_a_search_whose_driver_is_killed_loses_nothing_repeats_nothing_and_leaves_nothing(tmp_path):
    search = ToySearch(tmp_path, trials=3, steps=160)
    temporary = leftovers.own_temporary_folder(search)
    failures: list[str] = []
    for moment in (1, 2):
        driver.kill_once(search, random.Random(moment), failures, booting=False)
    search.run()
    assert failures == []
    check_ended(search)
    assert check_mlflow(search) > 0
    assert max(row.attempt for row in search.rows()) >= 1
    leftovers.check_nothing_is_left(temporary)
