import errno
import json
import os
import pickle
from pathlib import Path

import pytest

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import StorageError
from tune_dlrml.events import EventLog
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.records import Report, State
from tune_dlrml.space import TrialSpec
from tune_dlrml.system.files import replace_file


def spec(attempt: int = 0) -> TrialSpec:
    training = TrainingConfig(learning_rate=1e-5, max_steps=40)
    params = {"loss": "dpo", "dpo.beta": 0.1, "training.learning_rate": 1e-5}
    return TrialSpec(
        number=3, attempt=attempt, branch="dpo", loss=DpoLoss(name="dpo", beta=0.1), training=training, params=params
    )


def report(step: int, *, evaluated: bool = False, timestamp_ms: int | None = None, **metrics: float) -> Report:
    stamp = 1000 * step if timestamp_ms is None else timestamp_ms
    return Report(number=3, step=step, timestamp_ms=stamp, metrics=metrics, evaluated=evaluated)


def lines(log: EventLog) -> list[dict]:
    return [json.loads(line) for line in log.path(3).read_text().splitlines()]


class FailingDisk:
    """os.write, os.fsync or os.ftruncate that fail once, after `taken` bytes of a line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, code: int, taken: int = 0) -> None:
        self._real, self._write, self._code, self._taken = getattr(os, call), os.write, code, taken
        self.armed = True
        monkeypatch.setattr(os, call, self)

    def __call__(self, file, *args):
        if not self.armed:
            return self._real(file, *args)
        self.armed = False
        if self._taken:
            self._write(file, bytes(args[0])[: self._taken])
        raise OSError(self._code, os.strerror(self._code))


def test_a_log_knows_whether_its_trial_is_paused_also_the_next_drivers(tmp_path):
    log = EventLog(tmp_path)
    for write, paused in (
        (lambda: log.start(spec()), False),
        (lambda: log.report(report(5, eval_accuracy=0.5)), False),
        (lambda: log.pause(3, 5), True),
        (lambda: log.start(spec()), False),
        (lambda: log.report(report(10, eval_accuracy=0.6)), False),
        (lambda: log.pause(3, 10), True),
        (lambda: log.end(3, State.PRUNED, "successive halving at step 10"), False),
    ):
        write()
        if not log.ended(3):
            assert log.paused(3) == EventLog(tmp_path).paused(3) == paused
    assert EventLog(tmp_path).last_step(3) == 10


def test_reports_come_back_as_they_were_written(tmp_path):
    log = EventLog(tmp_path)
    written = [report(0, eval_accuracy=0.5), report(5, eval_accuracy=0.75, train_loss=0.5)]
    log.start(spec())
    assert [log.report(one) for one in written] == [True, True]
    log.end(3, State.COMPLETE, "all 5 steps done")
    assert list(log.reports(3)) == written
    assert log.last_metrics(3) == {"eval_accuracy": 0.75, "train_loss": 0.5}


def test_a_start_line_says_all_that_mlflow_needs_for_the_run(tmp_path):
    log = EventLog(tmp_path)
    log.start(spec(attempt=2))
    (line,) = lines(log)
    assert (line["kind"], line["attempt"], line["branch"]) == ("start", 2, "dpo")
    assert line["settings"] == {"loss": "dpo", "beta": 0.1, "learning_rate": 1e-5}
    assert line["params"] == spec().training.flat() | line["settings"]
    assert line["params"]["max_steps"] == 40 and line["timestamp_ms"] > 1.7e12


def test_the_first_report_of_a_step_stands_over_attempts_and_drivers(tmp_path):
    first = EventLog(tmp_path)
    first.start(spec())
    for step in (0, 5, 10):
        first.report(report(step, train_loss=1.0))
    second = EventLog(tmp_path)
    second.start(spec(attempt=1))
    taken = [second.report(report(step, timestamp_ms=99, train_loss=2.0)) for step in (5, 10, 15)]
    assert taken == [False, False, True]
    assert [(one.step, one.metrics["train_loss"]) for one in second.reports(3)] == [(0, 1), (5, 1), (10, 1), (15, 2)]


def test_a_trial_that_starts_from_its_first_step_again_keeps_its_first_curve(tmp_path):
    log = EventLog(tmp_path)
    log.start(spec())
    log.report(report(0, eval_accuracy=0.5))
    log.report(report(5, eval_accuracy=0.6))
    log.start(spec(attempt=1))
    assert [log.report(report(step, timestamp_ms=7, eval_accuracy=0.7)) for step in (0, 5, 6)] == [False, False, True]
    assert [one.timestamp_ms for one in log.reports(3)] == [0, 5000, 7]


def test_last_step_and_end_are_known_to_the_driver_that_wrote_them_and_to_the_next(tmp_path):
    log = EventLog(tmp_path)
    assert (log.last_step(3), log.ended(3), log.numbers()) == (-1, False, [])
    log.start(spec())
    assert log.last_step(3) == -1
    log.report(report(5, train_loss=1.0))
    log.end(3, State.PRUNED, "successive halving at step 5")
    for one in (log, EventLog(tmp_path)):
        assert (one.last_step(3), one.ended(3), one.numbers()) == (5, True, [3])


def test_a_trial_without_a_log_has_no_metrics(tmp_path):
    assert EventLog(tmp_path).last_metrics(7) == {}


@pytest.mark.parametrize("torn", ['{"kind": "report", "step"', '{"kind": "end"}', "\0\0\0"])
def test_what_stands_behind_the_last_newline_counts_nowhere_and_is_cut_off(tmp_path, torn):
    log = EventLog(tmp_path)
    log.start(spec())
    log.report(report(1, train_loss=1.0))
    with log.path(3).open("a") as file:
        file.write(torn)
    later = EventLog(tmp_path)
    assert ([one.step for one in later.reports(3)], later.ended(3)) == ([1], False)
    assert later.path(3).read_text().endswith(torn)
    later.report(report(2, train_loss=1.0))
    assert [line["kind"] for line in lines(later)] == ["start", "report", "report"]


def test_a_file_with_nothing_but_a_torn_line_is_started_again(tmp_path):
    log = EventLog(tmp_path)
    log.path(3).parent.mkdir(parents=True)
    log.path(3).write_text('{"kind": "sta')
    log.start(spec())
    assert [line["kind"] for line in lines(log)] == ["start"]


def test_a_tail_longer_than_one_block_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tune_dlrml.system.line_files.CHUNK", 16)
    log = EventLog(tmp_path)
    log.start(spec())
    with log.path(3).open("a") as file:
        file.write("x" * 100)
    EventLog(tmp_path).report(report(1, train_loss=1.0))
    assert [line["kind"] for line in lines(log)] == ["start", "report"]
    assert [one.step for one in log.reports(3)] == [1]


NO_EVENTS = [
    "",
    "{",
    "[" * 10**5,
    "[1]",
    '{"step": 1}',
    '{"kind": "report"}{"kind": "report"}',
    '{"kind": "report"}',
    '{"kind": ["report"]}',
    '{"kind": "rung", "timestamp_ms": 1}',
    '{"kind": "start", "timestamp_ms": 1, "attempt": 0, "branch": "dpo", "params": {}}',
    '{"kind": "start", "timestamp_ms": 1, "attempt": 0, "branch": "dpo", "settings": {}, "params": {}}',
    '{"kind": "end", "timestamp_ms": 1, "state": "running", "reason": ""}',
    '{"kind": "end", "timestamp_ms": 1, "state": "complete", "reason": null}',
    '{"kind": "report", "number": 3, "step": "1", "timestamp_ms": 1, "metrics": {}}',
    '{"kind": "report", "number": 3, "step": 1, "timestamp_ms": 1, "metrics": []}',
    '{"kind": "report", "number": 3, "step": 1, "timestamp_ms": 1, "metrics": {"a": "b"}}',
    '{"kind": "report", "number": 3, "step": 1, "timestamp_ms": 1, "metrics": {"a": NaN}}',
    f'{{"kind": "report", "number": 3, "step": 1, "timestamp_ms": 1, "metrics": {{"a": 1{"0" * 400}}}}}',
    '{"kind": "report", "number": 3, "step": 1, "timestamp_ms": 1, "metrics": {}, "more": 1}',
]


@pytest.mark.parametrize("broken", NO_EVENTS)
def test_a_broken_line_in_the_middle_is_an_error_with_file_and_line(tmp_path, broken):
    log = EventLog(tmp_path)
    log.start(spec())
    log.report(report(0, eval_accuracy=0.5))
    with log.path(3).open("a") as file:
        file.write(broken + "\n")
    log.report(report(1, train_loss=1.0))
    with pytest.raises(
        StorageError, match=r"trials/3/events\.jsonl, line 3: every complete line is an event of its trial"
    ):
        list(EventLog(tmp_path).reports(3))


@pytest.mark.parametrize("broken", NO_EVENTS)
def test_a_broken_line_at_the_end_is_an_error_with_file_and_line(tmp_path, broken):
    log = EventLog(tmp_path)
    log.start(spec())
    with log.path(3).open("a") as file:
        file.write(broken + "\n")
    with pytest.raises(StorageError, match=r"events\.jsonl, line 2: every complete line is an event of its trial"):
        EventLog(tmp_path).last_step(3)


@pytest.mark.parametrize("taken", [0, 1, 30])
def test_a_full_disk_tears_no_line_that_is_acknowledged_and_glues_none_to_it(tmp_path, monkeypatch, taken):
    log = EventLog(tmp_path)
    log.start(spec())
    log.report(report(1, train_loss=1.0))
    FailingDisk(monkeypatch, "write", errno.ENOSPC, taken)
    with pytest.raises(StorageError, match=r"events\.jsonl must be written .* No space left on device; free space"):
        log.report(report(2, train_loss=1.0))
    assert log.last_step(3) == 1
    assert log.report(report(2, timestamp_ms=9, train_loss=1.0))
    assert [(one.step, one.timestamp_ms) for one in log.reports(3)] == [(1, 1000), (2, 9)]


def test_a_short_write_is_finished(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:7]))
    log = EventLog(tmp_path)
    log.start(spec())
    assert log.report(report(1, train_loss=1.0))
    assert [one.step for one in log.reports(3)] == [1]


def test_a_line_whose_way_to_the_disk_is_unknown_is_not_written_twice(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    log.start(spec())
    FailingDisk(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(StorageError, match="Input/output error"):
        log.report(report(5, evaluated=True, eval_accuracy=0.5))
    assert log.last_step(3) == 5
    assert not log.report(report(5, evaluated=True, timestamp_ms=9, eval_accuracy=0.5))


def test_decisions_rest_on_events_that_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), real(file)))
    log = EventLog(tmp_path)
    log.start(spec())
    path = str(log.path(3))
    assert synced == [path, str(tmp_path / "trials/3"), str(tmp_path / "trials"), str(tmp_path)]
    log.report(report(1, train_loss=1.0))
    assert len(synced) == 4
    log.report(report(5, evaluated=True, eval_accuracy=0.5))
    log.end(3, State.COMPLETE, "")
    assert synced[4:] == [path, path]


def test_a_file_that_replaces_another_durably_has_its_name_on_the_disk(tmp_path, monkeypatch):
    done = []
    real = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), real[0](file)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("renamed"), real[1](path, to)))
    replace_file(tmp_path / "search.yaml", "name: toy\n", durable=True)
    assert done == [str(tmp_path / "search.yaml.partial"), "renamed", str(tmp_path)]


def test_a_storage_error_names_the_remedy_and_survives_pickling(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    log.start(spec())
    FailingDisk(monkeypatch, "write", errno.EROFS)
    with pytest.raises(StorageError, match="mount the disk for writing, then run the same command again") as caught:
        log.end(3, State.COMPLETE, "")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_complete_lines_are_read_in_chunks_from_any_offset(tmp_path, monkeypatch):
    monkeypatch.setattr("tune_dlrml.events.CHUNK", 300)
    log = EventLog(tmp_path)
    log.start(spec())
    for step in range(20):
        log.report(report(step, train_loss=1.0))
    with log.path(3).open("a") as file:
        file.write('{"torn')
    offset, found = 0, []
    while part := log.read(3, offset):
        found += [json.loads(line) for line, _ in part]
        offset = part[-1][1]
    assert [line.get("step") for line in found] == [None, *range(20)]
    assert offset == log.size(3) - len('{"torn')


def test_no_file_stays_open(tmp_path):
    log = EventLog(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    log.start(spec())
    log.report(report(1, train_loss=1.0))
    log.end(3, State.FAILED, "ValueError")
    list(log.reports(3))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_report_refuses_a_number_that_is_not_finite(value):
    with pytest.raises(ValueError, match="finite"):
        report(1, train_loss=value)
