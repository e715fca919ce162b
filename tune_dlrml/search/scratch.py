"""The temporary folder of a driver, and what a killed one leaves behind in it for its successor to clear away."""

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NAME = "ray_[0-9a-f]{8}"
ENDING_S = 10.0
POLL_S = 0.02


@contextmanager
def scratch_folder(search: Path) -> Iterator[Path]:
    """A short-lived folder for all that this driver and the processes that it starts put into the temporary folder.

    Where it is stands in `<search>/scratch.json`, before it is made: the next driver of the search, which has the
    search's lock, removes it and ends what processes of the dead driver still run. The path is short, since Ray puts
    Unix sockets of at most 107 characters below it.

    Args:
        search: Folder of the search.
    """
    record = search / "scratch.json"
    _clear(record)
    outer = tempfile.gettempdir()
    folder = Path(outer) / f"ray_{secrets.token_hex(4)}"
    record.write_text(json.dumps({"host": socket.gethostname(), "folder": str(folder)}))
    folder.mkdir(mode=0o700)
    _use(str(folder))
    try:
        yield folder
    finally:
        _use(outer)
        _clear(record)


def _use(folder: str) -> None:
    """Make a folder the temporary one of this process and of those that it starts."""
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = folder


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
        _end_processes(str(folder))
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink()


def _end_processes(folder: str) -> None:
    """End what uses `folder`, this process and its parents excepted."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    left = []
    for process in psutil.process_iter():
        # Others' processes do not show their environment, and some end while they are looked at.
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
    """Whether a process has it as its temporary folder, or a file in it open: Ray's agents overwrite what they had."""
    if process.environ().get("TMPDIR") == folder:
        return True
    return any(opened.path.startswith(f"{folder}/") for opened in process.open_files())
