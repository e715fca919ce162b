"""The trials of a search that can be exported, and the data of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tune_dlrml.config import SearchConfig, load_config
from tune_dlrml.errors import InputError
from tune_dlrml.events import EventLog
from tune_dlrml.models.fingerprints import model_fingerprint
from tune_dlrml.models.loading import ModelReference, parse_model_reference, quantization_of
from tune_dlrml.records import State
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.training.checkpoint import Checkpoint, newest_checkpoint

NAMED = 12
"""Most trials that a message names."""


@dataclass(frozen=True)
class TrainedTrial:
    """A complete trial and its final model.

    Attributes:
        search: Name of its search.
        config: The search.
        spec: The trial.
        start: Reference of the model that it started from.
        steps: Optimizer steps that it trained, all of its budget.
        checkpoint: The model, with every file as it was written.
        metrics: Newest value of every metric that it reported.
        value: The objective at the full budget.
        complete: How many complete trials the search has.
        is_best: Whether it is the best of them by the search's own metric.
        data_hash: Content hashes of the data that the search was started with, by section; empty if they are unknown.
        code: Versions that its newest driver ran with; empty if they are unknown.
    """

    search: str
    config: SearchConfig
    spec: TrialSpec
    start: str
    steps: int
    checkpoint: Checkpoint
    metrics: dict[str, float]
    value: float
    complete: int
    is_best: bool
    data_hash: dict[str, str]
    code: dict[str, str]

    @property
    def warmed_up(self) -> bool:
        """Whether its base model is the result of the search's warm-up."""
        return self.config.training.warm_up is not None

    @cached_property
    def quantized(self) -> bool:
        """Whether its base was kept in 4 or 8 bits, by its search or by the model's own files."""
        return self.spec.training.quantization is not None or quantization_of(self.model) is not None

    @cached_property
    def model(self) -> ModelReference:
        """The base model; one of the hub with the commit that is in the local cache, since a branch moves on."""
        reference = parse_model_reference(self.start)
        if reference.kind != "hub":
            return reference
        try:
            commit = model_fingerprint(reference).rpartition("@")[2]
        except InputError:
            return reference
        return replace(reference, revision=commit)


def read_trained(search: str, number: int | None, place: SearchPlace) -> TrainedTrial:
    """A trial of a search whose files are complete and unchanged.

    Args:
        search: Name of the search.
        number: The trial's; None is the best.
        place: Where searches are.

    Raises:
        InputError: There is no such search or trial, or the trial has no model; naming those that have one.
    """
    resolved = place.folder(search) / "search.yaml"
    if not resolved.exists():
        raise InputError(f"there is no search {search!r} in {place.storage.resolve()}; give its --storage")
    place, config = place.of(load_config(resolved))
    history = StudyHistory.open(place.study_url(search), search)
    rows, best = history.rows(), history.best()
    data_hash, code = dict(history.data_hash), dict(history.code)
    history.close()
    trials = place.folder(search) / "trials"
    row = _chosen(search, rows, best if number is None else number)
    checkpoint = newest_checkpoint(trials / str(row.number))
    if checkpoint is None or row.spec is None or row.value is None:
        raise InputError(
            f"trial {row.number} is complete, but {trials / str(row.number)} no longer has a complete checkpoint; "
            + _with_models(rows, trials)
        )
    return TrainedTrial(
        search=search,
        config=config,
        spec=row.spec,
        start=place.model(config),
        steps=row.steps,
        checkpoint=checkpoint,
        metrics=EventLog(place.folder(search)).last_metrics(row.number),
        value=row.value,
        complete=sum(each.state is State.COMPLETE for each in rows),
        is_best=row.number == best,
        data_hash=data_hash,
        code=code,
    )


def _chosen(search: str, rows: Sequence[TrialRow], number: int | None) -> TrialRow:
    if number is None:
        raise InputError(f"search {search!r} has no complete trial yet, and only a complete one keeps its model")
    row = next((row for row in rows if row.number == number), None)
    if row is None:
        known = f"trials 0 to {len(rows) - 1}" if rows else "no trial yet"
        raise InputError(f"--trial {number}: search {search!r} has {known}")
    if row.state is not State.COMPLETE:
        why = f": {row.stop_reason}" if row.stop_reason else ""
        raise InputError(
            f"--trial {number}: only a complete trial keeps its trained model, but this one is {row.state}{why}; "
            + _complete_ones(rows)
        )
    return row


def _complete_ones(rows: Sequence[TrialRow]) -> str:
    return _named([row.number for row in rows if row.state is State.COMPLETE])


def _with_models(rows: Sequence[TrialRow], trials: Path) -> str:
    complete = [row.number for row in rows if row.state is State.COMPLETE]
    return _named([number for number in complete if newest_checkpoint(trials / str(number)) is not None])


def _named(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no trial of this search can be exported"
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"exportable trials: {', '.join(map(str, numbers[:NAMED]))}{more}"
