"""The rows of one file, each with its place: JSON, CSV, Parquet and Arrow, compressed or not.

The loaders of `datasets` would lose the line of a row and change texts: keys that are given twice, fields that a row
does not have, and texts such as `NA`. Compressed files are read by the standard library and
pyarrow.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO, cast

from tune_dlrml.data.pairs import Fault, short
from tune_dlrml.data.reference import did_you_mean, format_of
from tune_dlrml.data.rows import Row
from tune_dlrml.errors import InputError, one_line

LINE_LIMIT = 2**26
"""Characters of one line: a row of three texts of the largest size, every character written as an escape."""
ARRAY_LIMIT = 2**30
"""Characters of a file that is one JSON array, and so is read at once."""
NAMED = "give the file the name of what it is"
MAGIC = {
    b"\x1f\x8b": ("compressed (.gz)", NAMED),
    b"BZh": ("compressed (.bz2)", NAMED),
    b"\xfd7zXZ": ("compressed (.xz)", NAMED),
    b"\x28\xb5\x2f\xfd": ("compressed (.zst)", NAMED),
    b"PAR1": ("a table (.parquet)", NAMED),
    b"ARROW1": ("a table (.arrow)", NAMED),
    b"PK\x03\x04": ("an archive (.zip)", "unpack it"),
    b"version https://git-lfs": ("a pointer of Git LFS", "`git lfs pull` fetches the file"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
}
"""How files begin that hold no rows, whatever their name, what they are and what to do."""
NEVER = tuple(magic for magic, (_, remedy) in MAGIC.items() if remedy != NAMED)
"""Those of which no name would make a file of rows."""
DELIMITERS = ";\t|,"
"""Usual delimiters of cells."""


def read_file(path: Path, source: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, read lazily.

    Args:
        path: The end of its name decides the format.
        source: Its name in messages.
        columns: The needed ones; a table's others are read only if they hold text.

    Raises:
        InputError: It is not such a file, or cannot be read to its end.
    """
    _check_is_file(path, source)
    suffix, compression = format_of(path) or ("", "")
    try:
        with _opened(path, compression) as file:
            _check_start(file, source, is_table=suffix in (".parquet", ".arrow"))
            if suffix in (".parquet", ".arrow"):
                yield from _table_file_rows(file, suffix, bool(compression), source, columns)
            else:
                with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
                    tab = "\t" if suffix == ".tsv" else ","
                    yield from _csv_rows(text, tab, source) if suffix in (".csv", ".tsv") else _json_rows(text, source)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{source}: cannot be read ({why}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: is not UTF-8 text (byte {error.start}: {error.reason}).") from None


def _check_is_file(path: Path, source: str) -> None:
    """Opening a pipe would wait for ever, and a device may have no end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{source}: there is no such file.{did_you_mean(path)}") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{source}: must be a file, but is a pipe, a socket or a device; write the rows into a file.")


def _opened(path: Path, compression: str) -> io.BufferedReader:
    """A file as the bytes that were written, before they were compressed."""
    if compression == ".zst":
        import pyarrow as pa  # type: ignore[import-untyped]

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return cast(io.BufferedReader, openers.get(compression, open)(path, "rb"))


def _check_start(file: io.BufferedReader, source: str, *, is_table: bool) -> None:
    start = file.peek(64)
    for magic, (what, remedy) in MAGIC.items():
        if start.startswith(magic) and (not is_table or magic in NEVER):
            raise InputError(f"{source}: is not {'a table' if is_table else 'UTF-8 text'} but {what}; {remedy}.")
    if not is_table and start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{source}: is not UTF-8 text but UTF-16; write it as UTF-8.")


def _json_rows(file: TextIO, source: str) -> Iterator[Row]:
    """One object a line or, where the file starts with a bracket, one array of them."""
    lines = enumerate(_lines(file, source), start=1)
    at, first = next(((at, line) for at, line in lines if line.strip()), (0, ""))
    if first.strip() == "{":
        raise InputError(
            f"{source}: line {at}: an object goes over several lines; write one a line, or one array of all."
        )
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
    for line_number, line in itertools.chain([(at, first)], lines):
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
    if fault := _not_utf8(text):
        return fault
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        return Fault(f"is not JSON ({error.msg}: {where})")
    except (ValueError, RecursionError) as error:
        return Fault(f"cannot be read as JSON ({error})")


def _not_utf8(text: str) -> Fault | None:
    """A fault where bytes of the file could not be decoded, which Python keeps as halves of pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        return Fault(f"is not UTF-8 text (byte 0x{byte:02x} after {error.start} characters); write the file as UTF-8")
    return None


def _mapping(items: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(items)
    if len(mapping) < len(items):
        twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        raise ValueError(f"the key {json.dumps(twice[:80])} is given twice; keep one")
    return mapping


def _csv_rows(file: TextIO, delimiter: str, source: str) -> Iterator[Row]:
    """A row for each line below the header; an empty cell holds nothing."""
    csv.field_size_limit(LINE_LIMIT)
    lines = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = next(lines, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise InputError(f"{source}: the column {twice[0][:80]!r} is given twice; keep one.")
        _check_delimiter(header, delimiter, source)
        number = 0
        for cells in lines:
            if cells:
                number += 1
                yield Row(f"row {number} (line {lines.line_num})", _csv_row(header, cells))
    except csv.Error as error:
        raise InputError(
            f"{source}: line {lines.line_num}: is not CSV ({error}); a cell that holds quotes, the delimiter or a "
            "line's end must be in quotes, those inside it doubled."
        ) from None


def _check_delimiter(header: Sequence[str], delimiter: str, source: str) -> None:
    """Refuse a header of one cell that has the delimiter of other files."""
    others = [sign for sign in DELIMITERS if len(header) == 1 and sign in header[0] and sign != delimiter]
    if others:
        own = "tabs" if delimiter == "\t" else "commas"
        raise InputError(
            f"{source}: the header is one cell, {short(header[0])}: cells of such a file are separated by {own}, not "
            f"by {others[0]!r}; write it again, or give it the right ending (.csv: commas, .tsv: tabs)."
        )


def _csv_row(header: Sequence[str], cells: Sequence[str]) -> Any:
    if fault := _not_utf8("".join(cells)):
        return fault
    if len(cells) != len(header):
        return Fault(f"has {len(cells)} cells, but the header names {len(header)} columns")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _table_file_rows(
    file: IO[bytes], suffix: str, compressed: bool, source: str, columns: Sequence[str]
) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        handle = pa.BufferReader(file.read()) if compressed else file
        if suffix == ".parquet":
            table = pyarrow.parquet.ParquetFile(handle)
            read, unread = columns_of(table.schema_arrow, columns)
            batches = table.iter_batches(columns=read)
        else:
            schema, stored = _arrow_batches(handle)
            read, unread = columns_of(schema, columns)
            batches = (batch.select(read) for batch in stored)
        values = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from (Row(f"row {number}", value, unread) for number, value in enumerate(values, start=1))
    except pa.ArrowException as error:
        name = {".parquet": "Parquet", ".arrow": "Arrow"}[suffix]
        raise InputError(f"{source}: is no {name} file that can be read ({one_line(error)}).") from None


def _arrow_batches(handle: Any) -> tuple[Any, Iterable[Any]]:
    """Schema and batches of a stream, as `datasets` writes it, or of a file with an index, as others do."""
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(handle)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(handle)
        return file.schema, map(file.get_batch, range(file.num_record_batches))
    return stream.schema, stream


def columns_of(schema: Any, wanted: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Columns of a table that are read, including all texts if a wanted one is missing, and the unread columns."""
    whole = set(wanted) <= set(schema.names)
    read = [field.name for field in schema if field.name in wanted or (not whole and _holds_text(field.type))]
    return read, tuple(name for name in schema.names if name not in read)


def _holds_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_list(kind) for is_list in lists):
        return pa.types.is_struct(kind.value_type) or _holds_text(kind.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_text(kind) for is_text in texts)
