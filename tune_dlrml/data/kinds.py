"""What the tokens of preference pairs must not be, and what a person should know of them: one table, `KINDS`.

Texts do not tell: a chat template may cut what tells two answers apart, a tokenizer may end an answer twice. So every
pair is looked at as the model meets it. A kind that makes the number of its pairs meaningless, or that no model can
compute, is refused; the others are reported.
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
    """Something that the tokens of a pair may be.

    Attributes:
        name: In the table of findings.
        words: What the pairs do, behind `4 of 64 pairs`; `{example}` stands for what `example` says of the first.
        find: Which pairs are so.
        refused: Whether they are refused, or dropped where the file says so; else they are reported.
        remedy: Of a refused kind, beside dropping.
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
        kind: What they are.
        positions: Of the pairs in the section, as it was then.
        of: Pairs of the section.
        places: Where the first ones are.
        text: All that in a sentence.
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
    """What was found, as MLflow shows a table; no column is a sentence but the last."""
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
        "have turns that the chat template leaves out, whatever they say: those of {example}",
        looks.leaves_turns_out(guiding=False),
        refused=True,
        remedy=ROLES,
        example=looks.roles_left_out,
    ),
    Kind(
        "no_prompt",
        "have no token of a prompt: the chat template passes over its roles, or writes a prompt alone and one with its "
        "answer differently from the first token",
        each(looks.has_no_prompt),
        refused=True,
        remedy=ROLES,
    ),
    Kind(
        "no_answer",
        "have a completion without a token: the chat template passes over its roles or its text",
        each(looks.has_no_answer),
        refused=True,
        remedy=ROLES,
    ),
    Kind(
        "same_answers",
        "have two completions of the same tokens, which no loss tells apart: what differs in the texts is cut out by "
        "the chat template or the tokenizer",
        each(looks.has_the_same_answers),
        refused=True,
        remedy="take a model whose template keeps it",
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
        "are longer than what the model was trained for, where its attention is a guess: it has {example}",
        looks.is_beyond_the_positions(learned=False),
        example=looks.positions,
    ),
    Kind(
        "prompt_cut_off",
        "keep nothing of their prompt behind the truncation: their completions are scored without it",
        each(looks.lost_its_prompt),
    ),
    Kind(
        "guide_left_out",
        "have turns that the chat template leaves out, so that the model reads none of them: those of {example}",
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
        "have two completions that differ in white space alone",
        each(looks.differs_in_space),
    ),
    Kind(
        "blank_answer",
        "have a completion of which the chat template leaves white space and special tokens only",
        each(looks.says_nothing),
    ),
    Kind(
        "prompt_twice",
        "have their prompt twice: both completions begin with it again, so the model reads it twice and it is scored",
        each(looks.has_its_prompt_twice),
    ),
    Kind(
        "user_turns",
        "have turns of others than the assistant in what is scored, since chosen and rejected part before them",
        each(looks.scores_users),
    ),
    Kind(
        "prompt_parts_early",
        "have a prompt that is written otherwise alone than with its answer: its end {example} is in no sequence that "
        "is trained on, though the model reads it when it is asked",
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
        "have a completion with the end-of-sequence token twice, so the model learns to go on behind the first",
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
    Kind("repeated", "repeat an earlier one, and so count more than once", looks.repeated),
)
"""All kinds, the gravest first; a new one is a row here and a predicate above."""
