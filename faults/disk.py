"""A disk that fills up, or becomes read-only, while a search runs on it, and later has space again."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.toy_search import Failure, ToySearch, check_ended, check_mlflow, ended_afterwards, require, row, wait_for
from tune_dlrml.errors import StorageError

SIZE = "24m"


def run(*, seed: int) -> dict[str, Any]:
    del seed  # nothing here is drawn
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fault_disk_") as name:
        folder = Path(name)
        search = ToySearch(folder, trials=6, steps=240)
        search.runs.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", search.runs], check=False)
        if mounted.returncode != 0:
            return row("disk", 0, [], "not tried: mounting a small file system takes the rights of root")
        try:
            _fill(search)
            _make_read_only(search)
            search.run()
            check_ended(search)
            check_mlflow(search)
        except Failure as failure:
            failures.append(str(failure))
        finally:
            subprocess.run(["umount", "--lazy", search.runs], check=True)
    return row("disk", 2, failures, "full and read-only: exit 130, one message, then the same command completes")


def _fill(search: ToySearch) -> None:
    filler = search.runs / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(os.urandom(1 << 12))
            except OSError:
                pass

    _expect_the_end(search, fill, "No space left")
    filler.unlink()


def _make_read_only(search: ToySearch) -> None:
    """Before a start: the kernel refuses it while a search has files open for writing."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", search.runs], check=True)

    remount("ro")
    said = len(search.said())
    _check_the_end(search, search.start().wait(120), search.said()[said:], "Read-only")
    remount("rw")


def _expect_the_end(search: ToySearch, disturb: Callable[[], None], cause: str) -> None:
    """The search ends by itself while it trains."""
    before, said = search.progress(), len(search.said())
    driver = search.start()
    with ended_afterwards(driver):
        wait_for(lambda: search.progress() > before + 10, 120, "progress on a sound disk", driver)
        disturb()
        code = driver.wait(300)
    _check_the_end(search, code, search.said()[said:], cause)


def _check_the_end(search: ToySearch, code: int, told: str, cause: str) -> None:
    """Resumable, with one message that names the cause."""
    require(code == StorageError.exit_code, f"exit code {code} instead of {StorageError.exit_code}: {told}")
    require("Traceback" not in told and "same command" in told, f"no clear message: {told}")
    require(cause in told or "is full" in told, f"the message does not name the cause: {told}")
