"""Where the time before the first optimizer step goes, from the marks of several processes and the event logs."""

import json
from pathlib import Path

import pytest

from tune_dlrml.search.timings import PARTS, is_loading, read_timings
from tune_dlrml.system.timings import TIMINGS, Mark, mark, read_marks


def events(folder: Path, number: int, *lines: dict[str, object]) -> None:
    path = folder / "trials" / str(number) / "events.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def started(at_s: float) -> dict[str, object]:
    start = {"attempt": 0, "branch": "dpo", "settings": {"loss": "dpo"}, "params": {}}
    return {"kind": "start", "timestamp_ms": int(at_s * 1000), **start}


def report(at_s: float, step: int) -> dict[str, object]:
    of = {"metrics": {}, "evaluated": False, "rung": False}
    return {"kind": "report", "number": 0, "step": step, "timestamp_ms": int(at_s * 1000), **of}


def test_the_parts_follow_one_another_from_the_command_to_the_first_step(tmp_path: Path):
    reached = zip(("command", "checked", "study", "ray"), (100.0, 103.0, 103.5, 108.0), strict=True)
    for stage, at_s in [
        *reached,
        *(("slot", 111.0), ("worker", 114.0), ("imported", 118.0), ("loaded", 124.0), ("step", 126.5)),
    ]:
        mark(tmp_path, stage, at_s)
    mark(tmp_path, "slot", 130.0)  # of a second group
    events(tmp_path, 0, started(109.0), report(125.0, 0), report(129.0, 10))
    events(tmp_path, 1, started(128.0))
    timings = read_timings(tmp_path)
    assert [part for part, _, _ in timings] == list(PARTS.values())
    assert [seconds for _, _, seconds in timings] == pytest.approx([3, 0.5, 4.5, 1, 2, 3, 4, 6, 2.5])
    assert [begin for _, begin, _ in timings] == pytest.approx([0, 3, 3.5, 8, 9, 11, 14, 18, 24])


def test_only_the_newest_run_of_the_command_counts_as_far_as_it_came(tmp_path: Path):
    events(tmp_path, 0, started(9.0), report(12.0, 1))
    for stage, at_s in (("command", 1.0), ("checked", 4.0), ("ray", 8.0), ("command", 100.0), ("checked", 101.0)):
        mark(tmp_path, stage, at_s)
    assert read_timings(tmp_path) == [(PARTS["checked"], 0.0, 1.0)]


def test_a_search_without_marks_has_no_timings_and_a_torn_line_is_passed_over(tmp_path: Path):
    assert read_timings(tmp_path) == []
    mark(tmp_path, "command", 5.0)
    with (tmp_path / TIMINGS).open("a") as file:
        file.write('{"stage": "checked", "at')
    assert read_marks(tmp_path) == [Mark("command", 5.0)]
    mark(tmp_path, "checked", 6.0)  # behind what a power cut left of the line before
    mark(tmp_path, "study", 7.0)
    assert read_marks(tmp_path) == [Mark("command", 5.0), Mark("study", 7.0)]


def test_workers_load_from_their_start_until_they_have_and_again_in_the_next_run(tmp_path: Path):
    loads = [is_loading(tmp_path)]
    for stage in ("command", "ray", "slot", "worker", "imported", "loaded", "command", "worker"):
        mark(tmp_path, stage)
        loads.append(is_loading(tmp_path))
    assert loads == [False, False, False, False, True, True, False, False, True]
