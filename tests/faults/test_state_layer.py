from faults import state_layer


def test_no_failing_write_loses_doubles_or_tears_what_a_search_has_written_down():
    result = state_layer.run(short=True)
    assert result["failed"] == 0, result["detail"]
    assert result["tried"] > 10
