"""A preference pair as the model sees it: as token ids, after chat template and truncation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tune_dlrml.data.pairs import COMPLETIONS, Pair, roles_of
from tune_dlrml.data.tokens import TokenPair, turns_left_out
from tune_dlrml.models.loading import Reader

if TYPE_CHECKING:
    from tune_dlrml.config import TrainingConfig
    from tune_dlrml.data.tokens import Tokens


@dataclass(frozen=True)
class Context:
    """Shared state for examining the pairs of a section."""

    reader: Reader

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids without a text."""
        tokenizer = self.reader.tokenizer
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset({*tokenizer.all_special_ids, *added})

    @cached_property
    def left_out(self) -> dict[tuple[str, ...], list[str]]:
        """Cache: roles that the chat template leaves out, by the roles of a conversation."""
        return {}

    def roles_left_out(self, pair: Pair) -> list[str]:
        """Roles of the turns of a pair that the chat template leaves out, each once."""
        found: dict[str, None] = {}
        for column in COMPLETIONS:
            roles = (*roles_of(pair["prompt"]), *roles_of(pair[column]))
            if roles not in self.left_out:
                out = turns_left_out(roles, self.reader.tokenizer) if roles else []
                self.left_out[roles] = [roles[position] for position in out]
            found |= dict.fromkeys(self.left_out[roles])
        return list(found)

    @cached_property
    def blanks(self) -> dict[int, bool]:
        """Cache: whether a token is white space."""
        return {}

    def is_blank(self, token: int) -> bool:
        """Whether a token is nothing but white space."""
        if token not in self.blanks:
            self.blanks[token] = token not in self.special and not self.reader.tokenizer.decode([token]).strip()
        return self.blanks[token]


@dataclass(frozen=True)
class Side:
    """Prompt and completion of one sequence after truncation."""

    prompt: Tokens
    completion: Tokens

    @property
    def ids(self) -> Tokens:
        """The sequence."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Seen:
    """A pair as the model sees it."""

    pair: Pair
    tokens: TokenPair
    chosen: Side
    rejected: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sequences."""
        return self.chosen, self.rejected

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return max(len(side.ids) for side in self.sides)


def seen(pair: Pair, tokens: TokenPair, training: TrainingConfig) -> Seen:
    """A pair after truncation, as in TRL."""
    return Seen(pair, tokens, *(_side(tokens.prompt, part, training) for part in (tokens.chosen, tokens.rejected)))


def _side(prompt: Tokens, completion: Tokens, training: TrainingConfig) -> Side:
    room, length = training.max_length, len(prompt) + len(completion)
    if room is None or length <= room:
        return Side(prompt, completion)
    if training.truncation_mode == "keep_end":
        cut = length - room
        return Side(prompt[cut:], completion[max(0, cut - len(prompt)) :])
    return Side(prompt[:room], completion[: max(0, room - len(prompt))])
