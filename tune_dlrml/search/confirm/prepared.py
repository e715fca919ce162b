"""Confirmation: the best trials again, with new seeds, against DPO, on pairs that did not select them.

The best of many trials is selected by the same held-out pairs and the same seed as its number, so part of that number
is luck: it ranks the trial, but overestimates its quality. So the finalists and the DPO baseline are trained again
under new seeds and their full budget, in their own study, `<name>/confirm`, and evaluated on `dataset.test` where there
is one. `verdicts` compares them.

An extended search may have other finalists, and the number of seeds may be raised: then only the missing trials are
trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from tune_dlrml.config import CONFIRM_SUFFIX, SearchConfig
from tune_dlrml.discovery.archive import Archive
from tune_dlrml.search.confirm.finalists import Finalist, confirm_settings, finalists, seeds_of
from tune_dlrml.search.preparation import PreparedSearch, prepare_any
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.proposer import Proposer, WantedTrials


@dataclass(frozen=True)
class ConfirmSearch(PreparedSearch):
    """A search without a space: its trials are fixed in advance.

    Attributes:
        wanted: The trials in the order in which they are trained; they get their numbers when they are issued.
        searched: The proposals of the search that is confirmed.
    """

    wanted: tuple[TrialSpec, ...] = ()
    searched: Archive | None = None

    def proposals(self) -> Archive | None:
        """Those of the search that is confirmed."""
        return self.searched

    def proposer(self) -> Proposer:
        """The fixed trials, without a sampler."""
        return WantedTrials(self.wanted)


def confirmation_of(prepared: PreparedSearch, rows: Sequence[TrialRow]) -> ConfirmSearch | None:
    """The trials to train once a search has ended; None where nothing is to be confirmed.

    Args:
        prepared: The search.
        rows: Its trials, all of which have ended or will not train any more.

    Raises:
        InputError: The test set cannot be used.
    """
    config = prepared.config
    chosen = None if isinstance(prepared, ConfirmSearch) else finalists(config, rows)
    if chosen is None:
        return None
    again = prepare_any(confirm_config(config, prepared.place), prepared.place)
    own = {field.name: getattr(again, field.name) for field in fields(PreparedSearch)}
    return ConfirmSearch(**own, wanted=tuple(_wanted(config, *chosen)), searched=prepared.archive)


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
