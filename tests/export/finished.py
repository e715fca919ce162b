"""A search of the toy as its driver leaves it, made in this process without Ray: study, event logs, checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toy
import toy_training

from tune_dlrml.config import parse_config, to_yaml
from tune_dlrml.events import EventLog
from tune_dlrml.records import Answer, Report, State, TrialOutcome
from tune_dlrml.search.preparation import prepare
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial
from tune_dlrml.training.warm_up import warm_up

STEPS = 8


@dataclass
class ToySearch:
    """Where the search is, and what its trials reported."""

    storage: Path
    name: str
    reports: dict[int, list[Report]]

    @property
    def place(self) -> SearchPlace:
        return SearchPlace(self.storage)

    def curve(self, number: int) -> list[float]:
        return [report.metrics["train_loss"] for report in self.reports[number] if report.step > 0]


@dataclass
class _Log:
    events: EventLog
    kept: list[Report]

    def send(self, report: Report) -> Answer:
        self.kept.append(report)
        self.events.report(report)
        return Answer(go_on=True, acknowledged=report.step)


def finished_search(
    folder: Path,
    model: Path,
    losses: list[dict[str, Any]],
    *,
    pruned: int | None = None,
    uneven: bool = False,
    **training: Any,
) -> ToySearch:
    """A grid of `losses`, each trained to its end; the trial `pruned` is told as pruned and keeps no model."""
    document = toy.document(
        model,
        toy.write_pairs(folder / "train.jsonl", 40, uneven=uneven),
        toy.write_pairs(folder / "eval.jsonl", 16, seed=1, uneven=uneven),
    )
    document["training"] |= {"max_steps": STEPS, "learning_rate": 5e-3, "per_device_train_batch_size": 4, **training}
    document["search"] = {"sampler": "grid", "scheduler": None, "baseline": None}
    document["space"] = {"losses": losses}
    config = parse_config(document, source="test")
    search = ToySearch(folder / "runs", config.name, {})
    prepared = prepare(config, search.place)
    root = search.place.folder(config.name)
    root.mkdir(parents=True)
    (root / "search.yaml").write_text(to_yaml(config))
    pairs = prepared.pairs
    hashes = {"data_hash": prepared.data_hash}
    study = SearchStudy(config, proposer_of(config), search.place.study_url(config.name), STEPS, hashes)
    if config.training.warm_up is not None:
        warm_up(config.model, pairs.train, config.training, search.place.warm_up(config.name), workers=1, threads=1)
    start, events = search.place.model(config), EventLog(root)
    resident = Resident.load(start, pairs, config.training, beyond=config.weighs_length())
    while (spec := study.ask()) is not None:
        channel = _Log(events, search.reports.setdefault(spec.number, []))
        events.start(spec)
        trials = root / "trials" / str(spec.number)
        outcome = train_trial(resident, spec, toy_training.plan(STEPS), channel, folder=trials)
        assert outcome is not None
        if spec.number == pruned:
            outcome = TrialOutcome(spec.number, State.PRUNED, "successive halving at step 4")
        else:
            study.record(spec.number, STEPS, channel.kept[-1].metrics["eval_accuracy"])
        study.finish(outcome, STEPS)
        events.end(spec.number, outcome.state, outcome.reason)
    study.close()
    return search
