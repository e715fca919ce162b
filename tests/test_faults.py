"""Short runs of the drivers in faults/; `make faults` runs them at length."""

import pytest

from faults import bad_input, judge_endpoint, state_layer


@pytest.mark.slow
def test_every_mistake_is_refused_before_anything_is_started() -> None:
    result = bad_input.run(short=True)
    assert result["failed"] == 0, result["detail"]
    assert result["tried"] >= 35


@pytest.mark.parametrize("seed", [0, 1])
def test_no_fault_of_an_endpoint_makes_a_score(seed: int) -> None:
    result = judge_endpoint.run(seed=seed, faults=40)
    assert result["failed"] == 0, result["detail"]
    assert result["tried"] == 40


def test_no_failing_write_loses_doubles_or_tears_what_a_search_has_written_down() -> None:
    result = state_layer.run(short=True)
    assert result["failed"] == 0, result["detail"]
    assert result["tried"] > 10
