"""The cells of a preference pair: texts or lists of messages, read from the configured columns."""

import json
import re
from collections.abc import Collection
from itertools import islice
from typing import Any

from tune_dlrml.config import MessagesConfig

COMPLETIONS = ("chosen", "rejected")
COLUMNS = ("prompt", *COMPLETIONS)
NAMES_SHOWN = 8
SHORT = 80
"""Characters of a value that a message shows."""
TEXT_LIMIT = 1_000_000
"""Most characters of one text: more than any model reads, and few enough to tokenize within a second."""

Cell = str | list[dict[str, str]]
Pair = dict[str, Cell]

_OPENING = re.compile(r"""[\s"'\\]*(?:array\()?\s*[\[{]""")
_KEY = r"""["'\\]+(?:{})["'\\]+\s*:\s*["'\\]+"""
_ROLES = ("user", "assistant", "system", "human", "gpt", "chatgpt", "bot", "model", "tool", "function", "developer")
DUMPED_WITHIN = 4096
"""Characters within which role and content must occur for a text to count as a dumped list of messages."""


class Fault(ValueError):
    """Why one row is not a preference pair."""


def read_cell(row: dict[str, Any], column: str, fields: MessagesConfig, others: Collection[str] = ()) -> Cell:
    """The text or the messages of a column, with roles as the chat template calls them.

    Args:
        row: As it was read.
        column: Its name in the file.
        fields: Names of the fields of a message.
        others: Columns that the file has beside those of `row`.

    Raises:
        Fault: It is missing, empty or something else.
    """
    given = row.get(column)
    if given is None:
        columns = some_names([*row, *others]) or "none"
        raise Fault(
            f"column `{column}` is needed, but is missing or null; the columns given are {columns} (dataset.columns "
            "maps their names)"
        )
    if isinstance(given, str):
        cell: Cell = _text(given, column, fields)
    elif isinstance(given, list) or _is_message(given, fields):
        turns = given if isinstance(given, list) else [given]
        cell = [_turn(turn, column, fields) for turn in turns]
    else:
        raise Fault(f"`{column}` must be a text or a list of messages, but got {short(given)}")
    if is_empty(cell):
        raise Fault(f"`{column}` must not be empty, but got {short(given)}")
    return cell


def _is_message(given: object, fields: MessagesConfig) -> bool:
    """Whether it is one message, as files of pairs with a conversation before them have it."""
    return isinstance(given, dict) and {fields.role, fields.content} <= set(given)


def _turn(turn: object, column: str, fields: MessagesConfig) -> dict[str, str]:
    """Role and content, the only fields that are used; others, such as `tool_calls`, are reported as unused."""
    given = (turn.get(fields.role), turn.get(fields.content)) if isinstance(turn, dict) else (None, None)
    role, content = given
    if not isinstance(role, str) or not isinstance(content, str):
        named = isinstance(turn, dict) and not {fields.role, fields.content} <= set(turn)
        remedy = "; dataset.messages names the fields of other files" if named else ""
        wanted = f"{{{fields.role}: text, {fields.content}: text}}"
        raise Fault(f"each message of `{column}` must be {wanted}, but got {short(turn)}{remedy}")
    role = fields.roles.get(role, role)
    return {"role": _text(role, column, fields), "content": _text(content, column, fields)}


def _text(text: str, column: str, fields: MessagesConfig) -> str:
    if len(text) > TEXT_LIMIT:
        raise Fault(f"a text of `{column}` must have at most {TEXT_LIMIT:,} characters, but has {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"`{column}` must be Unicode text, but character {error.start} is half of a pair") from None
    if _is_dumped(text, fields):
        raise Fault(
            f"`{column}` is a text with messages written as JSON or Python, not a list of messages; write the rows "
            f"again with the list itself (json.loads or ast.literal_eval reads it), but got {short(text)}"
        )
    return text


def _is_dumped(text: str, fields: MessagesConfig) -> bool:
    """Whether it is messages written as JSON, as Python's repr or as numpy's, whole or cut off, once or twice."""
    if _OPENING.match(text) is None:
        return False
    start = text[:DUMPED_WITHIN]
    names = ((fields.role, "role", "from"), (fields.content, "content", "value"))
    role, content = (_KEY.format("|".join(map(re.escape, own))) for own in names)
    speaker = "|".join(map(re.escape, (*_ROLES, *fields.roles)))
    return bool(re.search(f"{role}(?:{speaker})[\"'\\\\]", start, re.IGNORECASE) and re.search(content, start))


def format_name(cell: Cell) -> str:
    """The form of a cell, for messages."""
    return "a text" if isinstance(cell, str) else "a list of messages"


def roles_of(cell: Cell) -> tuple[str, ...]:
    """Roles of the messages of a cell; a text has none."""
    return () if isinstance(cell, str) else tuple(turn["role"] for turn in cell)


def is_empty(cell: Cell) -> bool:
    """Whether there is nothing but space in it."""
    texts = [cell] if isinstance(cell, str) else [turn["content"] for turn in cell]
    return not any(text.strip() for text in texts)


def some_names(names: Collection[str]) -> str:
    """The first names, for a message."""
    shown = [name if name.isidentifier() and len(name) <= SHORT else short(name) for name in islice(names, NAMES_SHOWN)]
    more = [f"and {len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return ", ".join(shown + more)


def short(value: object) -> str:
    """A value as JSON, cut to what a message shows."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= SHORT else f"{text[:SHORT]}..."
    return text.encode("utf-8", "backslashreplace").decode()
