"""Checks a search before anything is started or written.

The slowest checks come last, so that a mistake in a file is reported within a second: torch, for the tokenizer, is
loaded after all rows were read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tune_dlrml.cluster.cluster import check_resources, local_capacity
from tune_dlrml.config import CONFIRM_SUFFIX, SearchConfig
from tune_dlrml.data import Found, Pairs, select_pairs
from tune_dlrml.discovery.archive import PROPOSALS, Archive
from tune_dlrml.discovery.asking import asker_of
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.completions import Completer
from tune_dlrml.evaluation.endpoint.settings import read_key
from tune_dlrml.evaluation.judges.jury import Jury
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.models.loading import context_length, parse_model_reference
from tune_dlrml.search.confirm.begun import refuse_another_race
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.search.starting import start_of
from tune_dlrml.search.validity import check_functions, check_references, reader_of_model, slow_precision
from tune_dlrml.space import Point, TrialSpec
from tune_dlrml.study.candidates import candidate_proposer
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.proposer import Proposer, proposer_of
from tune_dlrml.study.study import SearchStudy


@dataclass(frozen=True)
class PreparedSearch:
    """A search whose input is valid; nothing was started or written yet.

    Attributes:
        pairs: Token ids of the rows that are used, without those that were dropped.
        steps: Full budget of a trial in optimizer steps.
        notes: What the user must know about the rows, a sentence each.
        found: Findings about the tokens of the rows; they are in the notes, too.
        data_hash: Content hash of the rows that are trained on, and of those that are held out.
        questionnaire: The questions for the trials; None if there are none.
        jury: The judges of their answers.
        start: Points that are issued first.
        completer: The held-out prompts that trials complete; None if there are none.
        archive: The proposals of a search with `discovery`; None without one.
        proposer_key: For the endpoint of its proposers.
        began_s: When the command began, in Unix time; None where there is no command.
    """

    config: SearchConfig
    place: SearchPlace
    pairs: Pairs
    steps: int
    notes: tuple[str, ...] = ()
    found: tuple[Found, ...] = ()
    data_hash: Mapping[str, str] = field(default_factory=dict)
    questionnaire: Questionnaire | None = None
    jury: Jury | None = None
    start: tuple[Point, ...] = ()
    completer: Completer | None = None
    archive: Archive | None = None
    proposer_key: str | None = field(default=None, repr=False)
    began_s: float | None = None

    def proposer(self) -> Proposer:
        """The source of its trials."""
        if self.archive is not None:
            return candidate_proposer(self.config, self.archive)
        return proposer_of(self.config, self.start)

    def proposals(self) -> Archive | None:
        """What its losses were proposed in; None where none is a proposal."""
        return self.archive

    def tags_of(self, spec: TrialSpec) -> dict[str, str]:
        """What the run of a trial is tagged with: the proposal that it trains."""
        archive = self.proposals()
        found = None if archive is None else archive.proposal_of(spec.loss)
        if found is None:
            return {}
        return {"proposal": str(found.number), "proposal_name": found.label, "proposer": found.proposer}

    def conclusion(self, rows: Sequence[TrialRow]) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """Numbers and tags for the tracking backend that only this kind of search has, once it ends."""
        return {}, {}

    def open_study(self) -> SearchStudy:
        """Its study, new or resumed.

        Raises:
            InputError: The storage cannot be opened, or the study was started with other settings.
        """
        hashes = {
            "data_hash": self.data_hash,
            "token_hash": {"train": self.pairs.train.sha256(), "eval": self.pairs.eval.sha256()},
        }
        if self.completer is not None and self.completer.reward is not None:
            hashes["reward_hash"] = {"reward": self.completer.content}
        url, kept = (
            self.place.study_url(self.config.name),
            None if self.config.search.start_from is None else self.start,
        )
        return SearchStudy(self.config, self.proposer(), url, self.steps, hashes, kept)


def prepare(config: SearchConfig, place: SearchPlace, judge_key: str | None = None) -> PreparedSearch:
    """Check a search's model, data, resources and judges, and load the data.

    Args:
        config: The search.
        place: Where it lives.
        judge_key: For the judges' endpoint, if no file holds it.

    Raises:
        InputError: Naming the key, the value and what is allowed; also for a confirmation, which is not a search of its
            own: it repeats trials of another search and draws none.
    """
    if config.name.endswith(CONFIRM_SUFFIX):
        search = config.name.removesuffix(CONFIRM_SUFFIX)
        own = place.folder(search) / "search.yaml"
        raise InputError(
            f"name: {config.name!r} is the confirmation of search {search!r} and runs only as a part of it; "
            f"run {own if own.exists() else 'its file'}, which needs search.confirm, or choose another --name"
        )
    refuse_another_race(config, place)
    return prepare_any(config, place, judge_key)


def prepare_any(config: SearchConfig, place: SearchPlace, judge_key: str | None = None) -> PreparedSearch:
    """As `prepare`, but allow a confirmation, too."""
    check_references(config)
    questionnaire, jury = _evaluation(config, place, judge_key)
    if place.ray_address is None:
        check_resources(config.resources, [local_capacity()], "this machine")
    selection = select_pairs(config.dataset, config.training, lambda: reader_of_model(config))
    if questionnaire is not None:
        _check_room("evaluation", questionnaire.max_new_tokens, config.model)
    if config.completions is not None:
        _check_room("completions", config.completions.max_new_tokens, config.model)
    completer = Completer.of(config, selection.sections["eval"])
    pairs = selection.pairs()
    steps = config.training.steps(len(pairs.train), config.resources.workers)
    first = None if config.search.scheduler is None else config.search.scheduler.grace_period
    if first is not None and first > steps:
        raise InputError(
            f"search.scheduler.grace_period: `grace_period <= steps` must hold, but got grace_period={first} and "
            f"{config.training.num_train_epochs:g} epochs of {len(pairs.train)} pairs are {steps} steps"
        )
    config, notes = check_functions(config)
    start, slow = start_of(config, place), slow_precision(config)
    return PreparedSearch(
        config,
        place,
        pairs,
        steps,
        notes=(*selection.notes, *([] if slow is None else [f"training.bf16: {slow}"]), *notes, *start.notes),
        found=selection.found,
        data_hash=selection.data_hash(),
        questionnaire=questionnaire,
        jury=jury,
        start=start.points,
        completer=completer,
        **_discovery(config, place, judge_key),
    )


def _check_room(section: str, longest: int, model: str) -> None:
    positions = context_length(parse_model_reference(model))
    if positions is not None and longest >= positions:
        raise InputError(
            f"{section}.max_new_tokens: a prompt and what follows it must fit the model's {positions} positions, but "
            f"got max_new_tokens={longest}; lower it"
        )


def _evaluation(
    config: SearchConfig, place: SearchPlace, judge_key: str | None
) -> tuple[Questionnaire | None, Jury | None]:
    section = config.evaluation
    if section is None or section.when == "never":
        return None, None
    key = judge_key if section.judge_key_file is None else read_key(section.judge_key_file)
    return Questionnaire.of(section), Jury.of(section, place.replies, key)


def _discovery(config: SearchConfig, place: SearchPlace, key: str | None) -> dict[str, Any]:
    section = config.discovery
    if section is None:
        return {}
    for name in section.proposer:
        asker_of(name, section, None).close()
    own = key if section.proposer_key_file is None else read_key(section.proposer_key_file)
    return {"archive": Archive(place.folder(config.name) / PROPOSALS, section), "proposer_key": own}
