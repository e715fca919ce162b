"""Predicates that find the pairs of a kind, from the tokens of a pair or, where tokens are not enough, its roles."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tune_dlrml.data.pairs import COLUMNS, COMPLETIONS, Cell, roles_of, some_names
from tune_dlrml.data.seen import Context, Seen, Side
from tune_dlrml.data.tokens import ID_BYTES

if TYPE_CHECKING:
    from tune_dlrml.data.tokens import Tokens

ANSWERING = frozenset({"assistant", "model", "gpt", "bot", "chatbot", "ai"})
"""Roles of messages that a model writes."""
GUIDING = frozenset({"system", "developer", "tool", "function", "ipython", "environment", "observation"})
"""Roles of messages that neither ask nor answer."""
USUAL = GUIDING | {"user", "assistant", "model"}
"""Names of roles in the chat templates of models."""
_USER_LABEL = re.compile(
    r"^[ \t]*(?:#+ *)?(human|user|instruction|question)\b[^\n:]{0,20}:", re.IGNORECASE | re.MULTILINE
)
_USER_MARK = re.compile(
    r"<\|(?:im_start|start_header_id|start)\|>\s*user\b|<start_of_turn>user\b|<\|user\|>|\[INST\]|\n\nHuman:",
    re.IGNORECASE,
)
LEAST_REPEATED = 3
"""Tokens of a prompt, without its ends, that do not occur twice by chance."""
HEADER = 8
"""Tokens that a template may put between a prompt and its repetition."""

Find = Callable[[Sequence[Seen], Context], list[int]]
"""Positions of the pairs that are of a kind."""


def each(is_so: Callable[[Seen, Context], bool]) -> Find:
    """Find the pairs for which a predicate holds."""
    return lambda pairs, context: [index for index, pair in enumerate(pairs) if is_so(pair, context)]


def has_no_prompt(pair: Seen, _: Context) -> bool:
    """Whether there is nothing before the completions."""
    return not pair.tokens.prompt


def leaves_turns_out(*, guiding: bool) -> Find:
    """Find the pairs of which the chat template leaves out whole turns, of guiding roles or of the others."""

    def is_so(pair: Seen, context: Context) -> bool:
        return any((role in GUIDING) is guiding for role in context.roles_left_out(pair.pair))

    return each(is_so)


def roles_left_out(pair: Seen, context: Context) -> str:
    """The roles of the turns that are left out."""
    return some_names(context.roles_left_out(pair.pair))


def has_unusual_roles(pair: Seen, _: Context) -> bool:
    """Whether a turn is of a role that models are not trained with."""
    return bool(_unusual(pair))


def unusual_roles(pair: Seen, _: Context) -> str:
    """Those roles."""
    return some_names(_unusual(pair))


def _unusual(pair: Seen) -> dict[str, None]:
    roles = (role for column in COLUMNS for role in roles_of(pair.pair[column]))
    return dict.fromkeys(role for role in roles if role not in USUAL)


def has_no_answer(pair: Seen, _: Context) -> bool:
    """Whether a completion has no token."""
    return not (pair.tokens.chosen and pair.tokens.rejected)


def has_the_same_answers(pair: Seen, _: Context) -> bool:
    """Whether both completions are the same tokens."""
    return pair.tokens.chosen == pair.tokens.rejected and bool(pair.tokens.chosen)


def is_beyond_the_embeddings(pair: Seen, context: Context) -> bool:
    """Whether a token has no row in the model's table."""
    known = context.reader.vocabulary
    return known is not None and any(max(side.ids, default=0) >= known for side in pair.sides)


def first_unknown(pair: Seen, context: Context) -> str:
    """The first token without an embedding."""
    known = context.reader.vocabulary
    assert known is not None
    token = next(token for side in pair.sides for token in side.ids if token >= known)
    return f"{context.reader.tokenizer.decode([token])!r} is token {token}, and the model has embeddings of {known}"


def is_beyond_the_positions(*, learned: bool) -> Find:
    """Find the pairs that are longer than the model's positions, which are a learned table or not."""

    def is_so(pair: Seen, context: Context) -> bool:
        reader = context.reader
        if reader.positions is None or reader.learned_positions is not learned:
            return False
        return pair.longest > reader.positions

    return each(is_so)


def positions(pair: Seen, context: Context) -> str:
    """The number of positions, and of the tokens of a pair."""
    return f"{context.reader.positions} positions, and the first of them has {pair.longest} tokens"


def lost_its_prompt(pair: Seen, _: Context) -> bool:
    """Whether truncation leaves nothing of the prompt."""
    return bool(pair.tokens.prompt) and any(not side.prompt for side in pair.sides)


def says_nothing(pair: Seen, context: Context) -> bool:
    """Whether a completion has no word."""
    unknown = context.reader.tokenizer.unk_token_id

    def blank(ids: Tokens) -> bool:
        return all(token in context.special or context.is_blank(token) for token in ids) and unknown not in ids

    return any(part and blank(part) for part in (pair.tokens.chosen, pair.tokens.rejected))


def has_its_prompt_twice(pair: Seen, context: Context) -> bool:
    """Whether the prompt begins again where both completions begin; its ends may be merged with what is beside them."""
    core = list(pair.tokens.prompt)
    start = next((index for index, token in enumerate(core) if token not in context.special), len(core)) + 1
    stop = next((index for index in range(len(core), start, -1) if core[index - 1] not in context.special), start) - 1
    core = core[start:stop]
    if len(core) < LEAST_REPEATED:
        return False
    sequences = (pair.tokens.prompt + part for part in (pair.tokens.chosen, pair.tokens.rejected))
    return all(_comes_again(ids, array("i", core), start, len(pair.tokens.prompt)) for ids in sequences)


def _comes_again(ids: Tokens, core: Tokens, start: int, prompt: int) -> bool:
    first = max(start + 1, prompt - min(HEADER, len(core) - 1))  # it ends behind the prompt, whose words may repeat
    window = ids[first : prompt + HEADER + len(core)].tobytes()
    at = window.find(core.tobytes())
    while at >= 0 and at % ID_BYTES:
        at = window.find(core.tobytes(), at + 1)
    return at >= 0


def scores_users(pair: Seen, _: Context) -> bool:
    """Whether a completion has turns of others than the model."""
    for column in COMPLETIONS:
        answer = pair.pair[column]
        if isinstance(answer, str):
            if _USER_MARK.search(answer) or _labels(answer) & _labels(str(pair.pair["prompt"])):
                return True
        elif any(turn["role"].lower() not in ANSWERING for turn in answer):
            return True
    return False


def _labels(text: str) -> set[str]:
    """Labels of a user's lines; in an answer they are turns only if the prompt has them, too."""
    return {label.lower() for label in _USER_LABEL.findall(text)}


def parts_early(pair: Seen, context: Context) -> bool:
    """Whether the prompt ends differently alone and before a completion."""
    return bool(pair.tokens.lost)


def lost_end(pair: Seen, context: Context) -> str:
    """The end of the prompt alone that no sequence has."""
    return repr(context.reader.tokenizer.decode(list(pair.tokens.lost)))


def begins_twice(pair: Seen, context: Context) -> bool:
    """Whether a sequence begins with two beginnings."""
    bos = context.reader.tokenizer.bos_token_id
    return bos is not None and any(list(side.ids[:2]) == [bos, bos] for side in pair.sides)


def ends_twice(pair: Seen, context: Context) -> bool:
    """Whether a completion ends with two ends, with or without white space between them."""
    return any(_ends(side.completion, context) > 1 for side in pair.sides)


def _ends(ids: Tokens, context: Context) -> int:
    """End-of-sequence tokens at the end, white space between them left out."""
    eos, count = context.reader.tokenizer.eos_token_id, 0
    for token in reversed(ids):
        if token == eos:
            count += 1
        elif not context.is_blank(token):
            break
    return count


def differs_in_space(pair: Seen, _: Context) -> bool:
    """Whether both completions differ only in white space, but in their tokens."""
    chosen, rejected = (_written(pair.pair[column]) for column in COMPLETIONS)
    return chosen == rejected and pair.tokens.chosen != pair.tokens.rejected


def _written(cell: Cell) -> list[str]:
    texts = [cell] if isinstance(cell, str) else [text for turn in cell for text in (turn["role"], turn["content"])]
    return ["".join(text.split()) for text in texts]


def has_unknown_words(pair: Seen, context: Context) -> bool:
    """Whether there is an unknown token."""
    tokenizer = context.reader.tokenizer
    unknown = tokenizer.unk_token_id
    means_more = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return unknown is not None and unknown not in means_more and any(unknown in side.ids for side in pair.sides)


def ends_with_an_answer(pair: Seen, _: Context) -> bool:
    """Whether the model's own turn comes last in the prompt."""
    prompt = pair.pair["prompt"]
    return not isinstance(prompt, str) and prompt[-1]["role"].lower() in ANSWERING


def is_dated(pair: Seen, _: Context) -> bool:
    """Whether the chat template asked for the time."""
    return pair.tokens.dated


def _identity(first: Side, second: Side) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(part).digest() for side in (first, second) for part in (side.prompt, side.completion))


def repeated(pairs: Sequence[Seen], _: Context) -> list[int]:
    """The pairs that occur earlier in the same order."""
    known: set[tuple[bytes, ...]] = set()
    found = []
    for index, pair in enumerate(pairs):
        own = _identity(pair.chosen, pair.rejected)
        found += [index] if own in known else []
        known.add(own)
    return found


def contradicting(pairs: Sequence[Seen], _: Context) -> list[int]:
    """The pairs that also occur in the other order."""
    own = [_identity(pair.chosen, pair.rejected) for pair in pairs]
    other = [_identity(pair.rejected, pair.chosen) for pair in pairs]
    known = set(own)
    return [index for index in range(len(pairs)) if other[index] in known and other[index] != own[index]]
