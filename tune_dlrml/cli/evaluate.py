"""`tune-dlrml evaluate`: its options, and what it prints."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from tune_dlrml.cli.options import AsJson, StudyUrl, console, print_json
from tune_dlrml.errors import StorageError
from tune_dlrml.system.streams import noise_to, reading_console

NAME_LENGTH = 80
"""Characters of a model's name in the name of a folder."""

Bench = Literal["mt-bench", "alpaca-eval", "frontier"]
MODEL_HELP = "A model reference, a trial such as quickstart:17, openai:<model> or, for the frontier, a whole search."
MAX_NEW_TOKENS: dict[str, int] = {"mt-bench": 1024, "alpaca-eval": 2048, "frontier": 48}


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    bench: Annotated[Bench, typer.Option(help="What the model is asked.")] = "mt-bench",
    judge: Annotated[
        list[str] | None, typer.Option(metavar="JUDGE", help="openai:<model> or local:<model reference>; repeatable.")
    ] = None,
    judge_url: Annotated[str | None, typer.Option(metavar="URL", help="Endpoint of openai:<model> judges.")] = None,
    judge_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the endpoint's key; else OPENAI_API_KEY, if it is set.")
    ] = None,
    judge_max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest reply of openai:<model> judges in tokens, thoughts included.")
    ] = 2048,
    questions: Annotated[
        str, typer.Option(metavar="FILE", help="Questions of MT-Bench in FastChat's format, or a hub data set.")
    ] = "builtin:mt-bench",
    references: Annotated[Path | None, typer.Option(metavar="FILE", help="Right answers in FastChat's format.")] = None,
    judge_prompts: Annotated[
        str, typer.Option(metavar="FILE", help="Judge prompts in FastChat's format.")
    ] = "builtin:mt-bench",
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval: outputs of the baseline, with the instructions.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="AlpacaEval: annotations of MODEL, instead of judging.")
    ] = None,
    side_files: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="AlpacaEval: folder or hub id with df_gamed.csv, instruction_difficulty.csv."
        ),
    ] = None,
    reward: Annotated[
        str, typer.Option(metavar="REWARD", help="Frontier: vader, module:function or a classification model.")
    ] = "vader",
    prompts: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Frontier: pairs whose prompts are completed.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Frontier: completions of each prompt.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first K questions or prompts.")] = None,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What generates the answers of a model loaded here.")
    ] = "transformers",
    model_url: Annotated[str | None, typer.Option(metavar="URL", help="Endpoint of MODEL openai:<model>.")] = None,
    model_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Holds that endpoint's key.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens [1024; AlpacaEval 2048, frontier 48].")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 8,
    max_calls: Annotated[
        int, typer.Option(min=1, help="Requests to one endpoint, the model's or a judge's; repeated ones count.")
    ] = 20_000,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one endpoint, prompts and replies together.")
    ] = 50_000_000,
    deadline_s: Annotated[
        float, typer.Option(min=1, help="Seconds from an endpoint's first request to its last.")
    ] = 604_800,
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds that one request may take.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Of sampled answers and of intervals.")] = 0,
    storage: Annotated[Path, typer.Option(help="Folder of all searches and of what judges have said.")] = Path("runs"),
    study_url: StudyUrl = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For answers and judgements [STORAGE/evaluations/...].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine a model, or a trial of a search: MT-Bench, AlpacaEval, or reward against KL."""
    from tune_dlrml.benches.request import Request, examine
    from tune_dlrml.config import JudgeLimits
    from tune_dlrml.search.result import EVALUATIONS
    from tune_dlrml.views.bench import JudgingProgress, bench_lines

    request = Request(
        model=model,
        bench=bench,
        judges=tuple(judge or ()),
        judge_url=judge_url,
        judge_key_file=judge_key_file,
        judge_max_tokens=judge_max_tokens,
        questions=questions,
        references=references,
        judge_prompts=judge_prompts,
        baseline=baseline,
        annotations=annotations,
        side_files=side_files,
        reward=reward,
        prompts=prompts,
        samples=samples,
        limit=limit,
        engine=engine,
        model_url=model_url,
        model_key_file=model_key_file,
        max_new_tokens=max_new_tokens or MAX_NEW_TOKENS[bench],
        batch_size=batch_size,
        limits=JudgeLimits(timeout_s=timeout_s, deadline_s=deadline_s, max_calls=max_calls, max_tokens=max_tokens),
        seed=seed,
        storage=storage,
        out=out or storage / EVALUATIONS / folder_name(bench, model),
        study_url=study_url,
        environment_key=context.obj,
    )
    request.check()
    reader = console(as_json)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{request.out} must be writable, but {error.strerror}; give another --out") from None
    log = request.out / "evaluate.log"
    reader.print(f"{bench} for {model}: what the libraries say is in {log}", highlight=False, soft_wrap=True)
    try:
        with (
            noise_to(log, reader.file) as stream,
            JudgingProgress(reading_console(stream, terminal=reader.is_terminal)) as view,
        ):
            document = examine(request, view.on_judgement)
    except KeyboardInterrupt:  # typer ends with 130, and without a word
        typer.echo("interrupted; what was answered and judged is kept, and the same command goes on", err=True)
        raise
    if as_json:
        print_json(document)
    else:
        for line in bench_lines(document):
            reader.print(line, highlight=False, soft_wrap=True)
        reader.print(f"answers and judgements: {request.out}", highlight=False, soft_wrap=True)


def folder_name(bench: Bench, model: str) -> str:
    """The folder of what a bench said of a model; another one for each model, whatever letters its name has."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[:NAME_LENGTH]
    return f"{bench}-{name}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
