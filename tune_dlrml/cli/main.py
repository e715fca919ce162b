"""`tune-dlrml`: turns argv and environment into calls. Only the files of `cli/` read them, and print."""

import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.markup import escape

from tune_dlrml.cli.doctor import COST_KEYS, doctor
from tune_dlrml.cli.evaluate import evaluate_app
from tune_dlrml.cli.export import export
from tune_dlrml.cli.losses import losses_app
from tune_dlrml.cli.options import (
    DEFAULT_STORAGE,
    AsJson,
    Settings,
    SpaceFile,
    Storage,
    StudyUrl,
    console,
    print_json,
)
from tune_dlrml.cli.report import report
from tune_dlrml.cli.spaces import schema, spaces
from tune_dlrml.cluster.environment import reach_directly
from tune_dlrml.config import load_config
from tune_dlrml.errors import InputError, TuneDlrmlError
from tune_dlrml.system.imports import importing
from tune_dlrml.system.streams import noise_to, reading_console

_log = logging.getLogger(__name__)

INTERRUPTED = 130
FAILED = 3
"""Exit code of a search that ended without one complete trial, or because trials kept failing in the same way."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Search the preference loss that trains a language model best, and learn why.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(losses_app, name="losses")
app.add_typer(evaluate_app, name="evaluate")
app.command(epilog=COST_KEYS)(doctor)
app.command()(export)
app.command()(report)
app.command()(spaces)
app.command()(schema)

Name = Annotated[str | None, typer.Option("--name", help="Name of the search, instead of the file's.")]
Trials = Annotated[int | None, typer.Option("--num-trials", help="Number of trials, instead of the file's.")]
USAGE_KEYS = """
The JSON document has `usage`:

\b
trial_s                          time in which worker groups had trials, summed
cpu_hours, gpu_hours             of all workers in that time
optimizer_steps, trained_tokens  of all trials
shares                           of trial_s: training, evaluation, saving,
                                 waiting (for answers to reports), answering
                                 (questions), starting (until the first
                                 report), other
reference_tokens,                computed by the reference, and read from its
reference_tokens_saved           cache instead; null if no report has them

With --timings it has `timings`, parts of the time from the newest run of the
command to the end of its first optimizer step, each {part, begin_s, seconds}.
"""


@app.command()
def search(
    space: SpaceFile,
    name: Name = None,
    set_: Settings = None,
    storage: Storage = DEFAULT_STORAGE,
    num_trials: Trials = None,
    study_url: StudyUrl = None,
    as_json: AsJson = False,
) -> None:
    """Run a search, or resume the one of that name."""
    trials = [] if num_trials is None else [f"search.num_trials={num_trials}"]
    config = load_config(space, [*(set_ or []), *trials], **({} if name is None else {"name": name}))
    with importing():
        from tune_dlrml.search.preparation import prepare
        from tune_dlrml.search.result import SearchPlace

        place, config = SearchPlace(storage, os.environ.get("RAY_ADDRESS"), study_url).of(config)
        try:
            prepared = prepare(config, place, os.environ.get("OPENAI_API_KEY"))  # imports libraries as it needs them
        except InputError as error:
            raise InputError(f"{space}: {error}") from None
        from tune_dlrml.search.confirm.verdicts import read_confirmation
        from tune_dlrml.search.discovery_progress import read_progress
        from tune_dlrml.search.driver import run_search
        from tune_dlrml.search.usage import read_usage
        from tune_dlrml.views.search import ProgressView, duration, trials_table, usage_line

    out = console(as_json)
    with (
        _resumable(),
        _log_of(place.folder(config.name), out) as quiet,
        ProgressView(quiet, config.search.metric) as view,
    ):
        for note in prepared.notes:
            _log.warning("%s", note)  # the log keeps what the terminal loses when it closes
            view.on_notice(note)
        result = run_search(replace(prepared, began_s=psutil.Process().create_time()), view)
    usage, confirmation = read_usage(result, place), read_confirmation(result.name, place)
    found = read_progress(result, place)
    if as_json:
        ended = {"interrupted": result.interrupted, "out_of_time": result.out_of_time}
        print_json(_search_document(result, usage, confirmation, found) | ended)
    else:
        out.print(trials_table(result.rows, result.metrics, result.metric, result.best))
        out.print(f"{_ends(result.rows)} in {duration(result.seconds)}", highlight=False)
        out.print(usage_line(usage), highlight=False, soft_wrap=True)
        _print_discovery(out, found)
        _print_best(out, result)
        _print_confirmation(out, confirmation)
        out.print(
            f"compare the trials: [bold]{escape(_mlflow_command(result.mlflow_uri))}[/]",
            highlight=False,
            soft_wrap=True,
        )
    _exit_as(result)


@app.command(epilog=USAGE_KEYS)
def status(
    name: Annotated[str, typer.Argument(help="Name of the search.")],
    storage: Storage = DEFAULT_STORAGE,
    study_url: StudyUrl = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Show only the trials on the Pareto front of the metric against KL.")
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Show where the time before the first optimizer step went.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the trials and the resource usage of a search, from its study and event logs alone; it may be running."""
    from tune_dlrml.search.confirm.verdicts import read_confirmation
    from tune_dlrml.search.discovery_progress import read_progress
    from tune_dlrml.search.result import SearchPlace, read_search
    from tune_dlrml.search.timings import read_timings
    from tune_dlrml.search.usage import read_usage
    from tune_dlrml.views.search import timings_table, trials_table, usage_line

    place = SearchPlace(storage, study=study_url)
    result = read_search(name, place)
    usage, confirmation = read_usage(result, place), read_confirmation(name, place)
    found = read_progress(result, place)
    parts = read_timings(place.folder(name)) if timings else []
    if as_json:
        shown = {"timings": [part._asdict() for part in parts]} if timings else {}
        print_json(_search_document(result, usage, confirmation, found) | shown)
        return
    out = console(False)
    if timings:
        out.print(timings_table(parts))
    rows = [row for row in result.rows if row.number in result.front] if pareto else result.rows
    out.print(trials_table(rows, result.metrics, result.metric, result.best))
    out.print(f"search {name}: {_ends(result.rows)}", highlight=False)
    out.print(usage_line(usage), highlight=False, soft_wrap=True)
    _print_discovery(out, found)
    _print_best(out, result)
    _print_confirmation(out, confirmation)
    out.print(
        f"compare the trials: [bold]{escape(_mlflow_command(result.mlflow_uri))}[/]", highlight=False, soft_wrap=True
    )


def main() -> None:
    """Entry point: exit 2 for invalid input, 3 for a search without success, 130 for an interrupted one."""
    # Decided when mlflow is imported, here and in all processes that are started from here.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    reach_directly()
    signal.signal(signal.SIGTERM, _end_politely)
    try:
        app(obj=os.environ.get("OPENAI_API_KEY"))
    except TuneDlrmlError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _end_politely(*_: object) -> None:
    """Treat SIGTERM like Ctrl-C: finish the running trials, keep everything.

    Raises:
        KeyboardInterrupt: This process ignores Ctrl-C, as one does that a shell runs in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # Typer ends with 130, and without a message
        typer.echo("interrupted at once; the same command resumes the search", err=True)
        raise


@contextmanager
def _log_of(folder: Path, out: Console) -> Iterator[Console]:
    """Send the libraries' output to the search's log file, and print its path; see `noise_to`."""
    from tune_dlrml.study.database import faults_of_storage

    log = folder / "search.log"
    with faults_of_storage(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        log.touch()
    out.print(f"search {folder.name}: log in {log}", highlight=False)
    with noise_to(log, out.file) as stream:
        yield reading_console(stream, width=out.width, terminal=out.is_terminal)


def _print_confirmation(out: Console, confirmation: Any) -> None:
    for sentence in () if confirmation is None else confirmation.sentences():
        out.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _print_discovery(out: Console, found: Any) -> None:
    if found is not None:
        out.print(f"discovery: {found.sentence()}", highlight=False, markup=False, soft_wrap=True)


def _search_document(result: Any, usage: Any, confirmation: Any, found: Any) -> dict[str, Any]:
    return {
        "name": result.name,
        "best": result.best,
        "best_infeasible": result.best_infeasible,
        "front": list(result.front),
        "mlflow": result.mlflow_uri,
        "spent_s": result.spent_s,
        "usage": usage.as_json(),
        "confirmed": None if confirmation is None else confirmation.as_json(),
        "discovery": None if found is None else found.as_json(),
        "shared_prompt": next(
            (bool(of["shared_prompt"]) for of in result.metrics.values() if "shared_prompt" in of), None
        ),
        "trials": [
            {
                "number": row.number,
                "state": str(row.state),
                "stop_reason": row.stop_reason,
                "feasible": row.feasible,
                "params": {} if row.spec is None else row.spec.settings(),
                "value": row.value,
                "steps": row.steps,
                "mlflow_run_id": result.runs[row.number],
                "branch": None if row.spec is None else row.spec.branch,
                "attempt": row.attempt,
                "metrics": dict(result.metrics.get(row.number, {})),
                "judged": result.judged.get(row.number),
                "seconds": dict(row.attrs.get("seconds", {})),
            }
            for row in result.rows
        ],
    }


def _ends(rows: Any) -> str:
    states = [str(row.state) for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trial yet"


def _print_best(out: Console, result: Any) -> None:
    from tune_dlrml.metrics import METRICS
    from tune_dlrml.views.search import judged_table, parameters

    if result.judged:
        out.print(judged_table(result.judged))

    infeasible = next((row for row in result.rows if row.number == result.best_infeasible), None)
    if infeasible is not None and infeasible.spec is not None:
        out.print(
            f"without search.constraints the best would be trial {infeasible.number} ({infeasible.spec.branch}: "
            f"{parameters(infeasible.spec)}), {infeasible.value:.3f}; {infeasible.stop_reason}",
            highlight=False,
            soft_wrap=True,
        )
    best = next((row for row in result.rows if row.number == result.best), None)
    if best is None or best.spec is None:
        missing = "complete" if infeasible is None else "feasible"
        out.print(f"no trial is {missing}, so there is no best trial")
        return
    metrics = result.metrics.get(best.number, {})
    error = metrics.get(METRICS[result.metric].error, 0.0)
    out.print(
        f"best: trial {best.number} ({best.spec.branch}: {parameters(best.spec)}), {best.value:.3f} with a standard "
        f"error of {error:.3f}; differences below about two standard errors are not significant",
        highlight=False,
        soft_wrap=True,
    )


def _mlflow_command(uri: str) -> str:
    if "://" in uri and not uri.startswith("sqlite"):
        return f"open {uri}"
    beside = Path(sys.executable).with_name("mlflow")
    program = "mlflow" if shutil.which("mlflow") or not beside.exists() else str(beside)
    return shlex.join([program, "ui", "--backend-store-uri", uri])


def _exit_as(result: Any) -> None:
    if result.interrupted:
        print("interrupted; the same command resumes the search", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if result.same_failures:
        print(result.same_failures, file=sys.stderr)
    if result.unjudged is not None:
        print(f"the judging is incomplete: {result.unjudged}", file=sys.stderr)
        raise typer.Exit(result.unjudged.exit_code)
    if result.untracked:
        cause = f" ({result.untracked_cause})" if result.untracked_cause else ""
        left = f"{result.untracked} events were not logged and remain in the event logs"
        print(f"MLflow is incomplete: {left}{cause}", file=sys.stderr)
    if result.best is None or result.same_failures:
        raise typer.Exit(FAILED)
