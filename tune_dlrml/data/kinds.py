"""Problems in the tokens of preference pairs, which are refused or reported: one table, `KINDS`.

Texts are not enough: a chat template may cut the difference of two answers, a tokenizer may end an answer twice. So
every pair is examined as the model sees it. A kind that makes the results of its pairs meaningless, or that no model
can compute, is refused; the others are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tune_dlrml.data import looks
from tune_dlrml.data.looks import Find, each
from tune_dlrml.data.section import Section
from tune_dlrml.data.seen import Context, Seen, seen
from tune_dlrml.data.tokens import CLOCK
from tune_dlrml.models.loading import Reader

if TYPE_CHECKING:
    from tune_dlrml.config import TrainingConfig


@dataclass(frozen=True)
class Kind:
    """A kind of problem in the tokens of a pair.

    Attributes:
        name: In the table of findings.
        words: Description of the pairs, after `4 of 64 pairs`; `{example}` stands for the result of `example`.
        find: Finds such pairs.
        refused: Whether they are refused, or dropped if the file says so; else they are reported.
        remedy: For a refused kind, apart from dropping.
        example: See `words`.
    """

    name: str
    words: str
    find: Find
    refused: bool = False
    remedy: str = ""
    example: Callable[[Seen, Context], str] = field(default=lambda _pair, _context: "")


@dataclass(frozen=True)
class Found:
    """The pairs of a section that are of one kind.

    Attributes:
        key: Of the section.
        kind: Their kind.
        positions: Of the pairs in the section, as it was then.
        of: Pairs of the section.
        places: Where the first ones are.
        text: All of this in a sentence.
    """

    key: str
    kind: Kind
    positions: Sequence[int]
    of: int
    places: str
    text: str


def examine(section: Section, reader: Reader, training: TrainingConfig, *, refused: bool) -> list[Found]:
    """The kinds that occur among the pairs of a section, in the table's order: the refused ones, or the others."""
    context = Context(reader)
    pairs = [seen(pair, tokens, training) for pair, tokens in zip(section.pairs, section.tokens, strict=True)]
    found = []
    for kind in KINDS:
        positions = kind.find(pairs, context) if kind.refused is refused else []
        if positions:
            words = kind.words.format(example=kind.example(pairs[positions[0]], context))
            text = f"{section.key}: {section.some_of_all(positions)} {words}"
            found.append(Found(section.key, kind, positions, len(pairs), section.first_places(positions), text))
    return found


def as_table(found: Sequence[Found]) -> dict[str, Any]:
    """The findings as a table of MLflow; only the last column is a sentence."""
    columns = ["set", "kind", "pairs", "of", "first", "dropped", "text"]
    rows = [
        [each.key, each.kind.name, len(each.positions), each.of, each.places, each.kind.refused, each.text]
        for each in found
    ]
    return {"columns": columns, "data": rows}


ROLES = "give roles that the template knows (dataset.messages.roles)"

KINDS = (
    Kind(
        "turn_left_out",
        "have turns that the chat template always leaves out: those of {example}",
        looks.leaves_turns_out(guiding=False),
        refused=True,
        remedy=ROLES,
        example=looks.roles_left_out,
    ),
    Kind(
        "no_prompt",
        "have no token of a prompt: the chat template skips its roles, or writes a prompt alone and one with its "
        "answer differently from the first token",
        each(looks.has_no_prompt),
        refused=True,
        remedy=ROLES,
    ),
    Kind(
        "no_answer",
        "have a completion without a token: the chat template skips its roles or its text",
        each(looks.has_no_answer),
        refused=True,
        remedy=ROLES,
    ),
    Kind(
        "same_answers",
        "have two completions of the same tokens, which no loss can distinguish: the chat template or the tokenizer "
        "removes the difference of the texts",
        each(looks.has_the_same_answers),
        refused=True,
        remedy="use a model whose template keeps it",
    ),
    Kind(
        "beyond_embeddings",
        "have tokens without an embedding: {example}",
        each(looks.is_beyond_the_embeddings),
        refused=True,
        remedy="give the tokenizer that the model was trained with",
        example=looks.first_unknown,
    ),
    Kind(
        "beyond_positions",
        "are longer than the model can read: it has {example}",
        looks.is_beyond_the_positions(learned=True),
        refused=True,
        remedy="lower training.max_length to the model's positions",
        example=looks.positions,
    ),
    Kind(
        "long_for_the_model",
        "are longer than the model was trained for, so its attention is unreliable: it has {example}",
        looks.is_beyond_the_positions(learned=False),
        example=looks.positions,
    ),
    Kind(
        "prompt_cut_off",
        "have no prompt left after truncation: their completions are scored without it",
        each(looks.lost_its_prompt),
    ),
    Kind(
        "guide_left_out",
        "have turns that the chat template leaves out, so the model does not read them: those of {example}",
        looks.leaves_turns_out(guiding=True),
        example=looks.roles_left_out,
    ),
    Kind(
        "unusual_roles",
        "have turns of {example}, roles that few models are trained with; dataset.messages.roles renames them",
        each(looks.has_unusual_roles),
        example=looks.unusual_roles,
    ),
    Kind(
        "differ_in_space",
        "have two completions that differ only in white space",
        each(looks.differs_in_space),
    ),
    Kind(
        "blank_answer",
        "have a completion of which the chat template keeps only white space and special tokens",
        each(looks.says_nothing),
    ),
    Kind(
        "prompt_twice",
        "have their prompt twice: both completions begin with it again, so the model reads it twice and it is scored",
        each(looks.has_its_prompt_twice),
    ),
    Kind(
        "user_turns",
        "have turns of others than the assistant in the scored part, since chosen and rejected diverge before them",
        each(looks.scores_users),
    ),
    Kind(
        "prompt_parts_early",
        "have a prompt that is written differently alone and with its answer: its end {example} is in no sequence that "
        "is trained on, though the model reads it when it generates",
        each(looks.parts_early),
        example=looks.lost_end,
    ),
    Kind(
        "begins_twice",
        "have the beginning-of-sequence token twice: the tokenizer puts one before that of the text",
        each(looks.begins_twice),
    ),
    Kind(
        "ends_twice",
        "have a completion with the end-of-sequence token twice, so the model learns to continue after the first",
        each(looks.ends_twice),
    ),
    Kind("unknown_words", "have words that the tokenizer does not know", each(looks.has_unknown_words)),
    Kind(
        "prefilled",
        "have a prompt that ends with a turn of the assistant: it is closed, and the completion is a turn of its own",
        each(looks.ends_with_an_answer),
    ),
    Kind(
        "dated",
        f"have the date in their chat template: it is {CLOCK:%d %b %Y} for all searches, so that every worker group "
        "and every resume trains on the same tokens",
        each(looks.is_dated),
    ),
    Kind(
        "both_ways",
        "contradict another pair, which prefers the two completions the other way round",
        looks.contradicting,
    ),
    Kind("repeated", "repeat an earlier one, so they count more than once", looks.repeated),
)
"""All kinds, the most serious first; a new one is a row here and a predicate in `looks`."""
