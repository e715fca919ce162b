"""Where the time before the first optimizer step of a search goes."""

from pathlib import Path
from typing import NamedTuple

from tune_dlrml.events import EventLog
from tune_dlrml.search.usage import events_of
from tune_dlrml.system.timings import read_marks

PARTS = {
    "checked": "imports, and the input checked",
    "study": "study and event logs opened",
    "ray": "Ray started or joined",
    "issued": "Tune started, first trial issued",
    "slot": "process of the slot",
    "worker": "Ray Train's controller, process of the worker",
    "imported": "imports of the worker",
    "loaded": "model, rows and reference log-probs",
    "step": "adapter, trainer and the first step",
}
"""What ends with each stage, in order."""


class Timing(NamedTuple):
    """A part of the time from the command to the end of the first step.

    Attributes:
        part: What was done.
        begin_s: From the command's start.
        seconds: How long it took.
    """

    part: str
    begin_s: float
    seconds: float


def read_timings(folder: Path) -> list[Timing]:
    """The parts of the newest run of a search's command, as far as it came; none where nothing was marked."""
    reached: dict[str, float] = {each.stage: each.at_s for each in read_marks(folder)}
    if "command" not in reached:
        return []
    began = reached["command"]
    at_s = reached | _issued(EventLog(folder), began)
    timings, before = [], began
    for stage, part in PARTS.items():
        if stage in at_s:
            timings.append(Timing(part, before - began, max(0.0, at_s[stage] - before)))
            before = max(before, at_s[stage])
    return timings


def is_loading(folder: Path) -> bool:
    """Whether workers of the newest run of a search's command are up, and none has loaded model and reference yet."""
    stages = {each.stage for each in read_marks(folder)}
    return "worker" in stages and "loaded" not in stages


def _issued(events: EventLog, since_s: float) -> dict[str, float]:
    """When the first trial since then was issued; empty before that."""
    starts = (
        event["timestamp_ms"] / 1000
        for number in events.numbers()
        for event in events_of(events, number)
        if event["kind"] == "start"
    )
    first = min((at_s for at_s in starts if at_s >= since_s), default=None)
    return {} if first is None else {"issued": first}
