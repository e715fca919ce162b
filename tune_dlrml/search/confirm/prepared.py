"""Confirmation: the best trials again, with new seeds, against DPO, on pairs that did not select them.

The best of many trials is selected by the same held-out pairs and the same seed as its number, so part of that number
is luck: it ranks the trial, but overestimates its quality. So the finalists and the DPO baseline are trained again
under new seeds and their full budget, in their own study, `<name>/confirm`, and evaluated on `dataset.test` where there
is one. `race` says which of them get how many seeds; without a race each of them gets all. `verdicts` compares them.

An extended search may have other finalists: then only the missing trials are trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from tune_dlrml.config import CONFIRM_SUFFIX, SearchConfig
from tune_dlrml.discovery.archive import Archive
from tune_dlrml.search.confirm.begun import as_begun
from tune_dlrml.search.confirm.finalists import Finalist, confirm_settings, finalists, identity, seeds_of
from tune_dlrml.search.confirm.outcomes import outcomes
from tune_dlrml.search.confirm.race import race
from tune_dlrml.search.confirm.verdicts import Confirmation, compare
from tune_dlrml.search.preparation import PreparedSearch, prepare_any
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.proposer import Proposer, Wanted, WantedTrials
from tune_dlrml.study.study import SearchStudy


@dataclass(frozen=True)
class RacedTrials(WantedTrials):
    """The trials of a race, of which those of a round are wanted once the round before has ended.

    Attributes:
        finalists: Trials of the search that are compared with the baseline.
        baseline: The DPO trial.
        seeds: As many as there can be rounds.
        metric: What is compared.
        folder: Of the confirmation.
    """

    finalists: Sequence[int]
    baseline: int
    seeds: Sequence[int]
    metric: str
    folder: Path
    _newest: dict[Sequence[object], Wanted] = field(default_factory=dict, compare=False, repr=False)

    def wanted_after(self, rows: Sequence[TrialRow]) -> Wanted:
        """The trials of all rounds that have begun, or can begin."""
        key = tuple((row.number, row.state, row.spec is None) for row in rows)
        if key not in self._newest:
            progress = race(outcomes(rows, self.metric, self.folder), self.finalists, self.baseline, self.seeds)
            known = {identity(spec): spec for spec in self.wanted}
            self._newest.clear()
            self._newest[key] = Wanted([known[run] for run in progress.runs], more=not progress.over)
        return self._newest[key]


@dataclass(frozen=True)
class ConfirmSearch(PreparedSearch):
    """A search without a space: its trials are known in advance, and in a race not all of them are trained.

    Attributes:
        wanted: The trials in the order in which they are trained; they get their numbers when they are issued.
        confirmed: The search that is confirmed.
        rows: Its trials.
        searched: Its proposals.
    """

    wanted: tuple[TrialSpec, ...] = ()
    confirmed: SearchConfig | None = None
    rows: tuple[TrialRow, ...] = ()
    searched: Archive | None = None

    def proposals(self) -> Archive | None:
        """Those of the search that is confirmed."""
        return self.searched

    def proposer(self) -> Proposer:
        """The known trials, without a sampler."""
        config = self.confirmed
        chosen = None if config is None else finalists(config, self.rows)
        if config is None or chosen is None or not _is_race(config):
            return WantedTrials(self.wanted)
        candidates, baseline = chosen
        return RacedTrials(
            self.wanted,
            finalists=[each.trial for each in candidates],
            baseline=baseline.trial,
            seeds=seeds_of(config),
            metric=config.search.metric,
            folder=self.place.folder(self.config.name),
        )

    def open_study(self) -> SearchStudy:
        """Its study, new or resumed; a race is recorded as one before its first trial.

        Raises:
            InputError: As `PreparedSearch.open_study`.
        """
        study = super().open_study()
        config = self.confirmed
        if config is not None and config.search.confirm is not None and _is_race(config) and not study.rows():
            study.plan_race(config.search.confirm.seeds)
        return study

    def conclusion(self, rows: Sequence[TrialRow]) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """The verdicts as tags, and the runs that they took."""
        told = self._told(rows)
        if told is None:
            return {}, {}
        runs = {} if told.runs is None or told.most_runs is None else {"runs": told.runs, "most_runs": told.most_runs}
        said = {each.trial: ", ".join(filter(None, [each.verdict, each.ended()])) for each in told.finalists}
        return runs, {f"verdict_of_trial_{trial}": words for trial, words in said.items()}

    def _told(self, rows: Sequence[TrialRow]) -> Confirmation | None:
        folder = self.place.folder(self.config.name)
        return None if self.confirmed is None else compare(self.confirmed, self.rows, rows, folder)


def confirmation_of(prepared: PreparedSearch, rows: Sequence[TrialRow]) -> ConfirmSearch | None:
    """The trials to train once a search has ended; None where no finalist is left beside the best DPO.

    Args:
        prepared: The search.
        rows: Its trials, all of which have ended or will not train any more.

    Raises:
        InputError: The test set cannot be used.
    """
    asked = prepared.config.search.confirm
    if isinstance(prepared, ConfirmSearch) or asked is None:
        return None
    config = as_begun(prepared.config, prepared.place)
    chosen = finalists(config, rows)
    if chosen is None or not chosen[0]:
        return None
    again = prepare_any(confirm_config(config, prepared.place), prepared.place)
    own = {field.name: getattr(again, field.name) for field in fields(PreparedSearch)}
    if asked.adaptive and not _is_race(config):
        own["notes"] = (*again.notes, f"{again.config.name} began without a race, and goes on without one")
    wanted = tuple(_wanted(config, *chosen))
    return ConfirmSearch(**own, wanted=wanted, confirmed=config, rows=tuple(rows), searched=prepared.archive)


def _is_race(config: SearchConfig) -> bool:
    return config.search.confirm is not None and config.search.confirm.adaptive


def confirm_config(config: SearchConfig, place: SearchPlace) -> SearchConfig:
    """The search as its confirmation is run: no sampler, no pruning, no questions, the test set in place of `eval`.

    A warm-up is not repeated: the warmed-up model is the model.
    """
    dataset = config.dataset
    changes = {
        "name": config.name + CONFIRM_SUFFIX,
        "model": place.model(config),
        "training": config.training.model_copy(update={"warm_up": None}),
        "dataset": dataset.model_copy(update={"eval": dataset.test or dataset.eval, "test": None}),
        "search": confirm_settings(config),
        "evaluation": None,
        "space": config.known_losses(),
        "discovery": None,
    }
    return config.model_copy(update=changes)


def _wanted(config: SearchConfig, chosen: Sequence[Finalist], baseline: Finalist) -> Iterator[TrialSpec]:
    """The trials seed by seed, so that an interrupted confirmation has complete comparisons."""
    for seed in seeds_of(config):
        for each in [baseline, *chosen]:
            yield each.again(0, seed)
