"""The temporary folder of a driver, and the cleanup of one that a killed driver left."""

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tune_dlrml.cluster.environment import changed_environment
from tune_dlrml.errors import InputError

NAME = "ray_[0-9a-f]{8}"
SHORT_FOLDERS = ("/tmp", "/var/tmp")
"""Places of a scratch folder if the temporary folder's path is too long."""
SOCKET_BYTES = 107
"""Longest path of a Unix socket."""
LONGEST_BELOW = "/ray_01234567/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Longest path that Ray makes below the temporary folder, with the largest process id of Linux."""
ENDING_S = 10.0
POLL_S = 0.02
_kept: Path | None = None
"""Of this process while a `kept_folder` is open."""


@contextmanager
def scratch_folder(search: Path, on_notice: Callable[[str], None]) -> Iterator[Path]:
    """The temporary folder of this driver and of the processes that it starts, removed at the end.

    `<search>/scratch.json` names it before it is made: the next driver of the search, which has the search's lock,
    removes it and ends the processes that the dead driver left. Its path is short, since Ray puts Unix sockets below
    it: if the path of the temporary folder is too long, the scratch folder is in /tmp instead. Inside a `kept_folder`
    it is that one, and stays.

    Args:
        search: Folder of the search.
        on_notice: Called if the temporary folder could not be used.

    Raises:
        InputError: This machine has no suitable folder.
    """
    record = search / "scratch.json"
    _clear(record)
    if _kept is not None:
        _note(record, _kept)
        try:
            yield _kept
        finally:
            record.unlink()
        return
    folder = _made(on_notice, record)
    try:
        with _temporary(folder):
            yield folder
    finally:
        _clear(record)


@contextmanager
def kept_folder(on_notice: Callable[[str], None]) -> Iterator[Path]:
    """The temporary folder of all drivers of this process inside the block, removed at the end.

    Args:
        on_notice: Called if the temporary folder could not be used.

    Raises:
        InputError: This machine has no suitable folder.
    """
    global _kept
    folder = _made(on_notice)
    try:
        _kept = folder
        with _temporary(folder):
            yield folder
    finally:
        _kept = None
        _remove(folder)


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    before = tempfile.tempdir
    try:
        with changed_environment({"TMPDIR": str(folder)}):
            tempfile.tempdir = str(folder)
            yield
    finally:
        tempfile.tempdir = before


def _note(record: Path, folder: Path) -> None:
    record.write_text(json.dumps({"host": socket.gethostname(), "folder": str(folder)}))


def _made(on_notice: Callable[[str], None], record: Path | None = None) -> Path:
    """A new folder, recorded before it is made, in the first place that leaves room for the paths of sockets."""
    faults = []
    for outer in _places():
        if len(os.fsencode(f"{outer}{LONGEST_BELOW}")) > SOCKET_BYTES:
            most = SOCKET_BYTES - len(LONGEST_BELOW)
            faults.append(f"the path of {outer} is longer than {most} bytes, the limit for Ray's sockets")
            continue
        folder = Path(outer) / f"ray_{secrets.token_hex(4)}"
        if record is not None:
            _note(record, folder)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            faults.append(f"{outer}: {error.strerror}")
            continue
        if faults:
            on_notice(f"temporary files go to {outer}: {'; '.join(faults)}")
        return folder
    raise InputError(
        f"TMPDIR: a writable folder with a short path is needed, but: {'; '.join(faults)}; set TMPDIR to one"
    )


def _places() -> Iterator[str]:
    with suppress(FileNotFoundError):  # none that Python knows can be written
        yield tempfile.gettempdir()
    yield from SHORT_FOLDERS


def _clear(record: Path) -> None:
    """Remove the folder that a record names, and the processes that belong to it."""
    if not record.exists():
        return
    try:
        noted = json.loads(record.read_text())
        host, folder = noted["host"], Path(noted["folder"])
    except (json.JSONDecodeError, TypeError, KeyError):
        host, folder = "", Path()  # torn while it was written, before the folder was made
    if host == socket.gethostname() and re.fullmatch(NAME, folder.name):
        _remove(folder)
    record.unlink()


def _remove(folder: Path) -> None:
    _end_processes(str(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _end_processes(folder: str) -> None:
    """End the processes that use `folder`, except this one and its parents."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    left = []
    for process in psutil.process_iter():
        # Processes of other users do not show their environment, and some end meanwhile.
        with suppress(psutil.Error):
            if process.pid not in spared and _uses(process, folder):
                process.kill()
                left.append(process)
    deadline = time.monotonic() + ENDING_S
    while any(map(_holds_anything, left)) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _holds_anything(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie has, and the init of a container reaps it seconds later or never."""
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        process.wait(0)  # reaps a child of this process
    return False


def _uses(process: psutil.Process, folder: str) -> bool:
    """Whether a process has `folder` as its temporary folder, or a file in it open: Ray's agents overwrite TMPDIR."""
    if process.environ().get("TMPDIR") == folder:
        return True
    return any(opened.path.startswith(f"{folder}/") for opened in process.open_files())
