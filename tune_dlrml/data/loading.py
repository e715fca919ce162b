"""Reading the rows of a file or a hub data set, and the check that they exist before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from tune_dlrml.config import RowsConfig
from tune_dlrml.data.files import file_rows, table_rows
from tune_dlrml.data.reference import FORMS, DatasetReference, did_you_mean, parse_dataset_reference
from tune_dlrml.data.rows import Row, check_rows, faults_message, refusal_of_rows
from tune_dlrml.data.section import Section
from tune_dlrml.errors import InputError, one_line
from tune_dlrml.system.hub import HUB_TIMEOUT_S, refusal_in_time

ROWS_LOOKED_AT = 20
AS_TRL = RowsConfig()
"""Columns and fields have TRL's names."""


def check_dataset_reference(ref: DatasetReference, reading: RowsConfig = AS_TRL) -> None:
    """Raise InputError unless the data set exists and, of files, the first rows are pairs.

    Without a network the check of a hub id ends within 5 s. If bad rows are dropped, they are checked when all rows are
    read.
    """
    if ref.kind == "hub":
        _check_hub(ref)
        return
    rows = list(itertools.islice(_sliced(file_rows(ref, reading), ref), ROWS_LOOKED_AT))
    checked = check_rows(rows, str(ref), reading)
    if checked.faults and reading.bad_rows == "refuse":
        seen = f"the first {len(rows)}" if len(rows) == ROWS_LOOKED_AT else str(len(rows))
        raise InputError(refusal_of_rows(checked.faults, seen, str(ref)))


def load_section(reference_text: str, key: str, reading: RowsConfig = AS_TRL) -> tuple[Section, tuple[str, ...]]:
    """The preference pairs of a reference, and notes about unused rows and fields.

    Args:
        reference_text: As in the search-space file.
        key: Its key there, for error messages: `dataset.train`.
        reading: Names of columns and fields, and what to do about rows that are not pairs.

    Raises:
        InputError: The data set does not exist or has no pair, or some rows are not pairs and are refused.
    """
    try:
        ref = parse_dataset_reference(reference_text)
        # Slice first: faults of the rows outside do not matter.
        rows = list(_sliced(_hub_rows(ref, reading) if ref.kind == "hub" else file_rows(ref, reading), ref))
        checked = check_rows(rows, str(ref), reading)
        message = faults_message(checked.faults, str(len(rows)), str(ref)) if checked.faults else ""
        if message and reading.bad_rows == "refuse":
            raise InputError(refusal_of_rows(checked.faults, str(len(rows)), str(ref)))
        if not checked.pairs:
            raise InputError(message)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    notes = [f"{key}: bad rows are dropped. {message}"] if message else []
    # Built-in sets have fields that describe their origin; that these are unused needs no note.
    notes += [f"{key}: {note}" for note in checked.notes if ref.kind != "builtin"]
    return Section(key, checked.pairs, checked.places), tuple(notes)


def _sliced(rows: Iterator[Row], ref: DatasetReference) -> Iterator[Row]:
    """The rows of Python's slice; reading stops after them if no bound counts from the end."""
    if any(bound is not None and bound < 0 for bound in (ref.start, ref.stop)):
        return iter(list(rows)[ref.start : ref.stop])
    return itertools.islice(rows, ref.start, ref.stop)


def _hub_rows(ref: DatasetReference, reading: RowsConfig) -> Iterator[Row]:
    _check_hub(ref)
    import datasets
    from huggingface_hub import errors

    try:
        data = datasets.load_dataset(ref.location, revision=ref.revision, split=ref.split or "train")
    except (OSError, ValueError, RuntimeError, errors.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{ref}: cannot be loaded ({type(error).__name__}: {one_line(error)}).") from None
    return table_rows(data, reading.columns.names())


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
    """Why this data set cannot be loaded from the hub; None where it can."""
    from huggingface_hub import dataset_info, errors

    def ask() -> str | None:
        try:
            dataset_info(ref.location, revision=ref.revision, timeout=HUB_TIMEOUT_S)
        except errors.RevisionNotFoundError:
            return f"the hub says that it has no revision {ref.revision!r}"
        except errors.RepositoryNotFoundError:
            return "the hub says that no such data set exists or that this account may not see it"
        except (errors.HTTPError, OSError, ValueError) as error:
            return f"the hub cannot be reached ({type(error).__name__}: {one_line(error)})"
        return None

    return refusal_in_time(ask)
