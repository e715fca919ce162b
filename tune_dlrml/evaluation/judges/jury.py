"""Judges with their prompts and their memory, and what they say of one model's answers to MT-Bench."""

import hashlib
import json
import posixpath
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import JudgeEndedError
from tune_dlrml.evaluation.judges.judge import NamedJudge, make_judge
from tune_dlrml.evaluation.judges.prompts import PAIR, SINGLE, JudgePrompts, load_judge_prompts
from tune_dlrml.evaluation.judges.replies import CachedJudge, ReplyCache, judge_all
from tune_dlrml.evaluation.judges.resigning import Resigning
from tune_dlrml.evaluation.mt_bench.scores import (
    Interval,
    PairScore,
    Score,
    difference,
    inquiries,
    mean_score,
    pair_inquiries,
    pair_score,
    score,
)
from tune_dlrml.evaluation.records import Answers, Inquiry, Judge, Judgement, Question

NAME_LENGTH = 100
"""Characters of a judge or a category in the name of a metric."""
AnyScore = TypeVar("AnyScore", Score, PairScore)
COLUMNS = ("question", "category", "turn", "prompt", "answer", "judge", "rating", "judgement")


@dataclass(frozen=True)
class Grading:
    """What a jury says of one model.

    Attributes:
        ratings: Judge by judge, in the order of questions and turns.
        scores: One of each judge and, where there are several, one of their mean.
        differences: How much higher each judge rates it than the baseline; empty without one.
        comparisons: Which of two answers, its own and the baseline's, is better; empty unless that was asked.
        pairs: What they come to, one of each judge.
    """

    ratings: tuple[Judgement, ...]
    scores: tuple[Score, ...]
    differences: tuple[Score, ...] = ()
    comparisons: tuple[Judgement, ...] = ()
    pairs: tuple[PairScore, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every judge was heard on everything: what an outage took is asked for again."""
        return all(said.heard for said in (*self.ratings, *self.comparisons))

    def metrics(self) -> dict[str, float]:
        """Numbers for curves and tables, each named by its judge; what is missing is left out."""
        named: dict[str, float | None] = {}
        for own in self.scores:
            prefix = f"mt_bench/{_metric_name(own.judge)}"
            named |= _with_interval(f"{prefix}/score", own.score, own.interval)
            named[f"{prefix}/unscored"] = float(own.unscored)
            named |= {f"{prefix}/turn_{turn}": mean for turn, mean in own.turns.items()}
            named |= {f"{prefix}/category/{_metric_name(name)}": mean for name, mean in own.categories.items()}
        for above in self.differences:
            named |= _with_interval(f"mt_bench/{_metric_name(above.judge)}/above_baseline", above.score, above.interval)
        for pair in self.pairs:
            prefix = f"mt_bench/{_metric_name(pair.judge)}/win_rate_adjusted"
            named |= _with_interval(prefix, pair.win_rate_adjusted, pair.interval)
        return {name: value for name, value in named.items() if value is not None}

    def pairs_table(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The comparisons with the baseline, each in both orders: A is shown first."""
        asked = {question.id: question for question in questions}
        rows = [
            [
                said.question_id,
                asked[said.question_id].category,
                said.turn,
                "baseline" if index % 2 else "trial",
                said.judge,
                said.verdict,
                said.words,
            ]
            for index, said in enumerate(self.comparisons)
        ]
        return {"columns": ["question", "category", "turn", "A", "judge", "better", "judgement"], "data": rows}

    def table(self, questions: Sequence[Question], answers: Sequence[Answers]) -> dict[str, Any]:
        """Answers and ratings side by side, as pandas' `orient="split"` has a table."""
        asked = {question.id: question for question in questions}
        given = {each.question_id: each.turns for each in answers}
        rows = [
            [
                said.question_id,
                asked[said.question_id].category,
                said.turn,
                asked[said.question_id].turns[said.turn - 1],
                given[said.question_id][said.turn - 1],
                said.judge,
                said.verdict,
                said.words,
            ]
            for said in self.ratings
        ]
        return {"columns": list(COLUMNS), "data": rows}


class Jury:
    """Has judges grade answers; cached replies are not asked for again.

    Args:
        judges: The judges.
        prompts: Their prompts.
        replies: Cache of their replies.
        concurrency: Concurrent inquiries to one judge.
        seed: Of the intervals.
        pairwise: Whether answers are also compared with the baseline's one by one.
    """

    def __init__(
        self,
        judges: Sequence[NamedJudge],
        prompts: JudgePrompts,
        replies: ReplyCache,
        *,
        concurrency: int,
        seed: int,
        pairwise: bool = False,
    ) -> None:
        self._over, self._named = threading.Event(), judges
        self._asked = [Resigning(_Stoppable(judge, self._over)) for judge in judges]
        self._judges = [CachedJudge(judge, replies) for judge in self._asked]
        self._prompts, self._concurrency, self._seed, self._pairwise = prompts, concurrency, seed, pairwise

    @classmethod
    def of(cls, config: EvaluationConfig, replies: Path, key: str | None, *, device: str = "cpu") -> "Jury":
        """The jury that an `evaluation` section describes.

        Args:
            config: The section.
            replies: File of cached replies.
            key: For endpoints.
            device: Of local judges; the CPU while the workers of a search run.

        Raises:
            InputError: Prompts, a local judge's model or an endpoint's address are invalid.
        """
        prompts = load_judge_prompts(config.judge_prompts, needed=SINGLE + (PAIR if config.pairwise else ()))
        return cls(
            [make_judge(name, config, key=key, device=device) for name in config.judges],
            prompts,
            ReplyCache(replies),
            concurrency=config.limits.concurrency,
            seed=config.seed,
            pairwise=config.pairwise,
        )

    @property
    def fingerprint(self) -> str:
        """Identifies the way in which judgements are asked for, independent of the judges."""
        prompts = [[str(name), asdict(prompt)] for name, prompt in self._prompts.items()]
        content = json.dumps([prompts, self._pairwise], default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def names(self) -> list[str]:
        """Names of the judges, as shown with their scores."""
        return [judge.name for judge in self._judges]

    def grade(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answers],
        *,
        baseline: Sequence[Answers] | None = None,
        on_judgement: Callable[[Judgement], None] | None = None,
    ) -> Grading:
        """Have every judge rate the answers and the baseline's, if there is one, which are mostly cached.

        Raises:
            JudgeEndedError: A judge ended before it had judged everything; its replies are kept.
            InputError: An endpoint refuses a request.
        """

        def said_to(asked: Sequence[Inquiry]) -> list[Judgement]:
            return [
                judgement
                for judge in self._judges
                for judgement in judge_all(asked, judge, concurrency=self._concurrency, on_judgement=on_judgement)
            ]

        def with_reasons(scores: list[AnyScore]) -> list[AnyScore]:
            reasons = {judge.name: judge.given_up for judge in self._asked}
            return [
                replace(each, missing=reasons[each.judge]) if each.missing and reasons.get(each.judge) else each
                for each in scores
            ]

        names, seed = self.names, self._seed
        ratings = said_to(inquiries(questions, answers, self._prompts))
        scores = with_reasons([score(ratings, questions, name, seed=seed) for name in names])
        if len(names) > 1:
            scores.append(mean_score(ratings, questions, names, seed=seed))
        if baseline is None:
            return Grading(tuple(ratings), tuple(scores))
        others = said_to(inquiries(questions, baseline, self._prompts))
        differences = with_reasons([difference(ratings, others, questions, name, seed=seed) for name in names])
        matches = pair_inquiries(questions, answers, baseline, self._prompts) if self._pairwise else []
        comparisons = said_to([inquiry for match in matches for inquiry in match.inquiries])
        pairs = with_reasons([pair_score(matches, comparisons, name, seed=seed) for name in names] if matches else [])
        return Grading(tuple(ratings), tuple(scores), tuple(differences), tuple(comparisons), tuple(pairs))

    def stop(self) -> None:
        """Start no new inquiries; `grade` then raises JudgeEndedError when the running ones have ended."""
        self._over.set()

    def close(self) -> None:
        """Close the connections, and so end running inquiries."""
        for judge in self._named:
            judge.close()


class _Stoppable:
    """A judge that can be stopped."""

    def __init__(self, judge: Judge, over: threading.Event) -> None:
        self.name, self.identity = judge.name, judge.identity
        self._judge, self._over = judge, over

    def ask(self, inquiry: Inquiry) -> Judgement:
        """See `Judge.ask`."""
        if self._over.is_set():
            raise JudgeEndedError(f"{self.name} was stopped; the same command judges the rest")
        return self._judge.ask(inquiry)


def _with_interval(name: str, value: float | None, interval: Interval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _metric_name(text: str) -> str:
    """A unique name that MLflow accepts as a part of a metric's.

    MLflow accepts ASCII letters, digits, `_-. :/`, normalized paths only, and at most 250 characters.
    """
    name = re.sub(r"[^\w. :/-]", "_", text, flags=re.ASCII)
    if name == text and posixpath.normpath(f"/{name}") == f"/{name}" and len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.replace('/', '_')[:NAME_LENGTH]}-{digest}"
