import pytest
from faults import bad_input


@pytest.mark.slow
def test_every_mistake_is_refused_before_anything_is_started() -> None:
    result = bad_input.run(short=True)
    assert result["failed"] == 0, result["detail"]
    assert result["tried"] >= 35
