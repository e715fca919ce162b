"""Stops asking a judge that never gives a verdict."""

import threading

from tune_dlrml.evaluation.records import Inquiry, Judge, Judgement

VERDICTLESS = 3
"""So many inquiries, from a run's first one on and one after another, show that a judge gives no verdicts."""

SHOWN = 200
"""Characters of the last reply that are shown."""


class Resigning:
    """A judge that is asked one inquiry at a time until its first verdict, and no more after `VERDICTLESS` without any.

    What is not asked for has no verdict, says why, and was not heard, so that the next run asks for it.

    Args:
        judge: Who is asked.
    """

    def __init__(self, judge: Judge) -> None:
        self.name, self.identity = judge.name, judge.identity
        self._judge = judge
        self._lock = threading.Lock()
        self._proven, self._silent = False, 0
        self._last = ""

    def ask(self, inquiry: Inquiry) -> Judgement:
        """See `Judge.ask`."""
        if self._proven:
            return self._judge.ask(inquiry)
        with self._lock:
            if not self._proven and self._silent >= VERDICTLESS:
                return Judgement.of(self.name, inquiry, None, self.given_up or "", calls=0, heard=False)
            judgement = self._judge.ask(inquiry)
            self._proven |= judgement.verdict is not None
            self._silent += 1
            self._last = judgement.words
            return judgement

    @property
    def given_up(self) -> str | None:
        """Why it is asked no more; None while it is."""
        if self._proven or self._silent < VERDICTLESS:
            return None
        return (
            f"{self.name} gave no verdict on the first {VERDICTLESS} turns and is asked no more in this run; "
            f"the last time: {' '.join(self._last.split())[:SHOWN]}"
        )
