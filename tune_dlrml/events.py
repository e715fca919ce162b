"""Event logs of a search: one file per trial, one line per event. They feed every curve, and are MLflow's outbox."""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tune_dlrml.errors import StorageError
from tune_dlrml.records import Report, State
from tune_dlrml.space import TrialSpec
from tune_dlrml.system.line_files import append_line, complete_lines

Event = dict[str, Any]
FIELDS: Mapping[str, Mapping[str, type]] = {
    "start": {"timestamp_ms": int, "attempt": int, "branch": str, "settings": dict, "params": dict},
    "report": {"timestamp_ms": int, "number": int, "step": int, "metrics": dict},
    "pause": {"timestamp_ms": int, "step": int},
    "end": {"timestamp_ms": int, "state": str, "reason": str},
    "judged": {"timestamp_ms": int, "step": int, "metrics": dict, "artifacts": list},
}
"""Required fields of each kind of event."""
NO_TAGS: Mapping[str, str] = MappingProxyType({})
ENDS = frozenset(str(state) for state in State if state.ended)
CHUNK = 1 << 20
"""Bytes of a log that `EventLog.read` reads at a time."""


@dataclass
class _Log:
    """The writer's state for the log of one trial."""

    last_step: int
    ended: bool
    paused: bool


class EventLog:
    """Event logs of a search's trials, `<folder>/trials/<number>/events.jsonl`: one writer at a time, many readers.

    A line has `kind` and `timestamp_ms`. `start`: the trial was issued, for the first time or again, with its `attempt`
    and all that MLflow needs to make its run, `tags` among it where there are some. `report`: a report. `pause`: the
    trial gave its workers back at a rung, until it starts again or ends. `end`: its `state` and the `reason`. `judged`,
    of a trial that has ended: the `metrics` of its answers and the files, in its folder, that show them; a line that
    names files elsewhere is not an event.

    **The first report of a step is kept.** A trial that resumes from a checkpoint trains some steps again and reports
    them again; a report whose step is not beyond the newest one in the log is dropped. So a curve has each step once
    over all attempts, with the timestamp under which MLflow may already have it.

    An incomplete line is ignored, see `line_files`. Starts, ends and evaluated reports, on which decisions of the study
    depend, are on the disk when their method returns; a power cut may lose the other reports since then, which are only
    points of a curve.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._logs: dict[int, _Log] = {}
        self._clean: set[int] = set()  # logs that end with a newline, as far as this process knows

    def path(self, number: int) -> Path:
        """File of one trial."""
        return self.folder / "trials" / str(number) / "events.jsonl"

    def numbers(self) -> list[int]:
        """Trials that have a log."""
        return sorted(int(path.parent.name) for path in self.folder.glob("trials/[0-9]*/events.jsonl"))

    def start(self, spec: TrialSpec, tags: Mapping[str, str] = NO_TAGS) -> None:
        """Record that a trial was passed to a worker group.

        Args:
            spec: The trial.
            tags: More about it, for its MLflow run.

        Raises:
            StorageError: The line could not be written; the log is unchanged. `report` and `end` raise it, too.
        """
        event = {
            "kind": "start",
            "timestamp_ms": int(time.time() * 1000),
            "attempt": spec.attempt,
            "branch": spec.branch,
            "settings": spec.settings(),
            "params": spec.training.flat() | spec.settings(),
            **({"tags": dict(tags)} if tags else {}),
        }
        self._append(spec.number, event, durable=True)
        self._log(spec.number).paused = False

    def report(self, report: Report) -> bool:
        """Record a report; False if it is dropped, since the log already has its step or a later one."""
        log = self._log(report.number)
        if report.step <= log.last_step:
            return False
        self._append(report.number, {"kind": "report", **report.as_json()}, durable=report.evaluated)
        log.last_step = report.step
        return True

    def pause(self, number: int, step: int, at_ms: int | None = None) -> None:
        """Record that a trial is paused, since `at_ms`, or now."""
        since = int(time.time() * 1000) if at_ms is None else at_ms
        self._append(number, {"kind": "pause", "timestamp_ms": since, "step": step}, durable=True)
        self._log(number).paused = True

    def end(self, number: int, state: State, reason: str) -> None:
        """Record the end of a trial."""
        event = {"kind": "end", "timestamp_ms": int(time.time() * 1000), "state": str(state), "reason": reason}
        self._append(number, event, durable=True)
        self._log(number).ended = True

    def judged(self, number: int, step: int, metrics: Mapping[str, float], artifacts: Sequence[str]) -> None:
        """Record the judging of a trial's answers, made at `step`; `artifacts` are names in its folder."""
        event = {
            "kind": "judged",
            "timestamp_ms": int(time.time() * 1000),
            "step": step,
            "metrics": dict(metrics),
            "artifacts": list(artifacts),
        }
        self._append(number, event, durable=True)

    def judgement(self, number: int) -> dict[str, float]:
        """The metrics of the newest judgement; empty before the first.

        Raises:
            StorageError: A line is broken.
        """
        newest: dict[str, float] = {}
        for event in self._events(number):
            if event["kind"] == "judged":
                newest = event["metrics"]
        return newest

    def last_step(self, number: int) -> int:
        """Step of the newest report; -1 if there is none."""
        return self._log(number).last_step

    def ended(self, number: int) -> bool:
        """Whether the trial's end is recorded."""
        return self._log(number).ended

    def paused(self, number: int) -> bool:
        """Whether it is recorded that the trial is paused."""
        return self._log(number).paused

    def reports(self, number: int) -> Iterator[Report]:
        """Reports of a trial in the order of their steps.

        Raises:
            StorageError: A line is broken, here and in `last_metrics`.
        """
        for event in self._events(number):
            if event["kind"] == "report":
                yield as_report(event)

    def last_metrics(self, number: int) -> dict[str, float]:
        """The newest value of every metric that the trial reported."""
        newest: dict[str, float] = {}
        for report in self.reports(number):
            newest |= report.metrics
        return newest

    def size(self, number: int) -> int:
        """Bytes of a trial's log, including an incomplete line at its end."""
        with _storage_errors(self.path(number), "read"):
            return self.path(number).stat().st_size if self.path(number).exists() else 0

    def sync(self, number: int) -> None:
        """Flush a trial's log to the disk, so that events sent after that cannot be lost here."""
        with _storage_errors(self.path(number), "written"), self.path(number).open("rb") as file:
            os.fsync(file.fileno())

    def read(self, number: int, offset: int) -> list[tuple[bytes, int]]:
        """The next complete lines after `offset`, about `CHUNK` bytes, each with the offset of its end."""
        path = self.path(number)
        if self.size(number) <= offset:
            return []
        with _storage_errors(path, "read"), path.open("rb") as file:
            file.seek(offset)
            data = file.read(CHUNK)
            data += b"" if data.endswith(b"\n") else file.readline()
        lines = []
        for line in complete_lines(data):
            offset += len(line) + 1
            lines.append((line, offset))
        return lines

    def _events(self, number: int) -> Iterator[Event]:
        offset, row = 0, 0
        while lines := self.read(number, offset):
            for line, _ in lines:
                row += 1
                yield self._parsed(number, line, row)
            offset = lines[-1][1]

    def _parsed(self, number: int, line: bytes, row: int) -> Event:
        event = parsed(line)
        if event is None:
            raise StorageError(
                f"{self.path(number)}, line {row}: every complete line is an event of its trial, but got "
                f"{line[:40]!r}; another program wrote to the file or the disk is damaged: remove or restore the line"
            )
        return event

    def _log(self, number: int) -> _Log:
        """The writer's state for a log, read from the file's end the first time."""
        if number not in self._logs:
            path = self.path(number)
            with _storage_errors(path, "read"):
                data = path.read_bytes() if path.exists() else b""
            self._logs[number] = self._newest(number, complete_lines(data))
        return self._logs[number]

    def _newest(self, number: int, lines: list[bytes]) -> _Log:
        newest, only_judged = _Log(last_step=-1, ended=False, paused=False), True
        for row in range(len(lines), 0, -1):
            event = self._parsed(number, lines[row - 1], row)
            newest.ended = newest.ended or (only_judged and event["kind"] == "end")
            newest.paused = newest.paused or (only_judged and event["kind"] == "pause")
            only_judged = only_judged and event["kind"] == "judged"
            if event["kind"] == "report":
                newest.last_step = int(event["step"])
                break
        return newest

    def _append(self, number: int, event: Mapping[str, Any], *, durable: bool) -> None:
        path, line = self.path(number), json.dumps(event, allow_nan=False).encode()
        clean = number in self._clean
        self._clean.discard(number)
        try:
            with _storage_errors(path, "written"):
                # Below the search's folder, `trials/<number>` and `trials` may be new as well.
                append_line(path, line, clean=clean, durable=durable, folders=3)
        except StorageError:
            # The line may still be there, if only the flush to the disk failed.
            self._logs.pop(number, None)
            raise
        self._clean.add(number)


def parsed(line: bytes) -> Event | None:
    """The event in a line; None if it is not a valid event. An event has all fields of its kind."""
    try:
        event = json.loads(line)
        return event if isinstance(event, dict) and _is_event(event) else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _is_event(event: Event) -> bool:
    """Whether an event has the fields of its kind.

    Raises:
        ValueError: A number is not finite.
        TypeError: A metric is not a number, or a report has other fields.
        OverflowError: A metric exceeds every float.
    """
    kind = str(event.get("kind"))
    if kind not in FIELDS or not all(isinstance(event.get(name), of) for name, of in FIELDS[kind].items()):
        return False
    if kind == "report":
        as_report(event)
    if kind == "judged":
        if not all(isinstance(name, str) and _is_file_name(name) for name in event["artifacts"]):
            return False
        as_report({"number": 0, **{key: event[key] for key in ("step", "timestamp_ms", "metrics")}})
    return (kind != "start" or isinstance(event["settings"].get("loss"), str)) and (
        kind != "end" or event["state"] in ENDS
    )


def _is_file_name(name: str) -> bool:
    """Whether a name is a file inside a folder, and does not lead out of it."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def as_report(event: Mapping[str, Any]) -> Report:
    """The report in an event of the kind `report`."""
    return Report.from_json({key: value for key, value in event.items() if key != "kind"})


@contextmanager
def _storage_errors(path: Path, done: str) -> Iterator[None]:
    """Turn an error of the operating system into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free space",
            errno.EDQUOT: "free space in the quota",
            errno.EROFS: "mount the disk for writing",
            errno.EACCES: "make it writable for this user",
        }.get(error.errno or 0, "check the disk")
        raise StorageError(
            f"{path} must be {done} for the search to continue, but: {error.strerror}; {remedy}, "
            "then run the same command again"
        ) from error
