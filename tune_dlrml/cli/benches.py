"""The benches of `tune-dlrml evaluate`: the options of each, and how it is prepared from them.

Every option is defined once, as a field, with its default and its help.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from tune_dlrml.cli.options import DEFAULT_STORAGE, AsJson, Storage, StudyUrl
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.engines.registry import ENGINES, IN_PROCESS
from tune_dlrml.evaluation.judges.registry import JUDGES, is_remote

if TYPE_CHECKING:
    from tune_dlrml.benches.subject import Subject
    from tune_dlrml.config import EvaluationConfig
    from tune_dlrml.evaluation.records import Judgement
    from tune_dlrml.search.result import SearchPlace

Run = Callable[[Callable[["Judgement"], None]], dict[str, Any]]
"""A bench that is ready to run: it reports each judgement to a callback, and returns its document."""
MODEL_ENDPOINT = "openai:"

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A model reference, a trial such as quickstart:17, or openai:<model>."),
]
FrontierModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model reference, a trial such as quickstart:17, or a whole search.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
JUDGE_HELP = f"{' or '.join(kind.form.replace('`', '') for kind in JUDGES.values())}; repeatable."
LOCAL_ENGINES = [name for name, kind in ENGINES.items() if not kind.remote]


def _engine(text: str) -> str:
    if text not in LOCAL_ENGINES:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(LOCAL_ENGINES)}.")
    return text


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of every bench."""

    bench: ClassVar[str]
    """Name of the command."""

    model: Model
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first K questions or prompts.")] = None
    max_new_tokens: MaxNewTokens
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 8
    seed: Annotated[int, typer.Option(min=0, help="Of sampled answers and of intervals.")] = 0
    storage: Storage = DEFAULT_STORAGE
    study_url: StudyUrl = field(default=None, repr=False)
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For answers and judgements [STORAGE/evaluations/...].")
    ] = None
    as_json: AsJson = False

    @property
    def place(self) -> "SearchPlace":
        """Where searches and the judges' replies are."""
        from tune_dlrml.search.result import SearchPlace

        return SearchPlace(self.storage, study=self.study_url)

    def prepare(self, out: Path, environment_key: str | None) -> Run:
        """Check every option, then return the bench; nothing is written or loaded before it runs.

        Args:
            out: For answers and judgements.
            environment_key: Of an endpoint for which no file holds one.

        Raises:
            InputError: An option, a key's file or the model is invalid.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class JudgedOptions(BenchOptions):
    """Options of a bench whose answers are judged."""

    judge: Annotated[list[str] | None, typer.Option(metavar="JUDGE", help=JUDGE_HELP)] = None
    judge_url: Annotated[str | None, typer.Option(metavar="URL", help="Endpoint of openai:<model> judges.")] = None
    judge_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the endpoint's key; else OPENAI_API_KEY, if it is set.")
    ] = None
    judge_max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest reply of openai:<model> judges in tokens, thoughts included.")
    ] = 2048
    engine: Annotated[
        str,
        typer.Option(
            parser=_engine, metavar="|".join(LOCAL_ENGINES), help="What generates the answers of a model loaded here."
        ),
    ] = IN_PROCESS
    model_url: Annotated[str | None, typer.Option(metavar="URL", help="Endpoint of MODEL openai:<model>.")] = None
    model_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Holds that endpoint's key.")] = None
    max_calls: Annotated[
        int, typer.Option(min=1, help="Requests to one endpoint, the model's or a judge's; repeated ones count.")
    ] = 20_000
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one endpoint, prompts and replies together.")] = (
        50_000_000
    )
    deadline_s: Annotated[float, typer.Option(min=1, help="Seconds from an endpoint's first request to its last.")] = (
        604_800
    )
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds that one request may take.")] = 120

    def subject(self, environment_key: str | None) -> "Subject":
        """The model under examination.

        Raises:
            InputError: There is no such model, search or trial.
        """
        from tune_dlrml.benches.subject import Served, parse_subject
        from tune_dlrml.evaluation.endpoint.settings import EndpointSettings

        if not self.model.startswith(MODEL_ENDPOINT):
            return parse_subject(self.model, self.place, self.engine)
        settings = EndpointSettings(
            model=self.model.removeprefix(MODEL_ENDPOINT),
            url=self.model_url,
            key=_key(self.model_key_file, environment_key),
            timeout_s=self.timeout_s,
            deadline_s=self.deadline_s,
            max_calls=self.max_calls,
            max_tokens=self.max_tokens,
        )
        return Served(self.model, settings)

    def judge_key(self, environment_key: str | None) -> str | None:
        """For the judges' endpoint."""
        return _key(self.judge_key_file, environment_key if any(map(is_remote, self.judge or ())) else None)

    def evaluation(self, **more: Any) -> "EvaluationConfig":
        """The options as the `evaluation` section of a search.

        Raises:
            InputError: No judge is given.
        """
        from tune_dlrml.config import EvaluationConfig, JudgeLimits

        if not self.judge:
            raise InputError(
                f"{self.bench} needs a judge: give --judge openai:<model> with --judge-url, or --judge "
                "local:<model reference>"
            )
        limits = JudgeLimits(
            timeout_s=self.timeout_s,
            deadline_s=self.deadline_s,
            max_calls=self.max_calls,
            max_tokens=self.max_tokens,
        )
        return EvaluationConfig(
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
            judges=self.judge,
            judge_url=self.judge_url,
            judge_max_tokens=self.judge_max_tokens,
            limits=limits,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class MtBench(JudgedOptions):
    """MT-Bench: the model answers questions in two turns, and judges rate the answers from 1 to 10."""

    bench = "mt-bench"

    max_new_tokens: MaxNewTokens = 1024
    questions: Annotated[
        str, typer.Option(metavar="FILE", help="Questions in FastChat's format, or a hub data set.")
    ] = "builtin:mt-bench"
    references: Annotated[Path | None, typer.Option(metavar="FILE", help="Right answers in FastChat's format.")] = None
    judge_prompts: Annotated[str, typer.Option(metavar="FILE", help="Judge prompts in FastChat's format.")] = (
        "builtin:mt-bench"
    )

    def prepare(self, out: Path, environment_key: str | None) -> Run:
        """See `BenchOptions.prepare`."""
        from tune_dlrml.benches.mt_bench import mt_bench

        subject, key = self.subject(environment_key), self.judge_key(environment_key)
        references = None if self.references is None else str(self.references)
        config = self.evaluation(questions=self.questions, references=references, judge_prompts=self.judge_prompts)
        replies = self.place.replies
        return lambda on_judgement: mt_bench(
            subject, config, replies=replies, key=key, out=out, on_judgement=on_judgement
        )


@dataclass(frozen=True, kw_only=True)
class AlpacaEval(JudgedOptions):
    """AlpacaEval: the model's answers against a baseline's, compared by a judge now or in a file of annotations."""

    bench = "alpaca-eval"

    max_new_tokens: MaxNewTokens = 2048
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Outputs of the baseline, with the instructions.")
    ] = None
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Annotations of MODEL, instead of judging.")
    ] = None
    side_files: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder or hub id with df_gamed.csv, instruction_difficulty.csv."),
    ] = None

    def prepare(self, out: Path, environment_key: str | None) -> Run:
        """See `BenchOptions.prepare`."""
        from tune_dlrml.benches.alpaca_eval import Numbers, compared, document, from_annotations

        def as_document(numbers: Numbers) -> dict[str, Any]:
            return document(self.model, numbers, side_files=self.side_files, seed=self.seed)

        if (annotations := self.annotations) is not None and self.baseline is None:
            return lambda _: as_document(from_annotations(annotations, self.model))
        if (baseline := self.baseline) is None or annotations is not None:
            raise InputError(
                f"{self.bench} needs either --annotations FILE, made by a judge before, or --baseline FILE, with the "
                f"outputs that MODEL is compared with, but got {'neither' if baseline is None else 'both'}"
            )
        subject, config, key = self.subject(environment_key), self.evaluation(), self.judge_key(environment_key)
        replies = self.place.replies
        return lambda on_judgement: as_document(
            compared(subject, baseline, config, replies=replies, key=key, out=out, on_judgement=on_judgement)
        )


@dataclass(frozen=True, kw_only=True)
class WinRate(JudgedOptions):
    """Win rate: a judge compares the model's answers with the preferred ones of a data set, in both orders."""

    bench = "win-rate"

    max_new_tokens: MaxNewTokens = 128
    judge_prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="builtin:tldr, builtin:dialogue, or judge prompts in FastChat's format."),
    ] = None
    pairs: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Pairs whose preferred answers are the others [held out of the search]."),
    ] = None
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers; 0 takes the most probable tokens.")] = 0.0

    def prepare(self, out: Path, environment_key: str | None) -> Run:
        """See `BenchOptions.prepare`."""
        from tune_dlrml.benches.win_rate import Rivals, win_rate

        if self.judge_prompts is None:
            raise InputError(
                f"{self.bench} needs criteria: give --judge-prompts builtin:tldr, builtin:dialogue, or a file of yours"
            )
        subject, key = self.subject(environment_key), self.judge_key(environment_key)
        config = self.evaluation(judge_prompts=self.judge_prompts)
        rivals, replies = Rivals.of(subject, self.pairs, self.limit), self.place.replies
        return lambda on_judgement: win_rate(
            subject,
            rivals,
            config,
            temperature=self.temperature,
            replies=replies,
            key=key,
            out=out,
            on_judgement=on_judgement,
        )


@dataclass(frozen=True, kw_only=True)
class Frontier(BenchOptions):
    """Reward against KL: the reward of a model's completions, and its divergence from the model before training."""

    bench = "frontier"

    model: FrontierModel
    max_new_tokens: MaxNewTokens = 48
    reward: Annotated[str, typer.Option(metavar="REWARD", help="vader, module:function or a classification model.")] = (
        "vader"
    )
    prompts: Annotated[str | None, typer.Option(metavar="DATASET", help="Pairs whose prompts are completed.")] = None
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 4

    def prepare(self, out: Path, environment_key: str | None) -> Run:
        """See `BenchOptions.prepare`; a search of this name wins over a model."""
        from tune_dlrml.benches.frontier import Draw, frontier, search_frontier
        from tune_dlrml.benches.subject import complete_trials, is_search, parse_subject
        from tune_dlrml.evaluation.frontier.points import Sampling

        sampling = Sampling(
            samples=self.samples, max_new_tokens=self.max_new_tokens, seed=self.seed, batch_size=self.batch_size
        )
        draw, place = Draw(self.reward, self.prompts, self.limit, sampling), self.place
        if is_search(self.model, place):
            complete_trials(self.model, place)
            return lambda _: search_frontier(self.model, place, draw, out)
        if self.model.startswith(MODEL_ENDPOINT):
            raise InputError(
                f"the KL of {self.model} needs its log-probs over the vocabulary, which an endpoint does not return"
            )
        subject = parse_subject(self.model, place)
        return lambda _: frontier(subject, draw, out)


BENCHES: tuple[type[BenchOptions], ...] = (MtBench, AlpacaEval, WinRate, Frontier)


def _key(file: Path | None, environment_key: str | None) -> str | None:
    from tune_dlrml.evaluation.endpoint.settings import read_key

    return environment_key if file is None else read_key(str(file))
