"""Reading the rows of a file or a hub data set, and the check that they exist before anything starts."""

from __future__ import annotations

import itertools
import json
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from tune_dlrml import builtin
from tune_dlrml.data.pairs import COLUMNS, Fault, Row, check_rows, faults_message
from tune_dlrml.data.reference import FORMS, DatasetReference, did_you_mean, parse_dataset_reference
from tune_dlrml.data.section import Section
from tune_dlrml.errors import InputError
from tune_dlrml.hub import HUB_TIMEOUT_S, refusal_in_time

BadRows = Literal["refuse", "drop"]
ROWS_LOOKED_AT = 20
LINE_LIMIT = 2**26
"""Characters of one line: a row of three texts of the largest size, every character written as an escape."""
ARRAY_LIMIT = 2**30
"""Characters of a file that is one JSON array, and so is read at once."""


def check_dataset_reference(ref: DatasetReference, bad_rows: BadRows = "refuse") -> None:
    """Raise InputError unless the data set exists and, of a file, the first rows are pairs; does not import datasets.

    Without a network a hub id is answered within 5 s. Where bad rows are dropped, rows are not looked at yet.
    """
    if ref.kind == "hub":
        _check_hub(ref)
        return
    rows = list(itertools.islice(_file_rows(ref), ROWS_LOOKED_AT))
    checked = check_rows(rows, str(ref))
    if checked.faults and bad_rows == "refuse":
        raise InputError(faults_message(checked.faults, len(rows), str(ref)))


def load_section(reference_text: str, key: str, bad_rows: BadRows = "refuse") -> tuple[Section, tuple[str, ...]]:
    """The preference pairs of a reference, and what is to be told of rows and fields that are not used.

    Args:
        reference_text: As in the search-space file.
        key: Where it stands there, for the message of a mistake: `dataset.train`.
        bad_rows: What to do about rows that are no pairs.

    Raises:
        InputError: The data set does not exist or holds no pair, or some rows are no pairs and are refused.
    """
    try:
        ref = parse_dataset_reference(reference_text)
        rows = _hub_rows(ref) if ref.kind == "hub" else list(_file_rows(ref))
        rows = rows[ref.start : ref.stop]
        checked = check_rows(rows, str(ref))
        message = faults_message(checked.faults, len(rows), str(ref)) if checked.faults else ""
        if message and (bad_rows == "refuse" or not checked.pairs):
            raise InputError(message)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    notes = [f"{key}: bad rows are dropped. {message}"] if message else []
    # What ships here says how it was made; nobody has to be told that it is not trained on.
    notes += [f"{key}: {checked.unused}"] if checked.unused and ref.kind != "builtin" else []
    return Section(key, checked.pairs, checked.places), tuple(notes)


def _file_rows(ref: DatasetReference) -> Iterator[Row]:
    path = builtin.path(ref.location) if ref.kind == "builtin" else Path(ref.location)
    if ref.split not in (None, "train"):
        raise InputError(f"{ref}: a file has no split {ref.split!r}, only rows; take some of them by `#[:64]`.")
    try:
        _check_is_file(path, str(ref))
        if path.suffix == ".parquet":
            yield from _parquet_rows(path, str(ref))
        else:
            with path.open(encoding="utf-8-sig", newline="\n") as file:
                yield from _json_rows(file, str(ref))
    except OSError as error:
        raise InputError(f"{ref}: cannot be read ({error.strerror or _one_line(error)}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{ref}: is not UTF-8 text (byte {error.start}: {error.reason}).") from None


def _check_is_file(path: Path, source: str) -> None:
    """Opening a pipe would wait for ever, and a device may have no end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{source}: there is no such file.{did_you_mean(path)}") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: must be a file, but is a folder.{did_you_mean(path)}")
    if not stat.S_ISREG(mode):
        raise InputError(f"{source}: must be a file, but is a pipe, a socket or a device; write the rows into a file.")


def _json_rows(file: TextIO, source: str) -> Iterator[Row]:
    """One object a line or, where the file starts with a bracket, one array of them."""
    lines = _lines(file, source)
    first = next(lines, "")
    if first.lstrip().startswith("["):
        array = _read_json(first + file.read(ARRAY_LIMIT))
        if file.read(1):
            raise InputError(
                f"{source}: an array has at most {ARRAY_LIMIT:,} characters; write one row a line instead."
            )
        if isinstance(array, Fault):
            raise InputError(f"{source}: {array}.")
        yield from (Row(f"row {number}", value) for number, value in enumerate(array, start=1))
        return
    number = 0
    for line_number, line in enumerate(itertools.chain([first], lines), start=1):
        if line.strip():
            number += 1
            yield Row(f"row {number} (line {line_number})", _read_json(line))


def _lines(file: TextIO, source: str) -> Iterator[str]:
    for number in itertools.count(1):
        line = file.readline(LINE_LIMIT + 1)
        if len(line) > LINE_LIMIT and not (number == 1 and line.lstrip().startswith("[")):
            raise InputError(f"{source}: line {number}: a line has at most {LINE_LIMIT:,} characters; one row a line.")
        if not line:
            return
        yield line


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        return Fault(f"is not JSON ({error.msg}: {where})")
    except (ValueError, RecursionError) as error:
        return Fault(f"cannot be read as JSON ({error})")


def _mapping(items: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(items)
    if len(mapping) < len(items):
        twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        raise ValueError(f"the key {json.dumps(twice[:80])} is given twice; keep one")
    return mapping


def _parquet_rows(path: Path, source: str) -> Iterator[Row]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns, unread = _columns(file.schema_arrow.names)
        batches = file.iter_batches(columns=columns)
        values = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from (Row(f"row {number}", value, unread) for number, value in enumerate(values, start=1))
    except pyarrow.ArrowException as error:
        raise InputError(f"{source}: is no Parquet file that can be read ({_one_line(error)}).") from None


def _hub_rows(ref: DatasetReference) -> list[Row]:
    _check_hub(ref)
    import datasets
    from huggingface_hub import errors

    try:
        data = datasets.load_dataset(ref.location, revision=ref.revision, split=ref.split or "train")
    except (OSError, ValueError, RuntimeError, errors.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{ref}: cannot be loaded ({type(error).__name__}: {_one_line(error)}).") from None
    columns, unread = _columns(data.column_names)
    data = data.select_columns(columns)
    return [Row(f"row {number}", value, unread) for number, value in enumerate(data, start=1)]


def _columns(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Columns of a table that are read, all of them where none can be used, and those that are not."""
    read = [name for name in COLUMNS if name in names] or list(names)
    return read, tuple(name for name in names if name not in read)


def _check_hub(ref: DatasetReference) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HOME)
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{ref.location.replace('/', '--')}" / "snapshots"
    prepared = cache / "datasets" / ref.location.replace("/", "___")
    if any(downloaded.glob("*")) or any(prepared.glob("*")):
        return
    refusal = _ask_hub(ref)
    if refusal:
        near = did_you_mean(Path(ref.location))
        raise InputError(f"{ref}: not in the local hub cache ({cache}), and {refusal}.{near} What is allowed: {FORMS}.")


def _ask_hub(ref: DatasetReference) -> str | None:
    """Why the hub does not give this data set; None where it does."""
    from huggingface_hub import dataset_info, errors

    def ask() -> str | None:
        try:
            dataset_info(ref.location, revision=ref.revision, timeout=HUB_TIMEOUT_S)
        except errors.RevisionNotFoundError:
            return f"the hub says that it has no revision {ref.revision!r}"
        except errors.RepositoryNotFoundError:
            return "the hub says that no such data set exists or that this account may not see it"
        except (errors.HTTPError, OSError, ValueError) as error:
            return f"the hub cannot be reached ({type(error).__name__}: {_one_line(error)})"
        return None

    return refusal_in_time(ask)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
