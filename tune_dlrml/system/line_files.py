"""Append-only files of lines, of which a crash or a full disk can damage only the last line.

A line is complete once its newline is in the file. Anything after the last newline is incomplete: it is ignored, and
cut off before the next line is written.
"""

import os
from pathlib import Path

from tune_dlrml.system.files import sync_folder

CHUNK = 1 << 16
"""Bytes in which the end of a file is searched for its last newline."""


def complete_lines(data: bytes) -> list[bytes]:
    """The lines of data read from a file, without an incomplete one at its end."""
    return data.split(b"\n")[:-1]


def append_line(path: Path, line: bytes, *, clean: bool = False, durable: bool = True, folders: int = 1) -> None:
    """Append a line after the last newline of a file; the file and its folder are made where they are missing.

    Concurrent writers of one file need a lock.

    Args:
        path: The file.
        line: Without a newline.
        clean: Whether the file is known to end with a newline: then its end is not read.
        durable: Whether the line is on the disk when this returns.
        folders: How many folders above the file may be new with it, and are flushed to the disk.

    Raises:
        OSError: The write failed; the line may or may not be in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        begins = os.fstat(file).st_size == 0
        if not clean:
            os.ftruncate(file, _end_of_lines(file))
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(file, rest) :]
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
    if begins:
        for folder in path.parents[:folders]:
            sync_folder(folder)


def _end_of_lines(file: int) -> int:
    """Offset after the last newline of a file."""
    begin = os.fstat(file).st_size
    while begin > 0:
        behind, begin = begin, max(0, begin - CHUNK)
        newline = os.pread(file, behind - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
    return 0
