import pytest

from tune_dlrml.records import Report
from tune_dlrml.search.events import EventLog


def report(step: int, **metrics: float) -> Report:
    return Report(number=3, step=step, timestamp_ms=step, metrics=metrics)


def test_reports_come_back_as_they_were_written(tmp_path):
    log = EventLog(tmp_path)
    written = [report(0, eval_accuracy=0.5), report(5, eval_accuracy=0.75, train_loss=0.5)]
    log.start(3, 0, {"loss": "dpo"})
    for one in written:
        log.report(one)
    log.end(3, "complete", "all 5 steps done")
    assert list(log.reports(3)) == written
    assert log.last_metrics(3) == {"eval_accuracy": 0.75, "train_loss": 0.5}


def test_a_new_attempt_hides_the_lost_one_and_a_takeover_does_not(tmp_path):
    log = EventLog(tmp_path)
    log.start(3, 0, {})
    log.report(report(1, train_loss=9.0))
    log.start(3, 1, {})
    log.report(report(1, train_loss=1.0))
    log.start(3, 1, {})
    log.report(report(2, train_loss=2.0))
    assert [(one.step, one.metrics["train_loss"]) for one in log.reports(3)] == [(1, 1.0), (2, 2.0)]


def test_a_line_torn_by_a_crash_is_passed_over(tmp_path):
    log = EventLog(tmp_path)
    log.start(3, 0, {})
    log.report(report(1, train_loss=1.0))
    with log.path(3).open("a") as file:
        file.write('{"kind": "report", "step"')
    assert [one.step for one in log.reports(3)] == [1]


def test_a_trial_without_a_log_has_no_metrics(tmp_path):
    assert EventLog(tmp_path).last_metrics(7) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_report_refuses_a_number_that_is_not_finite(value):
    with pytest.raises(ValueError, match="finite"):
        report(1, train_loss=value)
