"""`tune-dlrml evaluate`: one command per bench, and its output."""

import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any, Never

import typer
from typer.core import TyperGroup

from tune_dlrml.cli.benches import BENCHES, BenchOptions
from tune_dlrml.cli.options import console, print_json
from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.system.streams import noise_to, reading_console

NAME_LENGTH = 80
"""Characters of a model's name in the name of a folder."""


class _Benches(TyperGroup):
    """Commands of which one must come first; a model or an option in its place is an error with the right form."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *context.help_option_names}:
            _refuse(args, list(self.commands))
        return super().parse_args(context, args)


def _refuse(args: list[str], benches: list[str]) -> Never:
    meant = next((bench for bench in benches if bench in args or f"--bench={bench}" in args), benches[0])
    raise InputError(
        f"the bench must come first after `evaluate`, one of {', '.join(benches)}, but got {args[0]!r}: "
        f"give `tune-dlrml evaluate {meant} MODEL`, followed by the other options"
    )


evaluate_app = typer.Typer(
    cls=_Benches,
    no_args_is_help=True,
    help="Examine a model, or a trial of a search: MT-Bench, AlpacaEval, win rate, or reward against KL.",
)


def _command(options: type[BenchOptions]) -> Callable[..., None]:
    """A command that has the fields of a class as its arguments and options."""

    def command(context: typer.Context, **given: Any) -> None:
        _run(options(**given), context.obj)

    own = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    fields = inspect.signature(options).parameters.values()
    command.__signature__ = inspect.Signature([own, *fields])  # type: ignore[attr-defined]  # typer reads it
    command.__doc__ = options.__doc__
    return command


for _options in BENCHES:
    evaluate_app.command(_options.bench)(_command(_options))


def _run(options: BenchOptions, environment_key: str | None) -> None:
    from tune_dlrml.search.result import EVALUATIONS
    from tune_dlrml.views.bench import JudgingProgress, bench_lines

    out = options.out or options.storage / EVALUATIONS / folder_name(options.bench, options.model)
    run = options.prepare(out, environment_key)
    reader = console(options.as_json)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out} must be writable, but {error.strerror}; give another --out") from None
    log = out / "evaluate.log"
    reader.print(f"{options.bench} for {options.model}: log in {log}", highlight=False, soft_wrap=True)
    try:
        with (
            noise_to(log, reader.file) as stream,
            JudgingProgress(reading_console(stream, terminal=reader.is_terminal)) as view,
        ):
            document = run(view.on_judgement)
    except KeyboardInterrupt:  # typer ends with 130, and without a message
        typer.echo("interrupted; answers and judgements are kept, and the same command resumes", err=True)
        raise
    if options.as_json:
        print_json(document)
        return
    for line in bench_lines(document):
        reader.print(line, highlight=False, soft_wrap=True)
    reader.print(f"answers and judgements: {out}", highlight=False, soft_wrap=True)


def folder_name(bench: str, model: str) -> str:
    """The folder of a bench's results for a model; unique for each model, whatever characters its name has."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[:NAME_LENGTH]
    return f"{bench}-{name}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
