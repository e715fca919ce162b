"""Judges with their prompts and their memory, and what they say of one model's answers to MT-Bench."""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import InputError, JudgeEndedError
from tune_dlrml.evaluation.endpoint import Endpoint, EndpointSettings
from tune_dlrml.evaluation.judge import EndpointJudge
from tune_dlrml.evaluation.judge_prompts import PAIR, SINGLE, JudgePrompts, load_judge_prompts
from tune_dlrml.evaluation.local_judge import LocalJudge
from tune_dlrml.evaluation.mt_bench import PairScore, Score, inquiries, mean_score, pair_inquiries, pair_score, score
from tune_dlrml.evaluation.records import Answers, Inquiry, Judge, Judgement, Question
from tune_dlrml.evaluation.replies import CachedJudge, ReplyCache, judge_all
from tune_dlrml.models import parse_model_reference

COLUMNS = ("question", "category", "turn", "prompt", "answer", "judge", "rating", "judgement")


@dataclass(frozen=True)
class Grading:
    """What a jury says of one model.

    Attributes:
        judgements: Every rating and every comparison, judge by judge.
        scores: One of each judge and, where there are several, one of their mean.
        pairs: Against the baseline, one of each judge; empty without one.
    """

    judgements: tuple[Judgement, ...]
    scores: tuple[Score, ...]
    pairs: tuple[PairScore, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Numbers for curves and tables, each named by its judge; what is missing is left out."""
        named: dict[str, float | None] = {}
        for score in self.scores:
            prefix = f"mt_bench/{_metric_name(score.judge)}"
            named |= {f"{prefix}/score": score.score, f"{prefix}/unscored": float(score.unscored)}
            if score.interval is not None:
                named |= {f"{prefix}/score_low": score.interval[0], f"{prefix}/score_high": score.interval[1]}
            named |= {f"{prefix}/turn_{turn}": mean for turn, mean in score.turns.items()}
            named |= {f"{prefix}/category/{_metric_name(name)}": mean for name, mean in score.categories.items()}
        for pair in self.pairs:
            named[f"mt_bench/{_metric_name(pair.judge)}/win_rate_adjusted"] = pair.win_rate_adjusted
        return {name: value for name, value in named.items() if value is not None}

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
            for said in self.judgements
            if not isinstance(said.verdict, str)
        ]
        return {"columns": list(COLUMNS), "data": rows}


class Jury:
    """Has judges grade answers; asked again, it asks them only for what they have not said.

    Args:
        judges: Who judges.
        prompts: What they are told.
        replies: What they have said.
        concurrency: Inquiries to one judge at the same time.
        seed: Of the intervals.
    """

    def __init__(
        self, judges: Sequence[Judge], prompts: JudgePrompts, replies: ReplyCache, *, concurrency: int, seed: int
    ) -> None:
        self._over = threading.Event()
        self._judges = [CachedJudge(_Stoppable(judge, self._over), replies) for judge in judges]
        self._prompts, self._concurrency, self._seed = prompts, concurrency, seed

    @classmethod
    def of(cls, config: EvaluationConfig, replies: Path, key: str | None) -> "Jury":
        """The jury that an `evaluation` section describes.

        Args:
            config: The section.
            replies: File that keeps what judges say.
            key: For endpoints.

        Raises:
            InputError: Prompts, a local judge's model or an endpoint's address are at fault.
        """
        prompts = load_judge_prompts(config.judge_prompts, needed=SINGLE + (PAIR if config.pairwise else ()))
        judges = [_judge(name, config, key) for name in config.judges]
        return cls(judges, prompts, ReplyCache(replies), concurrency=config.limits.concurrency, seed=config.seed)

    @property
    def names(self) -> list[str]:
        """Names of the judges, as they stand beside their numbers."""
        return [judge.name for judge in self._judges]

    def grade(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answers],
        *,
        baseline: Sequence[Answers] | None = None,
        on_judgement: Callable[[Judgement], None] | None = None,
    ) -> Grading:
        """Have every judge rate the answers and, with a baseline, compare them with its.

        Raises:
            JudgeEndedError: A judge ended before it had judged everything; what it said is kept.
            InputError: An endpoint refuses what it is asked.
        """
        ratings = inquiries(questions, answers, self._prompts)
        matches = [] if baseline is None else pair_inquiries(questions, answers, baseline, self._prompts)
        asked = [*ratings, *(inquiry for match in matches for inquiry in match.inquiries)]
        said: list[Judgement] = []
        for judge in self._judges:
            said += judge_all(asked, judge, concurrency=self._concurrency, on_judgement=on_judgement)
        scores = [score(said, questions, name, seed=self._seed) for name in self.names]
        if len(self._judges) > 1:
            scores.append(mean_score(said, questions, self.names, seed=self._seed))
        pairs = [pair_score(matches, said, name, seed=self._seed) for name in self.names] if matches else []
        return Grading(tuple(said), tuple(scores), tuple(pairs))

    def stop(self) -> None:
        """Ask nothing any more; `grade` then raises JudgeEndedError."""
        self._over.set()


class _Stoppable:
    """A judge until it is told to stop."""

    def __init__(self, judge: Judge, over: threading.Event) -> None:
        self.name = judge.name
        self._judge, self._over = judge, over

    def ask(self, inquiry: Inquiry) -> Judgement:
        """See `Judge.ask`."""
        if self._over.is_set():
            raise JudgeEndedError(f"{self.name} was stopped; the same command goes on with what is still to be judged")
        return self._judge.ask(inquiry)


def read_key(path: str) -> str:
    """The key of an endpoint from its file.

    Raises:
        InputError: The file cannot be read, or holds no key.
    """
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the key of a judge's endpoint must be readable there, but {error}") from None
    if not key or len(key.split()) > 1:
        raise InputError(f"{path}: one key and nothing else is needed, but got {len(key.split())} words")
    return key


def _judge(name: str, config: EvaluationConfig, key: str | None) -> Judge:
    kind, _, model = name.partition(":")
    if kind == "local":
        return LocalJudge(str(parse_model_reference(model)))
    limits = config.limits
    settings = EndpointSettings(
        model=model,
        url=config.judge_url,
        key=key,
        timeout_s=limits.timeout_s,
        deadline_s=limits.deadline_s,
        concurrency=limits.concurrency,
        max_calls=limits.max_calls,
        max_tokens=limits.max_tokens,
    )
    return EndpointJudge(Endpoint(settings))


def _metric_name(text: str) -> str:
    """A name in the letters that MLflow takes."""
    return re.sub(r"[^\w. :-]", "_", text, flags=re.ASCII)
