"""The page of a report: one self-contained HTML file that needs no network."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tune_dlrml.errors import InputError
from tune_dlrml.metrics import METRICS
from tune_dlrml.records import State
from tune_dlrml.report.arms import Arm
from tune_dlrml.report.discovered import ProposalLine, story
from tune_dlrml.report.diverging import LEVEL, Split, splits
from tune_dlrml.report.ranking import Ranked, ranking, text, verdict
from tune_dlrml.report.reading import SearchData
from tune_dlrml.report.spending import Spent, by_end, soundness
from tune_dlrml.report.style import Drawing, as_image
from tune_dlrml.search.confirm.verdicts import Confirmation, Confirmed
from tune_dlrml.search.discovery_progress import STAGES
from tune_dlrml.study.feasibility import bounds
from tune_dlrml.system.code_state import in_words

MOST_LINES = 25
"""Trials of the ranking above the pictures; the others are at the end of the page."""
PIXELS_PER_INCH = 112


def render(
    data: SearchData, drawings: Mapping[str, Drawing], confirmation: Confirmation | None, trained: Sequence[Arm]
) -> str:
    """The page with its pictures inlined; all text from files is escaped."""
    environment = Environment(
        loader=PackageLoader("tune_dlrml.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    loader = environment.loader
    assert loader is not None
    ranked, found = ranking(data), splits(data)
    confirmed = () if confirmation is None else confirmation.finalists
    return environment.get_template("page.html.j2").render(
        name=data.config.name,
        css=Markup(loader.get_source(environment, "page.css")[0]),
        verdict=verdict(data, ranked, confirmed),
        notes=_notes(data),
        facts=_facts(data),
        story=story_of_page(data, confirmed),
        confirmed=confirmed,
        confirmed_text=_confirmed_text(data),
        bounded=data.config.search.constraints is not None,
        race="" if confirmation is None else confirmation.runs_in_words(),
        caveats=[] if confirmation is None else list(confirmation.caveats()),
        kinds=len({trial.kind for trial in data.trials} - {None}) > 1,
        arms=[vars(arm) | {"parameter_texts": _texts(arm.parameters)} for arm in trained],
        metric_words=METRICS[data.metric].words,
        metric_unit="" if METRICS[data.metric].counts_pairs else f", {METRICS[data.metric].unit}",
        ranking=_lines(ranked[:MOST_LINES]),
        others=_lines(ranked[MOST_LINES:]),
        judged=_judged(data, ranked),
        losses=soundness(data),
        splits=found,
        diverged_text=_diverged_text(data, found),
        by_end={end: vars(spent) | {"time": _time(spent)} for end, spent in by_end(data).items()},
        drawings={name: _shown(drawing) for name, drawing in drawings.items()},
        read_at=data.read_at,
    )


def _shown(drawing: Drawing) -> dict[str, Any]:
    image = None if drawing.figure is None else as_image(drawing.figure)
    width = 0 if drawing.figure is None else round(drawing.figure.get_figwidth() * PIXELS_PER_INCH)
    return {"name": drawing.name, "title": drawing.title, "text": drawing.text, "image": image, "width": width}


def story_of_page(data: SearchData, confirmed: Sequence[Confirmed]) -> dict[str, Any] | None:
    """The story of a discovery as the page shows it, with a picture of every trained loss; None of another search."""
    told = story(data, confirmed)
    if told is None:
        return None
    words = {**STAGES, "asked": "under way"}
    stages = [f"{count} {words[stage]}" for stage, count in told.stages.items()]
    return {
        "stages_text": f"{len(told.proposals)} proposals ({', '.join(stages)})" if stages else "none yet",
        "baseline": told.baseline,
        "accepted": [_proposal(data, line) for line in told.accepted],
        "refused": told.refused,
        "proposers": told.proposers,
    }


def _proposal(data: SearchData, line: ProposalLine) -> dict[str, Any]:
    return vars(line) | {
        "picture": _thumb(data, line),
        "setting_texts": _texts(line.settings),
        "shape": list(_shape(line.geometry)),
        "furthest": _furthest(data, line),
    }


def _furthest(data: SearchData, line: ProposalLine) -> str:
    """How far a loss without a complete trial came."""
    trial = None if line.drawn is None or line.trial is not None else data.trial(line.drawn)
    if trial is None:
        return ""
    value = f"{trial.last[data.metric]:.3f} " if data.metric in trial.last else ""
    return f"{value}after {trial.steps} of {data.full_steps} steps of trial {trial.number}"


def _thumb(data: SearchData, line: ProposalLine) -> dict[str, str]:
    """The picture of a loss at its own best setting, or why there is none."""
    trial = data.trial(line.drawn)
    if trial is None or trial.row.spec is None:
        return {"image": "", "reason": "drawn at its best setting once a trial has begun"}
    from tune_dlrml.report.loss_picture import loss_thumb  # torch, which only a discovery needs

    try:
        return {"image": loss_thumb(trial.row.spec.loss), "reason": ""}
    except InputError as error:
        return {"image": "", "reason": f"not drawn: {error}"}


def _shape(geometry: Mapping[str, Any]) -> Iterator[str]:
    """What the checks found of a loss's shape, a phrase each."""
    if not geometry:
        return
    slope, trap, barrier = geometry["slope"], geometry["trap"], geometry["barrier"]
    yield "slope at the start –" if slope is None else f"slope {slope:+.3g} at the start"
    yield "no trap" if trap is None or barrier is None else f"trap at z {trap:+.3g}, barrier at {barrier:+.3g}"
    yield "slope bounded" if geometry["bounded"] else "slope unbounded"
    if geometry["coupled"]:
        yield "pairs of a batch coupled"


def _lines(ranked: Sequence[Ranked]) -> list[dict[str, Any]]:
    return [vars(line) | {"parameter_texts": _texts(line.parameters)} for line in ranked]


def _notes(data: SearchData) -> list[str]:
    notes = []
    for state in (State.RUNNING, State.PAUSED):
        those = [trial.number for trial in data.trials if trial.state is state]
        if those:
            numbers = ", ".join(map(str, those))
            notes.append(f"The search has not ended: trial{'s' if len(those) > 1 else ''} {numbers} {state}. ")
    if data.config.search.num_trials is not None and len(data.trials) < data.config.search.num_trials:
        notes.append(f"{len(data.trials)} of {data.config.search.num_trials} trials have been started.")
    return notes


def _facts(data: SearchData) -> dict[str, str]:
    config, usage = data.config, data.usage
    states = [str(trial.state) for trial in data.trials]
    hours = f"{usage.gpu_hours:.3g} GPU-hours" if usage.gpu_hours else f"{usage.cpu_hours:.3g} CPU-hours"
    pairs = {key: _pairs(data, f"{key}_pairs") for key in ("train", "eval")}
    facts = {"model": config.model}
    for key, reference in config.dataset.references().items():
        count = pairs.get(key)
        short = data.data_hash.get(key, "")[:12]
        facts[f"data, {key}"] = f"{reference}{'' if count is None else f', {count:,} pairs'}" + (
            f" (content {short})" if short else ""
        )
    rungs = f"rungs at {', '.join(map(str, data.rungs))}" if data.rungs else "no rungs"
    facts |= {
        "trials": f"{len(states)} ({', '.join(f'{states.count(s)} {s}' for s in dict.fromkeys(states)) or 'none yet'})",
        "budget of a trial": f"{data.full_steps:,} optimizer steps, {rungs}",
        "objective": f"{METRICS[data.metric].words} ({data.metric}), {config.search.mode}",
        **_constraints(data),
        "sampler": f"{config.search.sampler}, seed {config.search.seed}",
        "usage": f"{usage.optimizer_steps:,} steps, {usage.trained_tokens:,} tokens, {hours}",
        "code": ", ".join(in_words(data.code))
        or f"not recorded by the search; this report by tune_dlrml {metadata.version('tune_dlrml')}",
    }
    return facts


def _constraints(data: SearchData) -> dict[str, str]:
    """The bounds of a search, and how many of its complete trials break one."""
    constraints = data.config.search.constraints
    if constraints is None:
        return {}
    done = [trial.row.feasible for trial in data.trials if trial.state is State.COMPLETE]
    kept = ", ".join(map(str, bounds(constraints)))
    return {"constraints": f"{kept}; {done.count(False)} of {len(done)} complete trials infeasible"}


def _pairs(data: SearchData, name: str) -> int | None:
    return next((int(trial.newest[name]) for trial in data.trials if name in trial.newest), None)


def _texts(parameters: Mapping[str, Any]) -> list[str]:
    return [f"{key} {text(value)}" for key, value in parameters.items()]


def _judged(data: SearchData, ranked: Sequence[Ranked]) -> list[dict[str, Any]]:
    """A line for each judge and trial; the trial that the first judge rates best comes first."""

    def rank(line: Ranked) -> tuple[bool, float]:
        first = line.judged[0]["score"]
        return first is None, 0.0 if first is None else -first

    ordered = sorted((line for line in ranked if line.judged), key=rank)
    return [{"trial": line.trial, "loss": line.loss} | said for line in ordered for said in line.judged]


def _diverged_text(data: SearchData, found: Sequence[Split]) -> str:
    ended = [trial for trial in data.trials if trial.state not in (State.FAILED, State.RUNNING)]
    bad = sum(trial.state is State.DIVERGED for trial in ended)
    if not bad:
        return "No trial diverged."
    if bad == len(ended):
        return f"All {bad} trials that ended diverged, so no parameter separates them from others."
    count = f"{bad} of {len(ended)} trials diverged"
    significant = [split for split in found if split.tells_apart]
    explained = (
        f" The p-value is Fisher's, times the number of splits that were tried; below {LEVEL:g} a parameter separates "
        "diverged trials significantly. Trials that failed or are running are left out, and a pruned or paused one "
        "might have diverged later."
    )
    if not significant:
        return f"{count}, and no single parameter separates them significantly from the others.{explained}"
    return f"{count}. {significant[0].sentence}.{explained}"


def _confirmed_text(data: SearchData) -> str:
    again = (
        "Trained again from the start with new seeds and the full budget, each seed against the baseline's run of the "
        "same seed, and measured on "
    )
    test = data.config.dataset.test
    if test is not None:
        return f"{again}{test}, which the search never used, so the selection does not bias these differences."
    return (
        f"{again}the held-out pairs that the search selected by: new seeds remove the bias of selected seeds, but not "
        "that of selected pairs."
    )


def _time(spent: Spent) -> str:
    minutes, seconds = divmod(round(spent.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
