"""The examined trials of a search: which they are, and which of them have still to answer or to be judged."""

import json
from collections.abc import Callable

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import TuneDlrmlError, UnansweredError
from tune_dlrml.evaluation.judges.jury import Grading, Jury
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.events import EventLog
from tune_dlrml.records import State
from tune_dlrml.search.judging.late_answers import ask_finalists
from tune_dlrml.search.judging.thread import Judging, Submission, is_judged
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.result import RANKING
from tune_dlrml.study.history import TrialRow, ranked
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.system.files import replace_file

BASELINE = 0
"""Number of the DPO trial that answers are compared with."""


class Evaluation:
    """Judging of trials that have ended. Does nothing where the search has no `evaluation`.

    Args:
        prepared: The search.
        study: Its study.
        events: Its event logs.
    """

    def __init__(self, prepared: PreparedSearch, study: SearchStudy, events: EventLog) -> None:
        self._prepared, self._study, self._events = prepared, study, events
        self._trials = events.folder / "trials"
        self._judging: Judging | None = None
        self._unanswered: UnansweredError | None = None
        self._notify: Callable[[str], None] = lambda text: None

    def left(self) -> bool:
        """Whether a search whose training has ended still has trials to be examined or judged."""
        parts = self._parts()
        if parts is None:
            return False
        config, questionnaire, jury = parts
        compared = self._has_answered(BASELINE, questionnaire) and self._compares()
        return not all(
            is_judged(self._trials / str(row.number), questionnaire, jury, compared=compared and row.number != BASELINE)
            for row in self._finalists(config, ended=True)
        )

    def begin(self, on_judged: Callable[[int, Grading], None], on_notice: Callable[[str], None]) -> None:
        """Start judging, first what earlier drivers left.

        Args:
            on_judged: Called with the grading of a trial; it and `on_notice` are called from the judging thread.
            on_notice: Called with what the user should know.
        """
        parts = self._parts()
        if parts is None:
            return
        config, questionnaire, jury = parts
        self._notify = on_notice
        ranking = {"questionnaire": questionnaire.fingerprint, "judges": jury.names}
        replace_file(self._events.folder / RANKING, json.dumps(ranking))
        self._judging = Judging(
            questionnaire,
            jury,
            self._events,
            on_judged=on_judged,
            on_notice=on_notice,
            baseline=BASELINE if self._compares() else None,
        )
        for row in self._finalists(config, ended=False):
            self.on_end(row)

    def on_end(self, row: TrialRow) -> None:
        """A trial has ended, and its answers, if there are any, can be judged while others train."""
        if self._judging is not None and row.state is State.COMPLETE:
            answering_s = row.attrs.get("seconds", {}).get("answering")
            self._judging.submit(Submission(row.number, row.steps, answering_s))

    def unanswered(self) -> list[TrialRow]:
        """Finalists of a search whose training has ended that have not answered yet."""
        parts = self._parts()
        if parts is None:
            return []
        config, questionnaire, _ = parts
        return [row for row in self._finalists(config, ended=True) if not self._has_answered(row.number, questionnaire)]

    def ask(self) -> None:
        """Have those trials answer with their final models; needs a Ray cluster."""
        parts, rows, judging = self._parts(), {row.number: row for row in self.unanswered()}, self._judging
        if parts is None or not rows or judging is None:
            return
        config = self._prepared.config
        self._notify(f"examining the final models of {len(rows)} trials")
        try:
            ask_finalists(
                {row.number: config.training if row.spec is None else row.spec.training for row in rows.values()},
                parts[1],
                model=self._prepared.place.model(config),
                folder=self._trials,
                resources=config.resources,
                on_answered=lambda number, took: judging.submit(Submission(number, rows[number].steps, took)),
                on_notice=self._notify,
            )
        except UnansweredError as error:
            self._unanswered = error

    def finish(self) -> TuneDlrmlError | None:
        """Wait until everything is judged; return why something could not be, None if everything was."""
        parts = self._parts()
        if parts is None or self._judging is None:
            return None
        config, questionnaire, _ = parts
        if config.pairwise and not self._has_answered(BASELINE, questionnaire):
            self._notify(f"no answers are compared with the DPO baseline: trial {BASELINE} is not complete")
        for row in self._finalists(config, ended=True):  # once more, since the baseline may have ended after others
            self.on_end(row)
        return self._judging.finish() or self._unanswered

    def leave(self) -> None:
        """Stop judging; the next driver resumes it."""
        if self._judging is not None:
            self._judging.leave()

    def _parts(self) -> tuple[EvaluationConfig, Questionnaire, Jury] | None:
        prepared = self._prepared
        config, questionnaire, jury = prepared.config.evaluation, prepared.questionnaire, prepared.jury
        return None if config is None or questionnaire is None or jury is None else (config, questionnaire, jury)

    def _compares(self) -> bool:
        return self._prepared.config.search.baseline is not None

    def _has_answered(self, number: int, questionnaire: Questionnaire) -> bool:
        return questionnaire.path(self._trials / str(number)).exists()

    def _finalists(self, config: EvaluationConfig, *, ended: bool) -> list[TrialRow]:
        """Trials that are examined, the best first: all complete ones or, once the search has ended, the best.

        The baseline is one of them, so that there is something to compare with.
        """
        rows, maximize = self._study.rows(), self._study.maximize
        if config.when == "final_rung":
            return ranked(rows, maximize=maximize, infeasible=True)
        if not ended:
            return []
        best = [row.number for row in ranked(rows, maximize=maximize)[: config.best]]
        return [
            row
            for row in ranked(rows, maximize=maximize, infeasible=True)
            if row.number in best or (row.number == BASELINE and self._compares())
        ]
