"""The temporary folder of a driver, and what a killed one leaves behind in it for its successor to clear away."""

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
"""Where a scratch folder goes if the temporary folder's path is too long."""
SOCKET_BYTES = 107
"""Of the path of a Unix socket."""
LONGEST_BELOW = "/ray_01234567/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray puts below the temporary folder, with the largest process id of Linux."""
ENDING_S = 10.0
POLL_S = 0.02


@contextmanager
def scratch_folder(search: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """A short-lived folder for all that this driver and the processes that it starts put into the temporary folder.

    Where it is stands in `<search>/scratch.json`, before it is made: the next driver of the search, which has the
    search's lock, removes it and ends what processes of the dead driver still run. The path is short, since Ray puts
    Unix sockets below it: where the temporary folder's is too long, the scratch folder is beside it in /tmp.

    Args:
        search: Folder of the search.
        tell: Told of a temporary folder that could not be used.

    Raises:
        InputError: No folder on this machine will do.
    """
    record = search / "scratch.json"
    _clear(record)
    before = tempfile.tempdir
    folder = _made(record, tell)
    try:
        with changed_environment({"TMPDIR": str(folder)}):
            tempfile.tempdir = str(folder)
            yield folder
    finally:
        tempfile.tempdir = before
        _clear(record)


def _made(record: Path, tell: Callable[[str], None]) -> Path:
    """A new folder, noted before it is made, in the first place that has room for the paths of sockets."""
    faults = []
    for outer in _places():
        if len(os.fsencode(f"{outer}{LONGEST_BELOW}")) > SOCKET_BYTES:
            most = SOCKET_BYTES - len(LONGEST_BELOW)
            faults.append(f"the path of {outer} is longer than {most} bytes, which Ray's sockets leave for it")
            continue
        folder = Path(outer) / f"ray_{secrets.token_hex(4)}"
        record.write_text(json.dumps({"host": socket.gethostname(), "folder": str(folder)}))
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            faults.append(f"{outer}: {error.strerror}")
            continue
        if faults:
            tell(f"temporary files go to {outer}: {'; '.join(faults)}")
        return folder
    raise InputError(
        f"TMPDIR: a short folder that can be written is needed, but: {'; '.join(faults)}; set TMPDIR to one"
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
