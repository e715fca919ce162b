"""Which rows a search uses: what is dropped, truncated or refused as the configuration says, and all of it told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_dlrml.config import DatasetConfig, TrainingConfig
from tune_dlrml.data.lengths import Length, pair_lengths
from tune_dlrml.data.loading import load_section
from tune_dlrml.data.pairs import Fault, faults_message
from tune_dlrml.data.plan import canonical
from tune_dlrml.data.section import Section
from tune_dlrml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Notes = tuple[str, ...]
LoadTokenizer = Callable[[], "PreTrainedTokenizerBase"]


@dataclass(frozen=True)
class Selection:
    """The rows that a search uses, by their key (`train`, `eval` and, where given, `test`).

    Attributes:
        sections: Each with at least one pair.
        notes: A sentence for everything that was dropped, is not used or will be truncated.
    """

    sections: Mapping[str, Section]
    notes: Notes


def select_pairs(dataset: DatasetConfig, training: TrainingConfig, load_tokenizer: LoadTokenizer | None) -> Selection:
    """Read the rows and choose those that are used.

    Prompts are compared last, since a training pair that is too long to be used is not trained on.

    Args:
        dataset: The references and what to do about rows that cannot be used as they are.
        training: max_length and truncation_mode.
        load_tokenizer: The model's; called once all rows were read. None leaves lengths unlooked at.

    Raises:
        InputError: Rows are refused, or none is left: key, how many, the first ones and what to do.
    """
    sections: dict[str, Section] = {}
    notes: list[str] = []
    for name, reference in dataset.references().items():
        sections[name], told = load_section(reference, f"dataset.{name}", dataset.bad_rows)
        notes += told
    if load_tokenizer is not None:
        tokenizer = load_tokenizer()
        for name, section in sections.items():
            sections[name], told = _of_fitting_length(section, dataset, training, tokenizer)
            notes += told
    for name in [name for name in sections if name != "train"]:
        sections[name], told = _held_out(sections["train"], sections[name], dataset)
        notes += told
    return Selection(sections, tuple(notes))


def shared_prompts(train: Section, held_out: Section) -> list[int]:
    """Positions of the pairs of `held_out` whose prompt occurs in `train`, so that they are not held out."""
    seen = {canonical(pair["prompt"]) for pair in train.pairs}
    return [index for index, pair in enumerate(held_out.pairs) if canonical(pair["prompt"]) in seen]


def repeated_pairs(section: Section) -> list[int]:
    """Positions of the pairs that stand in the same section before."""
    seen: set[str] = set()
    repeated: list[int] = []
    for index, pair in enumerate(section.pairs):
        text = canonical(pair)
        if text in seen:
            repeated.append(index)
        seen.add(text)
    return repeated


def _of_fitting_length(
    section: Section, dataset: DatasetConfig, training: TrainingConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Section, Notes]:
    try:
        measured = list(pair_lengths(section.pairs, tokenizer, training.max_length))
    except InputError as error:
        raise InputError(f"{section.key}: {error}") from None
    section, lengths, notes = _without_faults(section, measured, dataset)
    if training.max_length is None:
        return section, notes
    at_start = training.truncation_mode == "keep_start"
    filled = [index for index, length in enumerate(lengths) if length.prompt_fills and at_start]
    long = [index for index, length in enumerate(lengths) if length.tokens > training.max_length]
    law = f"training.max_length={training.max_length} tokens"
    if dataset.long_pairs == "truncate":
        cut = sorted(set(long) - set(filled))
        if cut:
            notes += (f"{section.key}: {section.some_of_all(cut)} are truncated to {law}",)
        return _left_out(section, filled, f"whose prompt alone fills {law}", "raise it", notes)
    long = sorted({*long, *filled})
    if long and dataset.long_pairs == "refuse":
        longest = max(lengths[index].tokens for index in long)
        raise InputError(
            f"{section.key}: {section.some_of_all(long)} do not fit {law}, the longest has {longest}; raise it, or set "
            "dataset.long_pairs to drop or truncate"
        )
    return _left_out(section, long, f"which do not fit {law}", "raise it", notes)


def _without_faults(
    section: Section, measured: list[Length | Fault], dataset: DatasetConfig
) -> tuple[Section, list[Length], Notes]:
    """The section and its lengths without the pairs that the chat template refuses."""
    lengths = [length for length in measured if isinstance(length, Length)]
    faulty = [index for index, fault in enumerate(measured) if isinstance(fault, Fault)]
    if not faulty:
        return section, lengths, ()
    faults = [f"{section.places[index]}: {measured[index]}" for index in faulty]
    message = faults_message(faults, len(measured), section.key)
    if dataset.bad_rows == "refuse" or not lengths:
        raise InputError(message)
    return section.without(faulty), lengths, (f"bad rows are dropped. {message}",)


def _held_out(train: Section, section: Section, dataset: DatasetConfig) -> tuple[Section, Notes]:
    shared = shared_prompts(train, section)
    if not shared:
        return section, ()
    if dataset.shared_prompts == "keep":
        return section, (f"{section.key}: {section.some_of_all(shared)} are kept, though their prompts are trained on",)
    if dataset.shared_prompts == "refuse":
        raise InputError(
            f"{section.key}: {section.some_of_all(shared)} have prompts that are trained on; take them out of one of "
            "the sets, or set dataset.shared_prompts to drop or keep"
        )
    return _left_out(section, shared, "whose prompts are trained on", "give pairs with other prompts")


def _left_out(section: Section, out: list[int], why: str, remedy: str, notes: Notes = ()) -> tuple[Section, Notes]:
    if not out:
        return section, notes
    if len(out) == len(section.pairs):
        raise InputError(f"{section.key}: no pair is left without the {section.some_of_all(out)}, {why}; {remedy}")
    return section.without(out), (*notes, f"{section.key}: left out {section.some_of_all(out)}, {why}")
