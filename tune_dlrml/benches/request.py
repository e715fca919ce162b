"""One `evaluate` command as a value, and the bench that it asks for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_dlrml.benches import alpaca_eval
from tune_dlrml.benches.frontier import Draw, frontier, search_frontier
from tune_dlrml.benches.mt_bench import mt_bench
from tune_dlrml.benches.subject import (
    ENDPOINT,
    Served,
    Subject,
    complete_trials,
    is_search,
    parse_subject,
)
from tune_dlrml.config import EvaluationConfig, JudgeLimits
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings, read_key
from tune_dlrml.evaluation.frontier.points import Sampling
from tune_dlrml.evaluation.judges.registry import is_remote
from tune_dlrml.evaluation.records import Judgement
from tune_dlrml.search.result import SearchPlace


@dataclass(frozen=True)
class Request:
    """What to examine, by what, and where the results go; each field is an option of the command.

    `limits` hold for the endpoint of each judge and for the one of MODEL.
    """

    model: str
    bench: str
    judges: tuple[str, ...]
    judge_url: str | None
    judge_key_file: Path | None
    judge_max_tokens: int
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
    engine: str
    model_url: str | None
    model_key_file: Path | None
    max_new_tokens: int
    batch_size: int
    limits: JudgeLimits
    seed: int
    storage: Path
    out: Path
    study_url: str | None = field(default=None, repr=False)
    environment_key: str | None = field(default=None, repr=False)

    @property
    def place(self) -> SearchPlace:
        """Where searches and the judges' replies are."""
        return SearchPlace(self.storage, study=self.study_url)

    @property
    def is_whole_search(self) -> bool:
        """Whether all complete trials of a search are meant: for the frontier, its name wins over a model's."""
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
        if self.bench == "frontier":
            self.draw()
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
        if not self.model.startswith(ENDPOINT):
            return parse_subject(self.model, self.place, self.engine)
        settings = EndpointSettings(
            model=self.model.removeprefix(ENDPOINT),
            url=self.model_url,
            key=self._key(self.model_key_file, needed=True),
            timeout_s=self.limits.timeout_s,
            deadline_s=self.limits.deadline_s,
            max_calls=self.limits.max_calls,
            max_tokens=self.limits.max_tokens,
        )
        return Served(self.model, settings)

    def draw(self) -> Draw:
        """What the frontier's completions are.

        Raises:
            InputError: A number is out of range.
        """
        sampling = Sampling(
            samples=self.samples, max_new_tokens=self.max_new_tokens, seed=self.seed, batch_size=self.batch_size
        )
        return Draw(self.reward, self.prompts, self.limit, sampling)

    def judge_key(self) -> str | None:
        """For the judges' endpoint."""
        return self._key(self.judge_key_file, needed=any(map(is_remote, self.judges)))

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
            judge_max_tokens=self.judge_max_tokens,
            limits=self.limits,
        )

    def _key(self, file: Path | None, *, needed: bool) -> str | None:
        if file is not None:
            return read_key(str(file))
        return self.environment_key if needed else None


def examine(request: Request, on_judgement: Callable[[Judgement], None]) -> dict[str, Any]:
    """Run the bench of a request that `check` has passed; what it comes to.

    Raises:
        InputError: An option, a file or the model is at fault.
        JudgeEndedError: A judge, or the model's endpoint, ended early; what was said is kept, and the same command
            goes on.
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
    if request.is_whole_search:
        return search_frontier(request.model, request.place, request.draw(), request.out)
    return frontier(request.subject(), request.draw(), request.out)


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
