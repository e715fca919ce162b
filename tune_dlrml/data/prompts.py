"""From the cells of a row to a pair with an explicit prompt, which is never guessed.

Two conversations part at a message, so the messages that they share are their prompt. Two texts part anywhere: what
they share is a prompt only up to the border of a word, and only where no other column can hold it.
"""

import re
import unicodedata
from typing import Any

from tune_dlrml.config import RowsConfig
from tune_dlrml.data.pairs import COMPLETIONS, Cell, Fault, Pair, format_name, is_empty, read_cell, short, some_names

_SPACE = re.compile(r"\s+")
_LABEL = re.compile(
    r"^[ \t]*(?:#+ *)?\w+(?: \w+)?[ \t]*[:\uff1a]|[:\uff1a]\s*\Z|\[/INST\]|<\|im_start\|>\w+\n?|<start_of_turn>\w+\n?"
    r"|<\|end_header_id\|>\s*|<[|\uff5c](?:assistant|model|bot)[|\uff5c]>\n?",
    re.IGNORECASE | re.MULTILINE,
)
"""Start of a turn in a transcript."""
WITHOUT_SPACES = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI "),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE"),
)
"""How the names of the signs of such scripts begin in Unicode."""
LONG_PROMPT = 24
"""Bytes of a prompt that two answers do not begin with by chance, as they do with a greeting."""
NO_PROMPT = "dataset.columns.prompt: null takes the start that both share"


def make_pair(
    value: dict[str, Any], unread: tuple[str, ...], rows: RowsConfig, *, explicit: bool, echoed: bool = True
) -> Pair:
    """The pair of a row.

    Args:
        value: The row as it was read.
        unread: Columns that the file has beside those of `value`.
        rows: Names of columns and fields, and what to do where answers begin with the prompt.
        explicit: Whether the prompt has a column of its own.
        echoed: Whether the answers repeat a short prompt because that is how the rows were written.

    Raises:
        Fault: It is not a pair.
    """
    names = rows.columns
    chosen, rejected = (read_cell(value, name, rows.messages, unread) for name in (names.chosen, names.rejected))
    if format_name(chosen) != format_name(rejected):
        raise Fault(
            f"`{names.chosen}` is {format_name(chosen)}, but `{names.rejected}` is {format_name(rejected)}; both must "
            "be the same"
        )
    if chosen == rejected:
        both = f"`{names.chosen}` and `{names.rejected}`"
        raise Fault(f"{both} must differ{_compared(value, rows)}, but both are {short(chosen)}")
    prompt = None if not explicit or names.prompt is None else read_cell(value, names.prompt, rows.messages, unread)
    if prompt is None:
        if isinstance(chosen, str):
            _refuse_other_texts(value, rows)
        missing = f"`{names.prompt or 'prompt'}` is missing, and `{names.chosen}` and `{names.rejected}` share no start"
        pair = _split(chosen, rejected, f"{missing} to be it")
    else:
        pair = _with_prompt(prompt, chosen, rejected, rows, echoed=echoed)
    return _with_system(pair, value, rows, explicit=prompt is not None)


def is_echo(value: object, rows: RowsConfig) -> bool | None:
    """Whether both answers repeat the prompt of a row; None for rows without texts."""
    names = (rows.columns.prompt, rows.columns.chosen, rows.columns.rejected)
    prompt, chosen, rejected = (value.get(name) if isinstance(value, dict) and name else None for name in names)
    if not (isinstance(prompt, str) and prompt.strip() and isinstance(chosen, str) and isinstance(rejected, str)):
        return None
    repeated = _repeated(prompt, chosen) and _repeated(prompt, rejected)
    return bool(repeated) or _is_in_transcript(prompt, chosen, rejected)


def unused_of_turns(cell: object, rows: RowsConfig) -> list[str]:
    """Unused fields of messages."""
    turns = [turn for turn in cell if isinstance(turn, dict)] if isinstance(cell, list) else []
    used = (rows.messages.role, rows.messages.content)
    return [name for turn in turns for name, given in turn.items() if name not in used and given is not None]


def _compared(value: dict[str, Any], rows: RowsConfig) -> str:
    cells = [value[name] for name in (rows.columns.chosen, rows.columns.rejected)]
    others = some_names(dict.fromkeys(name for cell in cells for name in unused_of_turns(cell, rows)))
    return f" in role or content (other fields are not compared: {others})" if others else ""


def _refuse_other_texts(value: dict[str, Any], rows: RowsConfig) -> None:
    """Refuse a shared start of two texts as the prompt if another column may hold the prompt."""
    names = rows.columns
    others = [name for name, given in value.items() if name not in names.names() and _holds_text(given)]
    if others and names.prompt is not None:
        raise Fault(
            f"column `{names.prompt}` is missing, and the prompt may be in {some_names(others)}: "
            f"dataset.columns.prompt names its column; {NO_PROMPT}"
        )


def _holds_text(given: object) -> bool:
    if isinstance(given, list):
        return any(isinstance(each, (str, dict)) for each in given)
    return isinstance(given, str) and any(character.isalpha() for character in given)


def _with_prompt(prompt: Cell, chosen: Cell, rejected: Cell, rows: RowsConfig, *, echoed: bool) -> Pair:
    names = rows.columns
    if format_name(prompt) == format_name(chosen):
        pair: Pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        is_greeting = isinstance(prompt, str) and len(prompt.strip().encode()) < LONG_PROMPT and not echoed
        return pair if rows.prompt_in_answers == "keep" or is_greeting else _unrepeated(pair, rows)
    mixed = f"`{names.prompt}` is {format_name(prompt)}, but `{names.chosen}` is {format_name(chosen)}"
    if not isinstance(prompt, str):
        raise Fault(f"{mixed}; both must be the same")
    # Data sets such as UltraFeedback repeat the prompt as a text beside whole conversations.
    pair = _split(chosen, rejected, f"{mixed}; both must be the same")
    turns = [turn["content"] for turn in pair["prompt"] if isinstance(turn, dict)]
    if not any(_words(prompt) in _words(turn) for turn in turns):
        raise Fault(f"{mixed} whose shared start does not contain it ({short(prompt)}); {NO_PROMPT}")
    return pair


def _words(text: str) -> str:
    return " ".join(text.split())


def _unrepeated(pair: Pair, rows: RowsConfig) -> Pair:
    """The pair, unless its answers repeat the prompt, which would then be trained on twice."""
    repeated = [_repeated(pair["prompt"], pair[column]) for column in COMPLETIONS]
    # One answer of two may well quote a text; a message of the prompt is no part of an answer.
    if not (all(repeated) if isinstance(pair["prompt"], str) else any(repeated)):
        if isinstance(pair["prompt"], str) and _is_in_transcript(*map(str, pair.values())):
            raise Fault(f"both answers repeat the prompt after a label ({short(pair['chosen'])}); {NO_PROMPT}")
        return pair
    if rows.prompt_in_answers == "refuse":
        raise Fault(
            f"the answers begin with the prompt again ({short(pair['prompt'])}); set dataset.prompt_in_answers to "
            "strip or keep"
        )
    stripped = {column: pair[column][length:] for column, length in zip(COMPLETIONS, repeated, strict=True)}
    for column, rest in stripped.items():
        if is_empty(rest):
            raise Fault(f"`{column}` must not be empty without the prompt that it begins with, but got {short(rest)}")
    return {"prompt": pair["prompt"], **stripped}


def _repeated(prompt: Cell, answer: Cell) -> int:
    """Length of the start of an answer that repeats the prompt, or its last messages."""
    if isinstance(prompt, list) and isinstance(answer, list):
        longest = min(len(prompt), len(answer))
        return next((length for length in range(longest, 0, -1) if answer[:length] == prompt[-length:]), 0)
    at, text = 0, str(answer)
    for word in str(prompt).split():
        space = _SPACE.match(text, at)
        at = space.end() if space else at
        if not text.startswith(word, at):
            return 0
        at += len(word)
    exact = len(prompt) if text.startswith(str(prompt)) else at
    return exact if _is_border(text, at) else 0


def _is_in_transcript(prompt: str, chosen: str, rejected: str) -> bool:
    """Whether both texts begin with a label, the prompt and, behind a line's end, the label of the answer."""
    if chosen[:1] != rejected[:1]:
        return False
    start = chosen[: _length_of_prompt(chosen, rejected)]
    before, found, after = start.partition(prompt.strip())
    return bool(found and re.search(r"[:>\]\uff1a]\s*\Z", before) and re.search(r"\n\s*\S", after))


def _split(chosen: Cell, rejected: Cell, without_start: str) -> Pair:
    start = _length_of_prompt(chosen, rejected)
    pair: Pair = {"prompt": chosen[:start], "chosen": chosen[start:], "rejected": rejected[start:]}
    if is_empty(pair["prompt"]):
        raise Fault(f"{without_start}, but got {short(chosen)} and {short(rejected)}")
    for column in COMPLETIONS:
        if is_empty(pair[column]):
            raise Fault(f"`{column}` must not be empty after the start that both share, but got {short(pair[column])}")
    return pair


def _length_of_prompt(chosen: Cell, rejected: Cell) -> int:
    """Length of the shared start, by TRL's rule, and of texts up to the last border of a word.

    The space before two texts part belongs to them, not to the prompt. Where one continues the other, the last turn
    (or word) of the shorter is its completion. Tokens part at such borders, too, so those of the prompt are TRL's.
    """
    shared = _shared(chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if shared == min(len(chosen), len(rejected)):
            shared = _start_of_last(chosen[:shared])
        while shared > 0 and not (_is_border(chosen, shared) and _is_border(rejected, shared)):
            shared -= 1
        if shared > 0 and chosen[shared - 1] == " ":
            shared -= 1
    elif shared == min(len(chosen), len(rejected)):
        shared -= 1
    return shared


def _shared(first: Cell, second: Cell) -> int:
    """Length of what both begin with, halved until it is found: transcripts are long."""
    same, differs = 0, min(len(first), len(second)) + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        same, differs = (middle, differs) if first[same:middle] == second[same:middle] else (same, middle)
    return same


def _start_of_last(text: str) -> int:
    """Where the last turn of a transcript begins behind its label, or else the last character of a text."""
    first = len(text) - len(text.lstrip())
    labels = [label for label in _LABEL.finditer(text) if label.end() - len(label[0].lstrip()) > first]
    return labels[-1].end() if labels else len(text) - 1


def _is_border(text: str, at: int) -> bool:
    """Whether a word, or a sign of several code points, does not go on from one character to the next."""
    before, after = text[at - 1], text[at : at + 1]
    if after and (unicodedata.category(after)[0] == "M" or "\u200d" in (before, after) or _is_modifier(after)):
        return False
    return not (_is_of_word(before) and _is_of_word(after))


def _is_modifier(character: str) -> bool:
    """A skin tone, or the second half of a flag."""
    return "\U0001f3fb" <= character <= "\U0001f3ff" or "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_of_word(character: str) -> bool:
    """Letters and digits; scripts without spaces between words have words of one sign."""
    if not character or not (character.isalnum() or character in "_'\u2019" or unicodedata.category(character) == "Mn"):
        return False
    return not unicodedata.name(character, "").startswith(WITHOUT_SPACES)


def _with_system(pair: Pair, value: dict[str, Any], rows: RowsConfig, *, explicit: bool) -> Pair:
    """The pair with the row's system message in front; texts are then turns, the prompt the user's."""
    name = rows.columns.system
    if name is None:
        return pair
    if isinstance(pair["prompt"], str):
        if not explicit:
            raise Fault(f"a system message (`{name}`) needs the user's in a column of its own; dataset.columns.prompt")
        pair = {
            column: [{"role": "user" if column == "prompt" else "assistant", "content": str(cell)}]
            for column, cell in pair.items()
        }
    if name not in value:
        read_cell(value, name, rows.messages)
    given = value.get(name)
    if given is None or given == "":
        return pair
    if not isinstance(given, str):
        raise Fault(f"`{name}` must be the text of a system message, but got {short(given)}")
    prompt = [turn for turn in pair["prompt"] if isinstance(turn, dict)]
    if prompt[0]["role"] == "system":
        raise Fault(f"`{name}` is a system message, but the conversation begins with one ({short(prompt[0])})")
    content = read_cell(value, name, rows.messages)
    return {**pair, "prompt": [{"role": "system", "content": str(content)}, *prompt]}
