"""`tune-dlrml`: argv and environment to calls. With cli_evaluate.py the only one that reads them and that prints."""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tune_dlrml.cli_evaluate import WITHOUT_TERMINAL, StudyUrl, evaluate
from tune_dlrml.config import SearchConfig, load_config
from tune_dlrml.errors import InputError, TuneDlrmlError
from tune_dlrml.streams import noise_to

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Search the preference loss that trains a language model best, and learn why.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
losses_app = typer.Typer(help="The preference losses that a search can explore.", invoke_without_command=True)
app.add_typer(losses_app, name="losses")
app.command()(evaluate)

SpaceFile = Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="Search-space file.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the search, instead of the file's.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a dotted key, such as search.num_trials=8.")
]
Storage = Annotated[Path, typer.Option("--storage", help="Folder of all searches.")]
Trials = Annotated[int | None, typer.Option("--num-trials", help="Number of trials, instead of the file's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Measure = Annotated[bool, typer.Option("--measure", help="Time a worker here and say what the search will take.")]
MeasureSteps = Annotated[int, typer.Option(min=2, help="Optimizer steps to time; the first is not counted.")]
DEFAULT_STORAGE = Path("runs")
BILL_KEYS = """
With --measure the JSON document has a `bill`, null if nothing was measured:

\b
trials, full_steps, rungs        of the search
optimizer_steps, evaluations,    of all trials, each {mean, low, high}: the
checkpoints, training_s,         middle 90 % of simulated searches
evaluations_s, checkpoints_s,
complete_trials, trained_tokens
most_optimizer_steps             if no trial is stopped early
reference_tokens, reference_s    of the reference pass, once a storage folder
wall_s, cpu_hours, gpu_hours     of the search, each {mean, low, high}
most_wall_s                      if no trial is stopped early
memory_bytes, gpu_memory_bytes   peak of all workers at once
disk_bytes                       of checkpoints, at most
step_s                           {median, low, high} of what was timed
measured                         what one worker took: device, threads,
                                 load_s, reference_s_per_token,
                                 held_out_reference_tokens,
                                 reference_tokens_per_pair, train_pairs,
                                 step_s, tokens_per_step, evaluation_s,
                                 checkpoint_s, trial_s (beside all these),
                                 checkpoint_bytes, memory_bytes,
                                 gpu_memory_bytes, longest_share
left_out                         what is not in it, a sentence each
"""
TAKEN_KEYS = """
The JSON document has `taken`:

\b
trial_s                          time in which worker groups had trials, summed
cpu_hours, gpu_hours             of all workers in that time
optimizer_steps, trained_tokens  of all trials
shares                           of trial_s: training, evaluation, saving,
                                 waiting (for answers to reports), answering
                                 (questions), starting (until the first
                                 report), other
reference_tokens,                run through the reference, and not run, since
reference_tokens_saved           their log-probs were known; null if no report
                                 says
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
    """Run a search, or let the one of that name go on."""
    config = _config(space, name, set_, num_trials)
    from tune_dlrml.search.preparation import prepare
    from tune_dlrml.search.result import SearchPlace

    place, config = SearchPlace(storage, os.environ.get("RAY_ADDRESS"), study_url).of(config)
    try:
        prepared = prepare(config, place, os.environ.get("OPENAI_API_KEY"))
    except InputError as error:
        raise InputError(f"{space}: {error}") from None
    from tune_dlrml.search.driver import run_search
    from tune_dlrml.search.taken import read_taken
    from tune_dlrml.terminal import ProgressView, duration, taken_line, trials_table

    out = _console(as_json)
    with _log_of(place.folder(config.name), out) as quiet, ProgressView(quiet) as view:
        for note in prepared.notes:
            view.on_notice(note)
        result = run_search(prepared, view)
    taken = read_taken(result, place)
    if as_json:
        _print_json(_search_document(result, taken) | {"interrupted": result.interrupted})
    else:
        out.print(trials_table(result.rows, result.metrics, result.best))
        out.print(f"{_ends(result.rows)} in {duration(result.seconds)}", highlight=False)
        out.print(taken_line(taken), highlight=False, soft_wrap=True)
        _print_best(out, result)
        out.print(f"compare the trials: [bold]{_mlflow_command(result.mlflow_uri)}[/]", highlight=False, soft_wrap=True)
    _exit_as(result)


@app.command(epilog=BILL_KEYS)
def doctor(
    space: SpaceFile,
    set_: Settings = None,
    study_url: StudyUrl = None,
    measure: Measure = False,
    measure_steps: MeasureSteps = 4,
    as_json: AsJson = False,
) -> None:
    """Check everything that can be checked before a process starts.

    With --measure, and if no check finds an error, one worker of the search is timed on this machine, in this process,
    with the DPO baseline, and what the whole search will take is reckoned from it.
    """
    config = _config(space, None, set_, None)
    from tune_dlrml.search.checks import Finding

    out, found = _console(as_json), []
    for finding in itertools.chain([Finding("config", "ok", str(space))], _findings(config, study_url)):
        found.append(finding)
        _print_finding(out, finding)
    bill = None
    if measure and all(finding.level != "error" for finding in found):
        try:
            bill = _measure(out, config, study_url, measure_steps)
        except InputError as error:
            found.append(Finding("measure", "error", str(error)))
            _print_finding(out, found[-1])
    elif measure:
        out.print("nothing was measured: the errors come first", highlight=False)
    if as_json:
        findings = {"name": config.name, "findings": [finding.__dict__ for finding in found]}
        _print_json(findings | ({"bill": bill} if measure else {}))
    raise typer.Exit(InputError.exit_code if any(finding.level == "error" for finding in found) else 0)


def _print_finding(out: Console, finding: Any) -> None:
    style = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
    text = f"[{style}]{finding.level:>7}[/]  {finding.subject}: {escape(finding.text)}"
    out.print(text, highlight=False, soft_wrap=True)


def _measure(out: Console, config: SearchConfig, study_url: str | None, steps: int) -> dict[str, Any]:
    """The bill of a search as JSON, shown as well."""
    from tune_dlrml.search.measure import measure_search, notes
    from tune_dlrml.search.result import SearchPlace
    from tune_dlrml.terminal import bill_lines, bill_table

    place, config = SearchPlace(DEFAULT_STORAGE, os.environ.get("RAY_ADDRESS"), study_url).of(config)
    out.print(f"training {steps} steps of the baseline", highlight=False)
    bill = measure_search(config, place, steps=steps)
    left_out = notes(bill, config)
    out.print(bill_table(bill))
    for line in [*bill_lines(bill), *left_out]:
        out.print(escape(line), highlight=False, soft_wrap=True)
    return bill.as_json() | {"left_out": left_out}


def _findings(config: SearchConfig, study_url: str | None) -> Iterator[Any]:
    from tune_dlrml.search.checks import examine
    from tune_dlrml.search.cluster import examine_cluster
    from tune_dlrml.search.database import examine_study
    from tune_dlrml.search.exposure import examine_addresses, examine_mlflow, examine_token_file, own_addresses
    from tune_dlrml.search.judges import examine_judges
    from tune_dlrml.search.result import SearchPlace

    ray_address = os.environ.get("RAY_ADDRESS")
    yield from examine_addresses(
        {"search.study_url": config.search.study_url, "tracking.mlflow": config.tracking.mlflow}
    )
    place, config = SearchPlace(DEFAULT_STORAGE, ray_address, study_url).of(config)
    yield from examine(config)
    yield from examine_judges(config.evaluation, os.environ.get("OPENAI_API_KEY"))
    yield from examine_cluster(config.resources, ray_address, sqlite=place.study is None)
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    mlflow = None if place.mlflow is None else examine_mlflow(place.mlflow, own_addresses())
    yield from filter(None, (examine_study(place.study), examine_token_file(token), mlflow))


@app.command(epilog=TAKEN_KEYS)
def status(
    name: Annotated[str, typer.Argument(help="Name of the search.")],
    storage: Storage = DEFAULT_STORAGE,
    study_url: StudyUrl = None,
    as_json: AsJson = False,
) -> None:
    """Say where a search stands and what it has taken, from its study and event logs alone; it may be running."""
    from tune_dlrml.search.result import SearchPlace, read_search
    from tune_dlrml.search.taken import read_taken
    from tune_dlrml.terminal import taken_line, trials_table

    place = SearchPlace(storage, study=study_url)
    result = read_search(name, place)
    taken = read_taken(result, place)
    if as_json:
        _print_json(_search_document(result, taken))
        return
    out = _console(False)
    out.print(trials_table(result.rows, result.metrics, result.best))
    out.print(f"search {name}: {_ends(result.rows)}", highlight=False)
    out.print(taken_line(taken), highlight=False, soft_wrap=True)
    _print_best(out, result)
    out.print(f"compare the trials: [bold]{_mlflow_command(result.mlflow_uri)}[/]", highlight=False, soft_wrap=True)


@losses_app.callback()
def losses(context: typer.Context, as_json: AsJson = False) -> None:
    """List the losses, their fields and where they come from."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from tune_dlrml.config.losses import described

    documents = described()
    if as_json:
        _print_json(documents)
        return
    table = Table("name", "fields (default)", "what it is", header_style="bold")
    for document in documents:
        fields = ", ".join(f"{key} ({value})" for key, value in document["fields"].items())
        table.add_row(document["name"], fields, document["description"])
    _console(False).print(table)


def main() -> None:
    """Entry point: exit 2 for the input's faults, 3 for a search without success, 130 for an interrupted one."""
    # Decided when mlflow is imported, here and in all processes that are started from here.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    signal.signal(signal.SIGTERM, _end_politely)
    try:
        app(obj=os.environ.get("OPENAI_API_KEY"))
    except KeyboardInterrupt:
        print("interrupted at once; the same command goes on with it", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except TuneDlrmlError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _end_politely(*_: object) -> None:
    """A scheduler's polite end is the same as Ctrl-C: finish what is under way, keep everything.

    Raises:
        KeyboardInterrupt: A shell has this process ignore Ctrl-C, as one does that runs it in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _config(space: Path, name: str | None, set_: list[str] | None, num_trials: int | None) -> SearchConfig:
    overrides = [*(set_ or []), *([] if num_trials is None else [f"search.num_trials={num_trials}"])]
    return load_config(space, overrides, **({} if name is None else {"name": name}))


@contextmanager
def _log_of(folder: Path, out: Console) -> Iterator[Console]:
    """The search's log file, told of; see `noise_to`."""
    from tune_dlrml.search.database import faults_of_storage

    log = folder / "search.log"
    with faults_of_storage(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        log.touch()
    out.print(f"search {folder.name}: what the libraries say is in {log}", highlight=False)
    with noise_to(log, out.file) as stream:
        yield Console(file=stream, width=out.width, force_terminal=out.is_terminal)


def _console(as_json: bool) -> Console:
    """Where people read: stdout, or stderr while stdout is kept for one JSON document."""
    stream = sys.stderr if as_json else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WITHOUT_TERMINAL)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _search_document(result: Any, taken: Any) -> dict[str, Any]:
    return {
        "name": result.name,
        "best": result.best,
        "mlflow": result.mlflow_uri,
        "taken": taken.as_json(),
        "trials": [
            {
                "number": row.number,
                "state": str(row.state),
                "stop_reason": row.stop_reason,
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
    from tune_dlrml.terminal import judged_table, parameters

    if result.judged:
        out.print(judged_table(result.judged))

    best = next((row for row in result.rows if row.number == result.best), None)
    if best is None or best.spec is None:
        out.print("no trial is complete, so there is no best one")
        return
    metrics = result.metrics.get(best.number, {})
    error = metrics.get("eval_accuracy_se", 0.0)
    out.print(
        f"best: trial {best.number} ({best.spec.branch}: {parameters(best.spec)}), {best.value:.3f} with a standard "
        f"error of {error:.3f}; trials closer than about two of them are not told apart",
        highlight=False,
        soft_wrap=True,
    )


def _mlflow_command(uri: str) -> str:
    if "://" in uri and not uri.startswith("sqlite"):
        return f"open {uri}"
    beside = Path(sys.executable).with_name("mlflow")
    program = "mlflow" if shutil.which("mlflow") or not beside.exists() else str(beside)
    return f"{program} ui --backend-store-uri {uri}"


def _exit_as(result: Any) -> None:
    if result.interrupted:
        print("interrupted; the same command goes on with it", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if result.same_failures:
        print(result.same_failures, file=sys.stderr)
    if result.unjudged is not None:
        print(f"not everything is judged: {result.unjudged}", file=sys.stderr)
        raise typer.Exit(result.unjudged.exit_code)
    if result.untracked:
        print(f"MLflow did not take everything; {result.untracked} pieces are left in the event logs", file=sys.stderr)
    if result.best is None or result.same_failures:
        raise typer.Exit(3)
