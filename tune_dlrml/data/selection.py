"""Selects the rows of a search: drops, truncates or refuses them as configured, and reports all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tune_dlrml.config import DatasetConfig, TrainingConfig
from tune_dlrml.data.kinds import Found, examine
from tune_dlrml.data.loading import load_section
from tune_dlrml.data.pairs import Fault
from tune_dlrml.data.plan import canonical, content_hash
from tune_dlrml.data.rows import faults_message, refusal_of_rows
from tune_dlrml.data.section import Section
from tune_dlrml.data.seen import seen
from tune_dlrml.data.tokens import TokenPair, TokenRows, tokenize
from tune_dlrml.errors import InputError
from tune_dlrml.models.loading import Reader

Notes = tuple[str, ...]
LoadReader = Callable[[], Reader]


@dataclass(frozen=True)
class Pairs:
    """Token ids of the preference pairs of a search: those that it trains on and those that it holds out."""

    train: TokenRows
    eval: TokenRows


@dataclass(frozen=True)
class Selection:
    """The rows that a search uses, by their key (`train`, `eval` and, where given, `test`).

    Attributes:
        sections: Each with at least one pair.
        notes: A sentence for everything that was dropped, is unused, will be truncated or was found.
        found: Findings about the tokens of the pairs, kind by kind; in the notes, too.
    """

    sections: Mapping[str, Section]
    notes: Notes
    found: tuple[Found, ...] = ()

    def pairs(self) -> Pairs:
        """Training pairs and held-out pairs, as token ids."""
        train, held_out = (TokenRows.of(self.sections[name].tokens) for name in ("train", "eval"))
        return Pairs(train, held_out)

    def data_hash(self) -> dict[str, str]:
        """Content hash of the rows that are trained on, and of those that are held out."""
        return {name: content_hash(self.sections[name].pairs) for name in ("train", "eval")}


def select_pairs(dataset: DatasetConfig, training: TrainingConfig, load_reader: LoadReader | None) -> Selection:
    """Read the rows and select those that are used.

    Prompts are compared after the training pairs are known, and findings are reported of the pairs that are used.

    Args:
        dataset: The references and what to do about rows that cannot be used as they are.
        training: max_length and truncation_mode.
        load_reader: The model's; called once all rows were read. With None tokens are not examined.

    Raises:
        InputError: Rows are refused, or none is left: key, number, the first ones and the remedy.
    """
    sections: dict[str, Section] = {}
    notes: list[str] = []
    found: list[Found] = []
    for name, reference in dataset.references().items():
        sections[name], own = load_section(reference, f"dataset.{name}", dataset)
        notes += own
    reader = None if load_reader is None else load_reader()
    if reader is not None:
        for name, section in sections.items():
            sections[name], own = _of_fitting_length(section, dataset, training, reader)
            notes += own
        found += _without_refused(sections, dataset, training, reader)
    for name in [name for name in sections if name != "train"]:
        sections[name], own = _held_out(sections["train"], sections[name], dataset)
        notes += own
    if reader is not None:
        found += [each for section in sections.values() for each in examine(section, reader, training, refused=False)]
    return Selection(sections, (*notes, *(each.text for each in found)), tuple(found))


def shared_prompts(train: Section, held_out: Section) -> list[int]:
    """Positions of the pairs of `held_out` whose prompt occurs in `train`, so that they are not held out."""
    seen = {canonical(pair["prompt"]) for pair in train.pairs}
    return [index for index, pair in enumerate(held_out.pairs) if canonical(pair["prompt"]) in seen]


def _of_fitting_length(
    section: Section, dataset: DatasetConfig, training: TrainingConfig, reader: Reader
) -> tuple[Section, Notes]:
    section, notes = _tokenized(section, dataset, reader)
    if training.max_length is None:
        return section, notes
    law = f"training.max_length={training.max_length} tokens"
    at_start = training.truncation_mode == "keep_start"
    filled = [
        index for index, pair in enumerate(section.tokens) if at_start and len(pair.prompt) >= training.max_length
    ]
    long = [index for index, pair in enumerate(section.tokens) if pair.length > training.max_length]
    if dataset.long_pairs == "truncate":
        section, notes = _left_out(section, filled, f"whose prompt alone fills {law}", "raise it", notes)
        return _truncated(section, training, law, notes)
    long = sorted({*long, *filled})
    if long and dataset.long_pairs == "refuse":
        longest = max(section.tokens[index].length for index in long)
        raise InputError(
            f"{section.key}: {section.some_of_all(long)} do not fit {law}, the longest has {longest}; raise it, or set "
            "dataset.long_pairs to drop or truncate"
        )
    return _left_out(section, long, f"which do not fit {law}", "raise it", notes)


def _truncated(section: Section, training: TrainingConfig, law: str, notes: Notes) -> tuple[Section, Notes]:
    """The section without the pairs whose completions are equal after truncation."""
    assert training.max_length is not None
    same = []
    for index, (pair, tokens) in enumerate(zip(section.pairs, section.tokens, strict=True)):
        cut = seen(pair, tokens, training)
        if cut.chosen.ids == cut.rejected.ids and tokens.chosen != tokens.rejected:
            same.append(index)
    section, notes = _left_out(section, same, f"whose completions are the same in the first {law}", "raise it", notes)
    long = [index for index, pair in enumerate(section.tokens) if pair.length > training.max_length]
    return section, (*notes, f"{section.key}: {section.some_of_all(long)} are truncated to {law}") if long else notes


def _tokenized(section: Section, dataset: DatasetConfig, reader: Reader) -> tuple[Section, Notes]:
    """The section with its tokens, without the pairs that the chat template refuses."""
    try:
        made = list(tokenize(section.pairs, reader.tokenizer))
    except InputError as error:
        raise InputError(f"{section.key}: {error}") from None
    tokens = [pair for pair in made if isinstance(pair, TokenPair)]
    faulty = [index for index, fault in enumerate(made) if isinstance(fault, Fault)]
    if not faulty:
        return replace(section, tokens=tokens), ()
    faults = [f"{section.places[index]}: {made[index]}" for index in faulty]
    message = faults_message(faults, str(len(made)), section.key)
    if dataset.bad_rows == "refuse":
        raise InputError(refusal_of_rows(faults, str(len(made)), section.key))
    if not tokens:
        raise InputError(message)
    return replace(section.without(faulty), tokens=tokens), (f"bad rows are dropped. {message}",)


def _without_refused(
    sections: dict[str, Section], dataset: DatasetConfig, training: TrainingConfig, reader: Reader
) -> list[Found]:
    """Drop the pairs of refused kinds from the sections, if so configured.

    Raises:
        InputError: They are to be refused, or no pair is left: every kind of every section.
    """
    found: list[Found] = []
    refusals: list[str] = []
    for name, section in sections.items():
        own = examine(section, reader, training, refused=True)
        out = sorted({position for each in own for position in each.positions})
        if len(out) == len(section.pairs):
            refusals += [f"{each.text}; {each.kind.remedy}" for each in own]
        elif dataset.bad_rows == "refuse":
            refusals += [f"{each.text}; {each.kind.remedy}, or set dataset.bad_rows: drop" for each in own]
        else:
            sections[name] = section.without(out)
            found += [replace(each, text=f"bad rows are dropped. {each.text}") for each in own]
    if refusals:
        raise InputError("\n".join(refusals))
    return found


def _held_out(train: Section, section: Section, dataset: DatasetConfig) -> tuple[Section, Notes]:
    shared = shared_prompts(train, section)
    if not shared:
        return section, ()
    if dataset.shared_prompts == "keep":
        return section, (f"{section.key}: {section.some_of_all(shared)} are kept, though their prompts are trained on",)
    if dataset.shared_prompts == "refuse":
        raise InputError(
            f"{section.key}: {section.some_of_all(shared)} have prompts that are trained on; remove them from one of "
            "the sets, or set dataset.shared_prompts to drop or keep"
        )
    return _left_out(section, shared, "whose prompts are trained on", "give pairs with other prompts")


def _left_out(section: Section, out: list[int], why: str, remedy: str, notes: Notes = ()) -> tuple[Section, Notes]:
    if not out:
        return section, notes
    if len(out) == len(section.pairs):
        raise InputError(f"{section.key}: no pair is left without the {section.some_of_all(out)}, {why}; {remedy}")
    return section.without(out), (*notes, f"{section.key}: left out {section.some_of_all(out)}, {why}")
