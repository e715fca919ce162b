"""The event log of a trial: one line a report, append-only, the source of every curve."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_dlrml.records import Report


class EventLog:
    """Event logs of a search's trials, `<folder>/trials/<number>/events.jsonl`.

    A line has `kind` (start, report or end) and `timestamp_ms`. A trial that is issued again begins a new attempt
    with a start line; what stands before it belongs to the attempt that was lost. A start line with the attempt that
    is under way already only says that another driver took it over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, number: int) -> Path:
        """File of one trial."""
        return self._folder / "trials" / str(number) / "events.jsonl"

    def start(self, number: int, attempt: int, settings: Mapping[str, Any]) -> None:
        """A trial was handed to a worker group."""
        self._append(number, {"kind": "start", "attempt": attempt, "settings": dict(settings)})

    def report(self, report: Report) -> None:
        """A trial reported."""
        self._append(report.number, {"kind": "report", **report.as_json()})

    def end(self, number: int, state: str, reason: str) -> None:
        """A trial ended."""
        self._append(number, {"kind": "end", "state": state, "reason": reason})

    def reports(self, number: int) -> Iterator[Report]:
        """Reports of the last attempt, in order; a torn last line, left by a crash, is passed over."""
        if not self.path(number).exists():
            return
        lines = self.path(number).read_text(encoding="utf-8").splitlines()
        events = [event for line in lines if (event := _parsed(line)) is not None]
        attempts = [event["attempt"] for event in events if event["kind"] == "start"]
        starts = (i for i, event in enumerate(events) if event["kind"] == "start" and event["attempt"] == attempts[-1])
        begin = next(starts, 0)
        for event in events[begin:]:
            if event.pop("kind") == "report":
                yield Report.from_json(event)

    def last_metrics(self, number: int) -> dict[str, float]:
        """The newest value of every metric that the trial reported."""
        newest: dict[str, float] = {}
        for report in self.reports(number):
            newest |= report.metrics
        return newest

    def _append(self, number: int, event: Mapping[str, Any]) -> None:
        path = self.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"timestamp_ms": int(time.time() * 1000), **event}, allow_nan=False)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        event: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event
