"""The files of a reference - one, a glob, a folder or a saved data set - and their rows in order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tune_dlrml import builtin
from tune_dlrml.config import RowsConfig
from tune_dlrml.data.readers import columns_of, read_file
from tune_dlrml.data.reference import SUFFIXES, DatasetReference, format_of
from tune_dlrml.data.rows import Row
from tune_dlrml.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

SAVED = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` of a data set, or of several splits, leaves in its folder."""


def file_rows(ref: DatasetReference, reading: RowsConfig) -> Iterator[Row]:
    """The rows of all files that are named, one file after another in the order of their names.

    Raises:
        InputError: There is no such file, or one cannot be read.
    """
    path = builtin.path(ref.location) if ref.kind == "builtin" else Path(ref.location)
    columns = reading.columns.names()
    if os.path.isdir(path):
        if any((path / name).is_file() for name in SAVED):
            yield from table_rows(_saved(path, ref), columns)
        else:
            yield from _rows_of_files(_files_of_folder(path, ref), str(ref), columns)
        return
    if ref.split not in (None, "train"):
        raise InputError(f"{ref}: a file has no split {ref.split!r}, only rows; select some of them with `#[:64]`.")
    if glob.has_magic(str(path)) and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = [file for file in found if format_of(file) is not None]
        if not files:
            raise InputError(
                f"{ref}: no file of pairs has such a name; endings are {', '.join(SUFFIXES)}; `#[:64]` selects rows."
            )
        yield from _rows_of_files(files, str(ref), columns)
    else:
        yield from read_file(path, str(ref), columns)


def table_rows(data: Dataset, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a data set that `datasets` has loaded."""
    read, unread = columns_of(data.features.arrow_schema, columns)
    rows = data.select_columns(read) if read else data
    return (Row(f"row {number}", value, unread) for number, value in enumerate(rows, start=1))


def _rows_of_files(files: Sequence[Path], source: str, columns: Sequence[str]) -> Iterator[Row]:
    base = os.path.commonpath([file.parent for file in files])
    for file in files:
        name = os.path.relpath(file, base)
        for row in read_file(file, f"{source}: {name}", columns):
            yield Row(f"{name}, {row.place}", row.value, row.unread)


def _files_of_folder(folder: Path, ref: DatasetReference) -> list[Path]:
    """Files of one split, recognized by their names as in `datasets`."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except OSError:  # the folder is empty
        found = {}
    named = {
        str(split): [Path(name) for name in sorted(names) if format_of(Path(name)) is not None]
        for split, names in found.items()
    }
    splits = {split: files for split, files in named.items() if files}
    if not splits:
        raise InputError(f"{ref}: the folder holds no file of pairs; endings are {', '.join(SUFFIXES)}.")
    return splits[_split(splits, ref)]


def _saved(folder: Path, ref: DatasetReference) -> Dataset:
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{ref}: cannot be loaded ({type(error).__name__}: {one_line(error)}).") from None
    splits = data if isinstance(data, datasets.DatasetDict) else {"train": data}
    return splits[_split(splits, ref)]


def _split(splits: Mapping[str, object], ref: DatasetReference) -> str:
    """The selected split: the named one, `train`, or the only one."""
    name = ref.split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if name not in splits:
        raise InputError(
            f"{ref}: has no split {name!r}; its splits are {', '.join(splits)}, named as `#{next(iter(splits))}`."
        )
    return name
