"""The answers of a search's trials before its judges: one thread, beside the training of other trials."""

import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.errors import TuneDlrmlError
from tune_dlrml.evaluation.examination import Examination
from tune_dlrml.evaluation.jury import Grading, Jury
from tune_dlrml.evaluation.pictures import radar
from tune_dlrml.evaluation.records import Answers, Judgement
from tune_dlrml.events import EventLog
from tune_dlrml.files import replace_file
from tune_dlrml.search.database import faults_of_storage
from tune_dlrml.search.result import JUDGED

JUDGEMENTS, TABLE = "judgements.jsonl", "mt_bench.json"
"""Files of a trial: what each judge said, and the same beside the answers as a table to look at."""
LEAVE_S = 10.0
"""How long a search that ends waits for what its judges are asked at that moment."""


@dataclass(frozen=True)
class _Work:
    number: int
    steps: int


class Judging:
    """Has the answers of trials judged, one trial after another, while others train.

    What was judged before costs nothing: a trial whose grading is complete is passed over, and the jury remembers every
    reply. So all finalists can be submitted at every start.

    Args:
        examination: What the trials were asked.
        jury: Who judges.
        events: The event logs of the search.
        on_judged: Told what judges say of a trial; it and `on_notice` are called from the judging thread.
        on_notice: Told what a person should know.
        baseline: Trial whose answers the others' are compared with; None compares none.
    """

    def __init__(
        self,
        examination: Examination,
        jury: Jury,
        events: EventLog,
        *,
        on_judged: Callable[[int, Grading], None],
        on_notice: Callable[[str], None],
        baseline: int | None = None,
    ) -> None:
        self._examination, self._jury, self._events = examination, jury, events
        self._on_judged, self._on_notice, self._baseline = on_judged, on_notice, baseline
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="judging", daemon=True)
        self._thread.start()

    def submit(self, number: int, steps: int) -> None:
        """Have the answers of a trial judged that it gave after `steps` optimizer steps; if it gave none, nothing."""
        self._waiting.put(_Work(number, steps))

    def finish(self) -> TuneDlrmlError | None:
        """Wait until everything that was submitted is judged.

        Returns:
            Why something could not be: a judge may not be called any more or does not answer, an endpoint refuses what
            it is asked, a file cannot be read or written; None if everything is judged.
        """
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and not isinstance(self._error, TuneDlrmlError):
            raise self._error
        return self._error

    def tell(self, text: str) -> None:
        """Pass on what a person should know."""
        self._on_notice(text)

    def leave(self) -> None:
        """Ask no more; what judges are asked at this moment is waited for a while, and the next driver goes on."""
        self._jury.stop()
        self._waiting.put(None)
        self._thread.join(LEAVE_S)
        self._jury.close()

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    with faults_of_storage(str(self._events.folder)):
                        self._judge(work)
                except Exception as error:  # told now, and again by `finish`: training goes on without judges
                    self._error = error
                    self._on_notice(f"judging has stopped, training goes on: {error}")

    def _judge(self, work: _Work) -> None:
        folder = self._events.path(work.number).parent
        answers, others = self._examination.answers(folder), self._others(work.number)
        if answers is None or is_judged(folder, self._examination, self._jury.names, compared=others is not None):
            return
        grading = self._jury.grade(self._examination.questions, answers, baseline=others)
        replace_file(folder / JUDGEMENTS, _lines([*grading.ratings, *grading.comparisons]))
        replace_file(folder / TABLE, json.dumps(grading.table(self._examination.questions, answers)))
        pictures = _draw(grading, work.number, folder)
        if self._events.judgement(work.number) != grading.metrics():  # else the last driver died behind this line
            self._events.judged(work.number, work.steps, grading.metrics(), [TABLE, *pictures])
        replace_file(folder / JUDGED, json.dumps(_summary(grading, self._examination), indent=1), durable=True)
        self._on_judged(work.number, grading)

    def _others(self, number: int) -> list[Answers] | None:
        """The baseline's answers; None for the baseline itself, and where it gave none."""
        if self._baseline is None or number == self._baseline:
            return None
        return self._examination.answers(self._events.path(self._baseline).parent)


def _lines(judgements: Sequence[Judgement]) -> str:
    return "".join(json.dumps(judgement.as_json()) + "\n" for judgement in judgements)


def is_judged(folder: Path, examination: Examination, jury: Sequence[str], *, compared: bool) -> bool:
    """Whether a trial's answers to this examination were judged by all of these, every turn of them.

    Args:
        folder: The trial's.
        examination: What it was asked.
        jury: Names of the judges.
        compared: Whether there is a baseline that it is to be compared with.
    """
    if not (folder / JUDGED).exists():
        return False
    known = json.loads((folder / JUDGED).read_bytes())
    whole = {score["judge"] for score in known["scores"] if score["unscored"] == 0}
    return (
        bool(known["examination"] == examination.fingerprint)
        and whole.issuperset(jury)
        and (bool(known["differences"]) or not compared)
    )


def _summary(grading: Grading, examination: Examination) -> dict[str, Any]:
    return {
        "examination": examination.fingerprint,
        "scores": [score.as_json() for score in grading.scores],
        "differences": [score.as_json() for score in grading.differences],
        "pairs": [pair.as_json() for pair in grading.pairs],
    }


def _draw(grading: Grading, number: int, folder: Path) -> list[str]:
    """A picture for each judge; their names in the trial's folder."""
    names = [f"mt_bench_{index}.png" for index in range(len(grading.scores))]
    for name, score in zip(names, grading.scores, strict=True):
        radar({f"trial {number}": score.categories}, judge=score.judge).savefig(folder / name)
    return names
