"""Token ids of preference pairs as TRL 1.16 makes them, without TRL, so that a search knows them before it starts.

Pairs are tokenised here, in the driver, and nowhere else: every worker group and every resume trains on the same ids.
A chat template that writes the date is rendered as of `CLOCK`, or the ids would depend on when they are made.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tune_dlrml.data.pairs import COMPLETIONS, Cell, Fault, Pair, roles_of, some_names
from tune_dlrml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokens = array[int]

BATCH = 500
ERROR_SHOWN = 200
"""Most characters of a chat template's error that a message shows."""
CLOCK = datetime(2024, 7, 26, 12)
"""Date for chat templates: the one that Llama's templates write by default."""
ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
ID_BYTES = array("i").itemsize
_TEMPLATE_ERRORS = (TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class TokenPair:
    """Tokens of one pair, before truncation.

    Attributes:
        prompt: The common start of the prompt alone and of the prompt with either completion.
        chosen: The rest of prompt and chosen completion.
        rejected: The same of the rejected one.
        lost: The end of the prompt alone after `prompt`, which TRL leaves out; empty where the prompt is complete.
        dated: Whether the chat template asked for the time.
    """

    prompt: Tokens
    chosen: Tokens
    rejected: Tokens
    lost: Tokens
    dated: bool = False

    @property
    def length(self) -> int:
        """Tokens of the longer sequence of prompt and completion."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class TokenRows(Sequence[dict[str, list[int]]]):
    """Rows of token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`), four bytes a token.

    Args:
        parts: Prompt, chosen and rejected completion of each row, one after another.
    """

    def __init__(self, parts: Sequence[Sequence[int]]) -> None:
        joined = array("i")
        for part in parts:
            joined.extend(part)
        self._ids = np.frombuffer(joined, dtype=np.int32) if joined else np.empty(0, dtype=np.int32)
        self._ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)

    @classmethod
    def of(cls, pairs: Sequence[TokenPair]) -> TokenRows:
        """The rows of these pairs."""
        return cls([part for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)])

    def __len__(self) -> int:
        return (len(self._ends) - 1) // len(ID_COLUMNS)

    @overload
    def __getitem__(self, index: int) -> dict[str, list[int]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, list[int]]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, list[int]] | list[dict[str, list[int]]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        first = range(len(self))[index] * len(ID_COLUMNS)
        ends = self._ends[first : first + len(ID_COLUMNS) + 1]
        return {name: self._ids[ends[at] : ends[at + 1]].tolist() for at, name in enumerate(ID_COLUMNS)}

    def sha256(self) -> str:
        """Of all ids and of where each part ends."""
        return hashlib.sha256(self._ends.astype("<i8").tobytes() + self._ids.astype("<i4").tobytes()).hexdigest()


def tokenize(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenPair | Fault]:
    """The tokens of each pair, or why the chat template refuses it.

    Raises:
        InputError: The tokenizer lacks what the format of the pairs needs.
    """
    conversational = not isinstance(pairs[0]["chosen"], str)
    if conversational and tokenizer.chat_template is None:
        raise InputError("the model's tokenizer has no chat template, which lists of messages need; give texts instead")
    if not conversational and tokenizer.eos_token is None:
        raise InputError("the model's tokenizer has no end-of-sequence token, with which completions end; give it one")
    for start in range(0, len(pairs), BATCH):
        yield from _tokenize_batch(pairs[start : start + BATCH], tokenizer)


def turns_left_out(roles: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Positions of the turns whose text the chat template does not write, whatever the text is."""
    from jinja2 import TemplateError

    marks = [f"Turn{number}Text" for number in range(10, 10 + len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        written = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, *_TEMPLATE_ERRORS):
        return []  # what it refuses was refused when the pairs themselves were rendered
    return [position for position, mark in enumerate(marks) if mark not in written]


@contextmanager
def fixed_clock() -> Iterator[Callable[[], int]]:
    """Let chat templates that ask for the time have `CLOCK`; yields how often one has asked."""
    from transformers.utils import chat_template_utils

    asked = 0

    def now() -> datetime:
        nonlocal asked
        asked += 1
        return CLOCK

    # A template gets no function as an argument, and transformers' own `strftime_now` reads this name.
    real, chat_template_utils.datetime = chat_template_utils.datetime, SimpleNamespace(now=now)  # type: ignore[attr-defined]
    try:
        yield lambda: asked
    finally:
        chat_template_utils.datetime = real  # type: ignore[attr-defined]


def _tokenize_batch(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenPair | Fault]:
    alone = _encoded([pair["prompt"] for pair in pairs], tokenizer, add_generation_prompt=True)
    chosen, rejected = (
        _encoded([_sequence(pair, column, tokenizer) for pair in pairs], tokenizer) for column in COMPLETIONS
    )
    for parts in zip(alone, chosen, rejected, strict=True):
        fault = next((part for part in parts if isinstance(part, Fault)), None)
        yield _split(*(part for part in parts if not isinstance(part, Fault))) if fault is None else fault


@dataclass(frozen=True)
class _Encoded:
    ids: Tokens
    dated: bool


def _split(alone: _Encoded, chosen: _Encoded, rejected: _Encoded) -> TokenPair:
    """By TRL's rule the prompt ends where its tokens diverge from those of either sequence."""
    end = min(_shared(alone.ids, chosen.ids), _shared(alone.ids, rejected.ids))
    dated = alone.dated or chosen.dated or rejected.dated
    return TokenPair(alone.ids[:end], chosen.ids[end:], rejected.ids[end:], alone.ids[end:], dated)


def _shared(ids: Tokens, other: Tokens) -> int:
    """Number of tokens with which both begin."""
    length = min(len(ids), len(other))
    differs = np.frombuffer(ids, dtype=np.int32)[:length] != np.frombuffer(other, dtype=np.int32)[:length]
    return int(differs.argmax()) if differs.any() else length


def _sequence(pair: Pair, column: str, tokenizer: PreTrainedTokenizerBase) -> Cell:
    prompt, completion = pair["prompt"], pair[column]
    if isinstance(completion, str):
        ended = completion if completion.endswith(tokenizer.eos_token) else completion + tokenizer.eos_token
        return f"{prompt}{ended}"
    return [*prompt, *completion]  # type: ignore[list-item]


def _encoded(cells: Sequence[Cell], tokenizer: PreTrainedTokenizerBase, **template: Any) -> Sequence[_Encoded | Fault]:
    if isinstance(cells[0], str):
        return [_Encoded(array("i", ids), dated=False) for ids in tokenizer(list(cells), verbose=False)["input_ids"]]
    from jinja2 import TemplateError

    def apply(conversations: list[Cell]) -> list[_Encoded]:
        options = {"return_dict": True, "tokenizer_kwargs": {"verbose": False}, **template}
        with fixed_clock() as asked:
            encoded: Any = tokenizer.apply_chat_template(conversations, tokenize=True, **options)
        return [_Encoded(array("i", ids), dated=asked() > 0) for ids in encoded["input_ids"]]

    def apply_to_one(conversation: Cell) -> _Encoded | Fault:
        try:
            return apply([conversation])[0]
        except (TemplateError, *_TEMPLATE_ERRORS) as error:
            roles = some_names(dict.fromkeys(roles_of(conversation)))
            why = " ".join(str(error).split())[:ERROR_SHOWN]
            return Fault(f"the model's chat template refuses it ({why}; its roles: {roles})")

    try:
        together = apply(list(cells))
    except (TemplateError, *_TEMPLATE_ERRORS):
        return [apply_to_one(cell) for cell in cells]
    # Which conversation asked for the time is seen only one by one.
    return [apply_to_one(cell) for cell in cells] if together[0].dated else together
