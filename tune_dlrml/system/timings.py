"""When the start of a search reached its stages: marks of several processes in one file of the search's folder."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tune_dlrml.system.line_files import append_line, complete_lines

TIMINGS = "timings.jsonl"
"""Their file in the folder of a search; the marks of every run of the command follow one another."""
Stage = Literal["command", "checked", "study", "ray", "slot", "worker", "imported", "loaded", "step"]


class Mark(NamedTuple):
    """A stage that was reached.

    Attributes:
        stage: What has just ended, or for `command` begun.
        at_s: Unix time in seconds.
    """

    stage: Stage
    at_s: float


def mark(folder: Path, stage: Stage, at_s: float | None = None) -> None:
    """Note that a stage was reached, now or at a time that is given; short enough to be written at once."""
    line = json.dumps({"stage": stage, "at_s": time.time() if at_s is None else at_s})
    append_line(folder / TIMINGS, line.encode(), clean=True, durable=False)


def read_marks(folder: Path) -> list[Mark]:
    """The marks of the newest run of the command, each stage once; none for a search of an earlier version.

    A line that a power cut has torn is passed over.
    """
    path, marks = folder / TIMINGS, []
    for line in complete_lines(path.read_bytes()) if path.exists() else []:
        with suppress(ValueError, TypeError):
            marks.append(Mark(**json.loads(line)))
    newest = max((place for place, each in enumerate(marks) if each.stage == "command"), default=len(marks))
    found: dict[str, Mark] = {}
    for each in marks[newest:]:
        found.setdefault(each.stage, each)
    return list(found.values())
