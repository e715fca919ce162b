"""From rows as they were read to preference pairs in one format, or to a message that names the first bad rows."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tune_dlrml.errors import InputError

COMPLETIONS = ("chosen", "rejected")
COLUMNS = ("prompt", *COMPLETIONS)
FIELDS = ("role", "content")
FAULTS_SHOWN = 3
NAMES_SHOWN = 8
SHORT = 80
"""Characters of a value that a message shows."""
TEXT_LIMIT = 1_000_000
"""Characters of one text: more than any model reads, and few enough that a tokenizer is done with it in a second."""

Cell = str | list[dict[str, str]]
Pair = dict[str, Cell]


class Fault(ValueError):
    """Why one row is no preference pair."""


@dataclass(frozen=True)
class Row:
    """A row as it was read; `value` is a Fault where it could not be, `unread` names columns that were left unread."""

    place: str
    value: object
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Rows told apart: the pairs with their places, and what is wrong with the others, in their order.

    `unused` says how many of the pairs came with fields that are not used, and which; empty where none did.
    """

    pairs: list[Pair]
    places: list[str]
    faults: list[str]
    unused: str


def check_rows(rows: Sequence[Row], source: str) -> Checked:
    """The rows as pairs with an explicit prompt, and the faults of those that are none.

    A prompt is explicit where any row gives one; otherwise it is the start that chosen and rejected share.

    Raises:
        InputError: There is no row.
    """
    if not rows:
        raise InputError(f"{source}: no rows; at least one preference pair is needed.")
    explicit = any(isinstance(row.value, dict) and row.value.get("prompt") is not None for row in rows)
    pairs: list[Pair] = []
    places: list[str] = []
    faults: list[str] = []
    unused: list[tuple[str, list[str]]] = []
    for row in rows:
        try:
            pair = _pair(row.value, explicit=explicit)
            if pairs and _format(pair["chosen"]) != _format(pairs[0]["chosen"]):
                here, there = _format(pair["chosen"]), _format(pairs[0]["chosen"])
                raise Fault(f"`chosen` is {here}, but that of the rows before is {there}; all rows must be the same")
            pairs.append(pair)
            places.append(row.place)
            if names := _unused(row):
                unused.append((row.place, names))
        except Fault as fault:
            faults.append(f"{row.place}: {fault}")
    return Checked(pairs, places, faults, _unused_message(unused, len(rows)))


def faults_message(faults: Sequence[str], rows: int, source: str) -> str:
    """How many of the rows are no pairs, and what is wrong with the first three."""
    if len(faults) == 1:
        return f"{source}: {faults[0]}."
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    lines = "".join(f"\n  {line}" for line in [*faults[:FAULTS_SHOWN], *more])
    return f"{source}: {len(faults)} of {rows} rows are no preference pairs:{lines}"


def _unused(row: Row) -> list[str]:
    """Fields of a row, and of its messages, that no pair has a place for; in a table, null stands for none."""
    assert isinstance(row.value, dict)
    columns = [name for name, given in row.value.items() if name not in COLUMNS and given is not None]
    turns = [name for column in COLUMNS for name in _unused_of_turns(row.value.get(column))]
    return [*row.unread, *columns, *turns]


def _unused_of_turns(cell: object) -> list[str]:
    turns = [turn for turn in cell if isinstance(turn, dict)] if isinstance(cell, list) else []
    return [name for turn in turns for name, given in turn.items() if name not in FIELDS and given is not None]


def _unused_message(unused: Sequence[tuple[str, Sequence[str]]], rows: int) -> str:
    if not unused:
        return ""
    names = _some_names(dict.fromkeys(name for _, own in unused for name in own))
    return f"{len(unused)} of {rows} rows have fields that are not used: {names} (first: {unused[0][0]})"


def _some_names(names: Collection[str]) -> str:
    shown = [
        name if name.isidentifier() and len(name) <= SHORT else _short(name) for name in islice(names, NAMES_SHOWN)
    ]
    more = [f"and {len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return ", ".join(shown + more)


def _pair(value: object, *, explicit: bool) -> Pair:
    if isinstance(value, Fault):
        raise value
    if not isinstance(value, dict):
        raise Fault(f"must be a mapping with the columns {', '.join(COLUMNS)}, but got {_short(value)}")
    chosen, rejected = _cell(value, "chosen"), _cell(value, "rejected")
    if _format(chosen) != _format(rejected):
        raise Fault(f"`chosen` is {_format(chosen)}, but `rejected` is {_format(rejected)}; both must be the same")
    if chosen == rejected:
        others = _some_names(dict.fromkeys(name for column in COMPLETIONS for name in _unused_of_turns(value[column])))
        compared = f" in role or content (other fields are not compared: {others})" if others else ""
        raise Fault(f"`chosen` and `rejected` must differ{compared}, but both are {_short(chosen)}")
    prompt = _cell(value, "prompt") if explicit else None
    if prompt is None:
        return _split(chosen, rejected, "`prompt` is missing, and `chosen` and `rejected` share no start to be it")
    if _format(prompt) == _format(chosen):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    mixed = f"`prompt` is {_format(prompt)}, but `chosen` is {_format(chosen)}; both must be the same"
    if isinstance(prompt, str):
        # Data sets such as UltraFeedback repeat the prompt as a text beside whole conversations.
        return _split(chosen, rejected, mixed)
    raise Fault(mixed)


def _split(chosen: Cell, rejected: Cell, without_start: str) -> Pair:
    start = _length_of_prompt(chosen, rejected)
    pair: Pair = {"prompt": chosen[:start], "chosen": chosen[start:], "rejected": rejected[start:]}
    if _is_empty(pair["prompt"]):
        raise Fault(f"{without_start}, but got {_short(chosen)} and {_short(rejected)}")
    for column in COMPLETIONS:
        if _is_empty(pair[column]):
            raise Fault(f"`{column}` must not be empty after the start that both share, but got {_short(pair[column])}")
    return pair


def _length_of_prompt(chosen: Cell, rejected: Cell) -> int:
    """Length of the shared start, by TRL's rule.

    The space before two texts part belongs to them, not to the prompt. Where one continues the other, the last turn
    (or letter) of the shorter is its completion.
    """
    shorter = min(len(chosen), len(rejected))
    shared = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    if shared == shorter or (shared > 0 and chosen[shared - 1] == " "):
        return shared - 1
    return shared


def _cell(row: dict[str, Any], column: str) -> Cell:
    given = row.get(column)
    if given is None:
        columns = _some_names(row) or "none"
        raise Fault(f"column `{column}` is needed, but is missing or null; the columns given are {columns}")
    if isinstance(given, str):
        cell: Cell = _text(given, column)
    elif isinstance(given, list):
        cell = [_turn(turn, column) for turn in given]
    else:
        raise Fault(f"`{column}` must be a text or a list of messages, but got {_short(given)}")
    if _is_empty(cell):
        raise Fault(f"`{column}` must not be empty, but got {_short(given)}")
    return cell


def _turn(turn: object, column: str) -> dict[str, str]:
    """Role and content, which alone are trained on; other fields, such as `tool_calls`, are told as not used."""
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise Fault(f"each message of `{column}` must be {{role: text, content: text}}, but got {_short(turn)}")
    return {"role": _text(role, column), "content": _text(content, column)}


def _text(text: str, column: str) -> str:
    if len(text) > TEXT_LIMIT:
        raise Fault(f"a text of `{column}` must have at most {TEXT_LIMIT:,} characters, but has {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"`{column}` must be Unicode text, but character {error.start} is half of a pair") from None
    return text


def _format(cell: Cell) -> str:
    return "a text" if isinstance(cell, str) else "a list of messages"


def _is_empty(cell: Cell) -> bool:
    texts = [cell] if isinstance(cell, str) else [turn["content"] for turn in cell]
    return not any(text.strip() for text in texts)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= SHORT else f"{text[:SHORT]}..."
    return text.encode("utf-8", "backslashreplace").decode()
