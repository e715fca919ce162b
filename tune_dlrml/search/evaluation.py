"""The examined trials of a search: which they are, who of them still has to answer, who to be judged."""

from collections.abc import Callable

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import TuneDlrmlError
from tune_dlrml.evaluation.examination import Examination
from tune_dlrml.evaluation.jury import Grading, Jury
from tune_dlrml.events import EventLog
from tune_dlrml.models import parse_model_reference
from tune_dlrml.records import State
from tune_dlrml.search.finalists import examine_finalists
from tune_dlrml.search.history import TrialRow
from tune_dlrml.search.judging import Judging, is_judged
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.study import SearchStudy

BASELINE = 0
"""Number of the DPO trial that pairs of answers are compared with."""


class Evaluation:
    """From a trial's end to what judges say of it. Nothing happens where the search has no `evaluation`.

    Args:
        prepared: The search.
        study: Its study.
        events: Its event logs.
    """

    def __init__(self, prepared: PreparedSearch, study: SearchStudy, events: EventLog) -> None:
        self._prepared, self._study, self._events = prepared, study, events
        self._trials = events.folder / "trials"
        self._judging: Judging | None = None

    def left(self) -> bool:
        """Whether a search whose training has ended still has trials to be examined or judged."""
        parts = self._parts()
        if parts is None:
            return False
        config, examination, jury = parts
        wanted = self._finalists(config, ended=True)
        return not all(
            is_judged(self._trials / str(row.number), examination, jury.names, compared=False) for row in wanted
        )

    def begin(self, on_judged: Callable[[int, Grading], None], on_notice: Callable[[str], None]) -> None:
        """Start judging, beginning with what earlier drivers left over.

        Args:
            on_judged: Told what judges say of a trial; it and `on_notice` are called from the judging thread.
            on_notice: Told what a person should know.
        """
        parts = self._parts()
        if parts is None:
            return
        config, examination, jury = parts
        self._judging = Judging(
            examination,
            jury,
            self._events,
            on_judged=on_judged,
            on_notice=on_notice,
            baseline=None if self._prepared.config.search.baseline is None else BASELINE,
        )
        for row in self._finalists(config, ended=False):
            self._judging.submit(row.number, row.steps)

    def on_end(self, row: TrialRow) -> None:
        """A trial has ended, and its answers, if it gave any, can be judged while others train."""
        if self._judging is not None and row.state is State.COMPLETE:
            self._judging.submit(row.number, row.steps)

    def unanswered(self) -> list[TrialRow]:
        """Finalists of a search whose training has ended that have not answered yet."""
        parts = self._parts()
        if parts is None:
            return []
        config, examination, _ = parts
        wanted = self._finalists(config, ended=True)
        return [row for row in wanted if not examination.path(self._trials / str(row.number)).exists()]

    def examine(self) -> None:
        """Have those answer from the models that they ended with; needs a Ray cluster."""
        parts, rows = self._parts(), self.unanswered()
        if parts is None or not rows or self._judging is None:
            return
        judging, steps, config = self._judging, {row.number: row.steps for row in rows}, self._prepared.config
        judging.tell(f"examining {len(rows)} trials from the models that they ended with")
        examine_finalists(
            {row.number: config.training if row.spec is None else row.spec.training for row in rows},
            parts[1],
            model=str(parse_model_reference(config.model)),
            folder=self._trials,
            resources=config.resources,
            on_answered=lambda number: judging.submit(number, steps[number]),
        )

    def finish(self) -> TuneDlrmlError | None:
        """Wait until everything is judged; why it could not be, if it could not."""
        return None if self._judging is None else self._judging.finish()

    def leave(self) -> None:
        """Ask judges no more; the next driver goes on."""
        if self._judging is not None:
            self._judging.leave()

    def _parts(self) -> tuple[EvaluationConfig, Examination, Jury] | None:
        config, examination, jury = self._prepared.config.evaluation, self._prepared.examination, self._prepared.jury
        return None if config is None or examination is None or jury is None else (config, examination, jury)

    def _finalists(self, config: EvaluationConfig, *, ended: bool) -> list[TrialRow]:
        """Trials that are examined, the best first: all complete ones or, once the search has ended, the best."""
        complete = [row for row in self._study.rows() if row.state is State.COMPLETE]
        sign = -1.0 if self._study.maximize else 1.0
        ranked = sorted(complete, key=lambda row: (sign * float(row.value or 0.0), row.number))
        if config.when == "final_rung":
            return ranked
        return ranked[: config.best] if ended else []
