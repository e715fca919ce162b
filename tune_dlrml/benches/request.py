"""One `evaluate` command as a value, and the bench that it asks for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_dlrml.benches import alpaca_eval
from tune_dlrml.benches.frontier import Draw, frontier, search_frontier
from tune_dlrml.benches.mt_bench import mt_bench
from tune_dlrml.benches.subject import ENDPOINT, EngineName, Subject, complete_trials, is_search, parse_subject
from tune_dlrml.config import EvaluationConfig, JudgeLimits
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.frontier import Sampling
from tune_dlrml.evaluation.jury import read_key
from tune_dlrml.evaluation.records import Judgement
from tune_dlrml.search.result import SearchPlace


@dataclass(frozen=True)
class Request:
    """What to examine, by what, and where the results go; each field is an option of the command."""

    model: str
    bench: str
    judges: tuple[str, ...]
    judge_url: str | None
    judge_key_file: Path | None
    questions: str
    references: Path | None
    judge_prompts: str
    baseline: Path | None
    annotations: Path | None
    side_files: str | None
    reward: str
    prompts: str | None
    samples: int
    limit: int | None
    engine: EngineName
    model_url: str | None
    model_key_file: Path | None
    max_new_tokens: int
    batch_size: int
    max_calls: int
    seed: int
    storage: Path
    out: Path
    environment_key: str | None = field(default=None, repr=False)

    @property
    def place(self) -> SearchPlace:
        """Where searches and the judges' replies are."""
        return SearchPlace(self.storage)

    @property
    def is_whole_search(self) -> bool:
        """Whether MODEL is a search, all of whose complete trials are meant."""
        return self.bench == "frontier" and is_search(self.model, self.place)

    def check(self) -> None:
        """Tell a mistake before anything is written or loaded.

        Raises:
            InputError: An option, a key's file or the model is at fault.
        """
        if self.bench == "alpaca-eval" and (self.annotations is None) == (self.baseline is None):
            raise InputError(
                "--bench alpaca-eval needs either --annotations FILE, which a judge has made already, or --baseline "
                f"FILE, whose outputs MODEL is compared with, but got {'neither' if self.baseline is None else 'both'}"
            )
        if self.is_whole_search:
            complete_trials(self.model, self.place)
        elif self.annotations is None:
            self.subject()
        if self.bench == "mt-bench" or self.baseline is not None:
            self.evaluation()
            self.judge_key()

    def subject(self) -> Subject:
        """Who is examined.

        Raises:
            InputError: There is no such model, search or trial.
        """
        key = self._key(self.model_key_file, [self.model])
        return parse_subject(self.model, self.place, url=self.model_url, key=key, engine=self.engine)

    def judge_key(self) -> str | None:
        """For the judges' endpoint."""
        return self._key(self.judge_key_file, self.judges)

    def evaluation(self) -> EvaluationConfig:
        """What a search would have as its `evaluation` section.

        Raises:
            InputError: No judge is given.
        """
        if not self.judges:
            raise InputError(
                f"--bench {self.bench} needs a judge: give --judge openai:<model> with --judge-url, or --judge "
                "local:<model reference>"
            )
        return EvaluationConfig(
            questions=self.questions,
            references=None if self.references is None else str(self.references),
            judge_prompts=self.judge_prompts,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
            judges=list(self.judges),
            judge_url=self.judge_url,
            limits=JudgeLimits(max_calls=self.max_calls),
        )

    def _key(self, file: Path | None, models: list[str] | tuple[str, ...]) -> str | None:
        if file is not None:
            return read_key(str(file))
        return self.environment_key if any(model.startswith(ENDPOINT) for model in models) else None


def examine(request: Request, on_judgement: Callable[[Judgement], None]) -> dict[str, Any]:
    """Run the bench of a request that `check` has passed; what it comes to.

    Raises:
        InputError: An option, a file or the model is at fault.
        JudgeEndedError: A judge ended early; what it said is kept, and the same command goes on.
    """
    if request.bench == "frontier":
        return _frontier(request)
    if request.bench == "alpaca-eval":
        return _alpaca_eval(request, on_judgement)
    return mt_bench(
        request.subject(),
        request.evaluation(),
        replies=request.place.replies,
        key=request.judge_key(),
        out=request.out,
        on_judgement=on_judgement,
    )


def _frontier(request: Request) -> dict[str, Any]:
    sampling = Sampling(
        samples=request.samples,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
        batch_size=request.batch_size,
    )
    draw = Draw(request.reward, request.prompts, request.limit, sampling)
    if request.is_whole_search:
        return search_frontier(request.model, request.place, draw, request.out)
    return frontier(request.subject(), draw, request.out)


def _alpaca_eval(request: Request, on_judgement: Callable[[Judgement], None]) -> dict[str, Any]:
    if request.annotations is not None:
        numbers = alpaca_eval.from_annotations(request.annotations, request.model)
    else:
        assert request.baseline is not None
        numbers = alpaca_eval.compared(
            request.subject(),
            request.baseline,
            request.evaluation(),
            replies=request.place.replies,
            key=request.judge_key(),
            out=request.out,
            on_judgement=on_judgement,
        )
    return alpaca_eval.document(request.model, numbers, side_files=request.side_files, seed=request.seed)
