"""Writes that are counted, and one of which, or all from one on, fail: into files, into SQLite, into MLflow."""

import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy
from sqlalchemy import Connection, Engine


class Writes:
    """Counts the writes below a folder and makes them fail as a full disk does.

    Args:
        folder: Only files in it count.
        at: Number of the first write that fails, from 1; 0 is none.
        stays: Whether all later writes fail, too, until `end`.

    Attributes:
        count: Writes tried so far.
        failed: What the failures hit.
    """

    def __init__(self, folder: Path, at: int = 0, *, stays: bool = False) -> None:
        self._folder, self._at, self._stays = str(folder), at, stays
        self.count = 0
        self.failed: list[str] = []

    def end(self) -> None:
        """The disk has space again."""
        self._at = 0

    def fails(self, what: str) -> bool:
        """Count a write; whether it is to fail."""
        self.count += 1
        hit = self.count == self._at or (self._stays and 0 < self._at < self.count)
        if hit:
            self.failed.append(what)
        return hit

    @contextmanager
    def watched(self) -> Iterator["Writes"]:
        """Count and fail inside the block."""
        with (
            mock.patch("os.write", self._torn(os.write)),
            mock.patch("os.fsync", self._refused("fsync", lambda _: None)),
            mock.patch("os.replace", self._refused("replace", os.replace)),
            mock.patch("os.rename", self._refused("rename", os.rename)),
            mock.patch("os.mkdir", self._refused("mkdir", os.mkdir)),
            mock.patch("io.open", self._opened(io.open)),
            _listening("connect", _no_waiting),
            _listening("do_execute", self._statement),
            _listening("do_executemany", self._statement),
            _listening("commit", self._commit),
        ):
            yield self

    def _is_ours(self, target: Any) -> bool:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        return path.startswith(self._folder)

    def _refused(self, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            if self._is_ours(target) and self.fails(what):
                raise full(what)
            return real(target, *args, **options)

        return call

    def _torn(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(file: int, data: Any) -> int:
            if self._is_ours(file) and self.fails("write"):
                real(file, bytes(data)[: len(data) // 2])
                raise full("write")
            return real(file, data)

        return write

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def open_(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = real(path, mode, *args, **options)
            return _File(file, self) if set(mode) & set("wax+") and self._is_ours(path) else file

        return open_

    def _statement(self, _: Any, statement: str, __: Any, context: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            return
        context.root_connection.info["dirty"] = True
        if self.fails(statement.split("(")[0].strip()):
            raise sqlite3.OperationalError("database or disk is full")

    def _commit(self, connection: Connection) -> None:
        if connection.info.pop("dirty", False) and self.fails("COMMIT"):
            cause = sqlite3.OperationalError("database or disk is full")
            raise sqlalchemy.exc.OperationalError("COMMIT", None, cause)


class _File:
    """A file open for writing; as in Python's own, what is written waits in a buffer until it is flushed or closed."""

    def __init__(self, file: Any, writes: Writes) -> None:
        self._file, self._writes = file, writes
        self._waiting: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def write(self, data: Any) -> int:
        self._waiting.append(data if isinstance(data, str) else bytes(data))
        return len(data)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            data = waiting[0][:0].join(waiting)
            torn = self._writes.fails("file.write")
            self._file.write(data[: len(data) // 2] if torn else data)
            self._file.flush()
            if torn:
                raise full("file.write")

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def full(what: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)


def _no_waiting(connection: Any, _: Any) -> None:
    # No power is cut here, and the wait for the disk is most of the time otherwise.
    connection.execute("PRAGMA synchronous=OFF")


@contextmanager
def _listening(name: str, function: Callable[..., None]) -> Iterator[None]:
    sqlalchemy.event.listen(Engine, name, function)
    try:
        yield
    finally:
        sqlalchemy.event.remove(Engine, name, function)
