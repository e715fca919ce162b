"""`tune-dlrml doctor`: its options, and what it prints."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tune_dlrml.cli.options import DEFAULT_STORAGE, AsJson, Settings, SpaceFile, StudyUrl, console, print_json
from tune_dlrml.config import SearchConfig, load_config
from tune_dlrml.errors import InputError

Measure = Annotated[bool, typer.Option("--measure", help="Time a worker here and estimate the cost of the search.")]
MeasureSteps = Annotated[int, typer.Option(min=2, help="Optimizer steps to time; the first is not counted.")]
MeasureSeeds = Annotated[int, typer.Option(min=2, help="Seeds of the short trials that the power comes from.")]
BAR = 12
"""Characters of a full bar."""
COST_KEYS = """
The JSON document has `findings` and, for each loss that could be examined, in
`loss_boxes` the shares of its box that start uphill, have a trap or an unbounded
slope, overflow as published, or are not finite as the search computes them.
`memory`, null where it could not be computed, has in bytes what a rank holds:

\b
weights, trained                 numbers of the model, and those trained
batch, assumed                   the micro-batch in tokens, and what had to
                                 be assumed, a sentence each
rank                             ranks, sharded, checkpointing, device
own                              resting, peak, peak_moment; by piece
                                 at_rest, moments of a step, and host, which
                                 lies in main memory
placements                       of each kind and number of GPUs: gpu, ranks,
                                 sharded, checkpointing, resting, peak, fits,
                                 gpu_hours (all trials; of 1,000 pairs where
                                 `pairs` is null)
pairs                            that all trials train on together

With --measure the JSON document has a `cost`, null if nothing was measured:

\b
trials, full_steps, rungs        of the search
optimizer_steps, evaluations,    of all trials, each {mean, low, high}: the
checkpoints, training_s,         middle 90 % of simulated searches
evaluations_s, checkpoints_s,
complete_trials, trained_tokens
most_optimizer_steps             if no trial is pruned
reference_tokens, reference_s    of the reference pass, once per storage folder
wall_s, cpu_hours, gpu_hours     of the search, each {mean, low, high}
most_wall_s                      if no trial is pruned
memory_bytes, gpu_memory_bytes   peak of all workers at once
disk_bytes                       of checkpoints, at most
step_s                           {median, low, high} of the timed steps
measured                         usage of one worker: device, threads,
                                 load_s, reference_s_per_token,
                                 held_out_reference_tokens,
                                 reference_tokens_per_pair, train_pairs,
                                 step_s, tokens_per_step, evaluation_s,
                                 checkpoint_s, trial_s (all other time),
                                 checkpoint_bytes, memory_bytes,
                                 gpu_memory_bytes, longest_share,
                                 matrix_rates (FLOP/s by dtype)
confirmation                     upper estimate of search.confirm, not included
                                 in the above; null without it
confirmation_races               whether that is a race, which mostly takes less
left_out                         what is not included, a sentence each

and `power`, null where it was not found:

\b
metric, pairs                    the objective, and the held-out pairs
trial, two_trials, confirmation  the smallest differences that are shown with a
                                 power of 80 %; the last is null without
                                 search.confirm
seeds, confirm_pairs             of the confirmation
share_of_pairs                   of the last one's variance
pairs_to_halve, seeds_to_halve   null where no number is enough
"""


def doctor(
    space: SpaceFile,
    set_: Settings = None,
    study_url: StudyUrl = None,
    measure: Measure = False,
    measure_steps: MeasureSteps = 4,
    measure_seeds: MeasureSeeds = 2,
    as_json: AsJson = False,
) -> None:
    """Check everything that can be checked before a process starts.

    With --measure, and if no check finds an error, one worker of the search is timed on this machine, in this process,
    with the DPO baseline, and the cost of the whole search is estimated from it. A few more trials as short, of that
    baseline and another setting under a few seeds, give the differences that the search can tell apart.
    """
    config = load_config(space, set_ or [])
    from tune_dlrml.doctor.finding import Finding

    out, found = console(as_json), []
    for finding in itertools.chain([Finding("config", "ok", str(space))], _findings(config, study_url)):
        found.append(finding)
        _print_finding(out, finding)
    _print_loss_boxes(out, [finding.loss_box for finding in found if finding.loss_box is not None])
    memory = next((finding.memory for finding in found if finding.memory is not None), None)
    if memory is not None:
        _print_memory(out, memory)
    cost: dict[str, Any] = {"cost": None, "power": None}
    if measure and all(finding.level != "error" for finding in found):
        try:
            cost = _measure(out, config, study_url, measure_steps, measure_seeds)
        except InputError as error:
            found.append(Finding("measure", "error", str(error)))
            _print_finding(out, found[-1])
    elif measure:
        out.print("nothing was measured: resolve the errors first", highlight=False)
    if as_json:
        findings = {"name": config.name, "findings": [finding.as_json() for finding in found]}
        loss_boxes = {"loss_boxes": [finding.loss_box.as_json() for finding in found if finding.loss_box is not None]}
        needed = {"memory": None if memory is None else memory.as_json()}
        print_json(findings | loss_boxes | needed | (cost if measure else {}))
    raise typer.Exit(InputError.exit_code if any(finding.level == "error" for finding in found) else 0)


def _print_finding(out: Console, finding: Any) -> None:
    style = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
    text = f"[{style}]{finding.level:>7}[/]  {finding.subject}: {escape(finding.text)}"
    out.print(text, highlight=False, soft_wrap=True)


def _print_loss_boxes(out: Console, loss_boxes: list[Any]) -> None:
    """The search box of each loss as bars: the shares of it with an unsuitable shape."""
    from rich.bar import Bar
    from rich.table import Table

    from tune_dlrml.losses.faults import percent

    if not loss_boxes:
        return
    shares = {"starts uphill": "uphill", "has a trap": "trapped", "unbounded slope": "unbounded"}
    last = f"overflows as published, +-{loss_boxes[0].limit:g} nats"
    table = Table("share of the box", *shares, last, header_style="bold", box=None, padding=(0, 2, 0, 0))
    for loss_box in loss_boxes:
        cells = [Table.grid(padding=(0, 1, 0, 0)) for _ in (*shares, last)]
        for cell, key in zip(cells, (*shares.values(), "overflowing"), strict=True):
            share = getattr(loss_box, key)
            cell.add_column(width=BAR)
            cell.add_row(Bar(1.0, 0, share, width=BAR, color="yellow", bgcolor="default"), percent(share))
        table.add_row(loss_box.branch, *cells)
    out.print()
    out.print(table)


def _print_memory(out: Console, memory: Any) -> None:
    from tune_dlrml.views.memory import memory_lines, memory_table

    if memory.placements:
        out.print()
        out.print(memory_table(memory))
    for line in memory_lines(memory):
        out.print(escape(line), highlight=False, soft_wrap=True)


def _measure(out: Console, config: SearchConfig, study_url: str | None, steps: int, seeds: int) -> dict[str, Any]:
    """Print the estimated cost of a search and what it can tell apart, and return both as JSON."""
    from tune_dlrml.doctor.measure import measure_search, notes
    from tune_dlrml.search.result import SearchPlace
    from tune_dlrml.views.power import power_lines
    from tune_dlrml.views.search import cost_lines, cost_table

    place, config = SearchPlace(DEFAULT_STORAGE, os.environ.get("RAY_ADDRESS"), study_url).of(config)
    out.print(f"training {steps} steps of the baseline", highlight=False)
    cost, power = measure_search(config, place, steps=steps, seeds=seeds)
    left_out = notes(cost, config)
    out.print(cost_table(cost))
    told = [power] if isinstance(power, str) else power_lines(power, cost)
    for line in [*cost_lines(cost), *left_out, *told]:
        out.print(escape(line), highlight=False, soft_wrap=True)
    return {
        "cost": cost.as_json() | {"left_out": left_out},
        "power": None if isinstance(power, str) else power.as_json(),
    }


def _findings(config: SearchConfig, study_url: str | None) -> Iterator[Any]:
    from tune_dlrml.cluster.environment import own_addresses
    from tune_dlrml.doctor.checks import examine
    from tune_dlrml.doctor.cluster import examine_cluster
    from tune_dlrml.doctor.exposure import examine_addresses, examine_mlflow, examine_token_file
    from tune_dlrml.doctor.judges import examine_judges
    from tune_dlrml.doctor.proposers import examine_proposers
    from tune_dlrml.doctor.study import examine_study
    from tune_dlrml.search.result import SearchPlace

    yield from examine_addresses(
        {"search.study_url": config.search.study_url, "tracking.mlflow": config.tracking.mlflow}
    )
    place, config = SearchPlace(DEFAULT_STORAGE, os.environ.get("RAY_ADDRESS"), study_url).of(config)
    yield from examine(config)
    yield from examine_judges(config.evaluation, os.environ.get("OPENAI_API_KEY"))
    yield from examine_proposers(config, os.environ.get("OPENAI_API_KEY"))
    yield from examine_cluster(config.resources, place.ray_address, sqlite=place.study is None)
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    mlflow = None if place.mlflow is None else examine_mlflow(place.mlflow, own_addresses())
    yield from filter(None, (examine_study(place.study), examine_token_file(token), mlflow))
