"""Judges the answers of a search's trials in one thread, while other trials train."""

import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.errors import TuneDlrmlError
from tune_dlrml.evaluation.judges.jury import Grading, Jury
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Answers, Judgement
from tune_dlrml.events import EventLog
from tune_dlrml.search.result import JUDGED
from tune_dlrml.study.database import faults_of_storage
from tune_dlrml.system.files import replace_file

JUDGEMENTS, TABLE, PAIRS_TABLE = "judgements.jsonl", "mt_bench.json", "mt_bench_pairs.json"
"""Files of a trial: the judgements, and tables of the answers with their judgements."""
LEAVE_S = 10.0
"""How long a search that ends waits for the requests to its judges that are in flight."""


@dataclass(frozen=True)
class Submission:
    """A trial whose answers are to be judged.

    Attributes:
        number: The trial's.
        steps: Optimizer steps after which it gave them.
        answering_s: Seconds that answering took; None where they are unknown.
    """

    number: int
    steps: int
    answering_s: float | None = None


class Judging:
    """Has the answers of trials judged, one trial after another, while others train.

    Judging again is free: a trial whose grading is complete is skipped, and the jury caches every reply. So all
    finalists can be submitted at every start and once more at the end. If a judge does not answer, the waiting
    submissions are tried again with the next one, and at the end.

    Args:
        questionnaire: The questions of the trials.
        jury: The judges.
        events: The event logs of the search.
        on_judged: Called with the grading of a trial; it and `on_notice` are called from the judging thread.
        on_notice: Called with what the user should know.
        baseline: Trial with whose answers the others' are compared; None compares none.
    """

    def __init__(
        self,
        questionnaire: Questionnaire,
        jury: Jury,
        events: EventLog,
        *,
        on_judged: Callable[[int, Grading], None],
        on_notice: Callable[[str], None],
        baseline: int | None = None,
    ) -> None:
        self._questionnaire, self._jury, self._events = questionnaire, jury, events
        self._on_judged, self._on_notice, self._baseline = on_judged, on_notice, baseline
        self._submitted: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="judging", daemon=True)
        self._thread.start()

    def submit(self, submission: Submission) -> None:
        """Have the answers of a trial judged; nothing if there are none, or if they are judged already."""
        self._submitted.put(submission)

    def finish(self) -> TuneDlrmlError | None:
        """Wait until everything that was submitted is judged.

        Returns:
            Why something could not be: a judge has reached its limits or does not answer, an endpoint refuses a
            request, a file cannot be read or written; None if everything is judged.
        """
        self._submitted.put(None)
        self._thread.join()
        if self._error is not None and not isinstance(self._error, TuneDlrmlError):
            raise self._error
        return self._error

    def leave(self) -> None:
        """Stop judging, after a short wait for the requests in flight; the next driver resumes it."""
        self._jury.stop()
        self._submitted.put(None)
        self._thread.join(LEAVE_S)
        self._jury.close()

    def is_judged(self, number: int) -> bool:
        """Whether a trial has been judged, and compared with the baseline if there are its answers."""
        compared = self._others(number) is not None
        return is_judged(self._events.path(number).parent, self._questionnaire, self._jury, compared=compared)

    def _work(self) -> None:
        waiting: deque[Submission] = deque()
        while (submission := self._submitted.get()) is not None:
            waiting.append(submission)
            self._judge_all(waiting)
        self._judge_all(waiting)

    def _judge_all(self, waiting: deque[Submission]) -> None:
        """Judge the waiting submissions as far as possible; training continues without judges."""
        try:
            while waiting:
                with faults_of_storage(str(self._events.folder)):
                    self._judge(waiting[0])
                waiting.popleft()
            self._error = None
        except Exception as error:
            if str(error) != str(self._error):
                self._on_notice(f"judging waits, training continues: {error}")
            self._error = error  # reported now, and again by `finish`

    def _judge(self, submission: Submission) -> None:
        number = submission.number
        folder = self._events.path(number).parent
        answers = self._questionnaire.answers(folder)
        if answers is None or self.is_judged(number):
            return
        questions = self._questionnaire.questions
        grading = self._jury.grade(questions, answers, baseline=self._others(number))
        tables = {TABLE: grading.table(questions, answers)}
        if grading.comparisons:
            tables[PAIRS_TABLE] = grading.pairs_table(questions)
        replace_file(folder / JUDGEMENTS, _lines([*grading.ratings, *grading.comparisons]))
        for name, table in tables.items():
            replace_file(folder / name, json.dumps(table))
        files = [*tables, *_draw(grading, number, folder)]
        metrics = grading.metrics()
        if submission.answering_s is not None:
            metrics["answering_s"] = submission.answering_s
        if self._events.judgement(number) != metrics:  # else the last driver died after this line
            self._events.judged(number, submission.steps, metrics, files)
        replace_file(folder / JUDGED, json.dumps(_summary(grading, self._questionnaire, self._jury)), durable=True)
        self._on_judged(number, grading)

    def _others(self, number: int) -> list[Answers] | None:
        """The baseline's answers; None for the baseline itself, and where it has none."""
        if self._baseline is None or number == self._baseline:
            return None
        return self._questionnaire.answers(self._events.path(self._baseline).parent)


def is_judged(folder: Path, questionnaire: Questionnaire, jury: Jury, *, compared: bool) -> bool:
    """Whether this whole jury has judged a trial's answers to this questionnaire.

    Args:
        folder: The trial's.
        questionnaire: The questions.
        jury: The judges, and how they judge.
        compared: Whether there is a baseline to compare with.
    """
    if not (folder / JUDGED).exists():
        return False
    known: Mapping[str, Any] = json.loads((folder / JUDGED).read_bytes())
    return bool(
        known.get("questionnaire") == questionnaire.fingerprint
        and known["jury"] == jury.fingerprint
        and known["whole"]
        and {score["judge"] for score in known["scores"]}.issuperset(jury.names)
        and (bool(known["differences"]) or not compared)
    )


def _summary(grading: Grading, questionnaire: Questionnaire, jury: Jury) -> dict[str, Any]:
    return {
        "questionnaire": questionnaire.fingerprint,
        "jury": jury.fingerprint,
        "whole": grading.whole,
        "scores": [score.as_json() for score in grading.scores],
        "differences": [score.as_json() for score in grading.differences],
        "pairs": [pair.as_json() for pair in grading.pairs],
    }


def _draw(grading: Grading, number: int, folder: Path) -> list[str]:
    """A picture for each judge; their names in the trial's folder."""
    from tune_dlrml.evaluation.mt_bench.radar import radar  # matplotlib, where nothing is judged

    names = [f"mt_bench_{index}.png" for index in range(len(grading.scores))]
    for name, score in zip(names, grading.scores, strict=True):
        radar({f"trial {number}": score.categories}, judge=score.judge).savefig(folder / name)
    return names


def _lines(judgements: Sequence[Judgement]) -> str:
    return "".join(json.dumps(judgement.as_json()) + "\n" for judgement in judgements)
