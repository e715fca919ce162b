import pytest
from faults import judge_endpoint


@pytest.mark.parametrize("seed", [0, 1])
def test_no_fault_of_an_endpoint_makes_a_score(seed: int) -> None:
    result = judge_endpoint.run(seed=seed, faults=40)
    assert result["failed"] == 0, result["detail"]
    assert result["tried"] == 40
