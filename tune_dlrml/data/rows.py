"""From raw rows to preference pairs in one format, or to a message that names the first bad rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tune_dlrml.config import RowsConfig
from tune_dlrml.data.comparisons import as_pair_columns
from tune_dlrml.data.pairs import Fault, Pair, format_name, short, some_names
from tune_dlrml.data.prompts import is_echo, make_pair, unused_of_turns
from tune_dlrml.errors import InputError

FAULTS_SHOWN = 3


@dataclass(frozen=True)
class Row:
    """A row as it was read; `value` is a Fault where it could not be, `unread` names columns that were left unread."""

    place: str
    value: object
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Checked rows: the pairs with their places, and the faults of the others, in their order.

    `notes` describes the prompt if no column has it, and lists unused fields.
    """

    pairs: list[Pair]
    places: list[str]
    faults: list[str]
    notes: tuple[str, ...]


def check_rows(rows: Sequence[Row], source: str, reading: RowsConfig) -> Checked:
    """The rows as pairs with an explicit prompt, and the faults of those that are not pairs.

    A prompt is explicit if any row has one; otherwise it is the start that chosen and rejected share.

    Raises:
        InputError: There is no row.
    """
    if not rows:
        raise InputError(f"{source}: no rows; at least one preference pair is needed.")
    rows = [replace(row, value=as_pair_columns(row.value)) for row in rows]
    explicit = _is_explicit(rows, reading)
    echoes = [is_echo(row.value, reading) for row in rows] if explicit else []
    echoed = 2 * echoes.count(True) > echoes.count(True) + echoes.count(False)
    pairs: list[Pair] = []
    places: list[str] = []
    faults: list[str] = []
    unused: list[tuple[str, list[str]]] = []
    for row in rows:
        try:
            pair = _pair(row, reading, explicit=explicit, echoed=echoed)
            if pairs and format_name(pair["chosen"]) != format_name(pairs[0]["chosen"]):
                here, there = format_name(pair["chosen"]), format_name(pairs[0]["chosen"])
                raise Fault(f"`chosen` is {here}, but that of the rows before is {there}; all rows must be the same")
            pairs.append(pair)
            places.append(row.place)
            if names := _unused(row, reading):
                unused.append((row.place, names))
        except Fault as fault:
            faults.append(f"{row.place}: {fault}")
    notes = [] if explicit or not pairs else [_shared_start_note(pairs, places)]
    notes.append(_unused_message(unused, len(rows)))
    return Checked(pairs, places, faults, tuple(note for note in notes if note))


def refusal_of_rows(faults: Sequence[str], rows: str, source: str) -> str:
    """The message that refuses rows: their faults, and how to leave them out."""
    return f"{faults_message(faults, rows, source)}\nSet dataset.bad_rows: drop to leave such rows out."


def faults_message(faults: Sequence[str], rows: str, source: str) -> str:
    """How many of the rows (such as `42` or `the first 20`) are not pairs, and the first three faults."""
    if len(faults) == 1:
        return f"{source}: {faults[0]}."
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    lines = "".join(f"\n  {line}" for line in [*faults[:FAULTS_SHOWN], *more])
    return f"{source}: {len(faults)} of {rows} rows are not preference pairs:{lines}"


def _is_explicit(rows: Sequence[Row], reading: RowsConfig) -> bool:
    name = reading.columns.prompt
    if name is None or name != "prompt":
        return name is not None
    return any(isinstance(row.value, dict) and row.value.get(name) is not None for row in rows)


def _pair(row: Row, reading: RowsConfig, *, explicit: bool, echoed: bool) -> Pair:
    if isinstance(row.value, Fault):
        raise row.value
    if not isinstance(row.value, dict):
        names = ", ".join(reading.columns.names())
        raise Fault(f"must be a mapping with the columns {names}, but got {short(row.value)}")
    return make_pair(row.value, row.unread, reading, explicit=explicit, echoed=echoed)


def _shared_start_note(pairs: Sequence[Pair], places: Sequence[str]) -> str:
    first = pairs[0]["prompt"]
    if not isinstance(first, str):
        return ""
    return (
        f"the start that both texts share, up to the border of a word, is the prompt of {len(pairs)} rows (first: "
        f"{places[0]}: {short(first[-60:])})"
    )


def _unused(row: Row, reading: RowsConfig) -> list[str]:
    """Unused fields of a row and of its messages; in a table null means a missing field."""
    assert isinstance(row.value, dict)
    used = reading.columns.names()
    columns = [name for name, given in row.value.items() if name not in used and given is not None]
    turns = [name for column in used for name in unused_of_turns(row.value.get(column), reading)]
    return [*row.unread, *columns, *turns]


def _unused_message(unused: Sequence[tuple[str, Sequence[str]]], rows: int) -> str:
    if not unused:
        return ""
    names = some_names(dict.fromkeys(name for _, own in unused for name in own))
    return f"{len(unused)} of {rows} rows have unused fields: {names} (first: {unused[0][0]})"
