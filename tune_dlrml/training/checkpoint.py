"""Checkpoints of a trial on disk: where they lie, when one is complete, how one is written. Needs no torch.

    <search>/trials/<number>/attempt-<k>/checkpoint-<step>/

A checkpoint is written into `checkpoint-<step>.partial`. Its last file is the marker, with the sizes and sha256 of all
others; then the folder is renamed. So a folder with the final name was complete once, and the marker shows whether it
still is. Every attempt writes into its own folder: an orphaned process of an earlier attempt, on a node that was
thought dead, may still be writing into that one.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tune_dlrml.errors import StorageError
from tune_dlrml.system.files import sync_folder

MARKER = "complete.json"
PARTIAL = ".partial"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a trial. The newest is that of the highest step; of two at one step, the later attempt's.

    Attributes:
        step: Optimizer steps that are in it.
        attempt: Number of the attempt that wrote it.
        path: Its folder.
    """

    step: int
    attempt: int
    path: Path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a trial whose files all have the size and sha256 of its marker; None if there is none.

    A torn one is passed over with a warning.

    Args:
        folder: The trial's, `<search>/trials/<number>`.

    Raises:
        StorageError: A file is there and cannot be read.
    """
    with storing(folder):
        return next((found for found in _checkpoints(folder) if _is_complete(found)), None)


def keep_newest_checkpoint(folder: Path) -> None:
    """Remove all of an ended or paused trial but its newest complete checkpoint, and all if none is complete.

    Its worker has written and hashed it, mostly just before, and others wait: marker and sizes are enough here.
    """
    with storing(folder):
        newest = next((found for found in _checkpoints(folder) if _is_complete(found, hashed=False)), None)
    for attempt in _numbered(folder, "attempt").values():
        for path in _children(attempt):
            if newest is None or path != newest.path:
                _remove(path)
        _remove_empty(attempt)


def discard_checkpoints(folder: Path) -> None:
    """Remove every checkpoint of an ended trial, complete or not; what cannot be removed is warned of."""
    for attempt in _numbered(folder, "attempt").values():
        for path in _children(attempt):
            _remove(path)
        _remove_empty(attempt)


@dataclass(frozen=True)
class Attempt:
    """One try at a trial and the folder that it alone writes into.

    Attributes:
        number: k of `attempt-<k>`.
        path: Its folder.
        keep: How many checkpoints of the trial are kept.
        resumed: The checkpoint to resume from; None at the trial's start.
    """

    number: int
    path: Path
    keep: int
    resumed: Checkpoint | None

    @classmethod
    def begin(cls, folder: Path, *, keep: int) -> "Attempt":
        """Claim a new folder and find the checkpoint to resume from; newer damaged ones are removed.

        Raises:
            StorageError: The folder cannot be read or written.
        """
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            number, path = _claim(folder)
            resumed = None
            for found in _checkpoints(folder):
                if _is_complete(found):
                    resumed = found
                    break
                _remove(found.path)
            attempt = cls(number, path, keep, resumed)
            attempt._prune()
        return attempt

    def partial(self, step: int) -> Path:
        """The empty folder into which the checkpoint of a step is written.

        Raises:
            StorageError: It cannot be made.
        """
        path = self.path / f"checkpoint-{step}{PARTIAL}"
        with storing(path):
            path.mkdir()
        return path

    def seal(self, partial: Path) -> Path:
        """Make what was written durable and complete, give it its final name, and remove what is too old.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        with storing(partial):
            files = {path.relative_to(partial).as_posix(): _synced(path) for path in _files(partial)}
            with (partial / MARKER).open("w", encoding="utf-8") as marker:
                json.dump({"files": files}, marker, indent=1)
                marker.flush()
                os.fsync(marker.fileno())
            sync_folder(partial)
            final = partial.with_name(partial.name.removesuffix(PARTIAL))
            partial.rename(final)
            sync_folder(self.path)
        self._prune()
        return final

    def abandon(self, partial: Path) -> None:
        """Remove an unfinished checkpoint, to free its space."""
        shutil.rmtree(partial, ignore_errors=True)

    def _prune(self) -> None:
        """Keep the newest checkpoints of the trial, and nothing that earlier attempts left half-written.

        Later attempts are not touched: this one may be an orphan. Its own folder stays even when it is empty, so that
        the number of the newest attempt is never given out again.
        """
        known = [found for found in _checkpoints(self.path.parent) if found.attempt <= self.number]
        for old in known[self.keep :]:
            _remove(old.path)
        for number, earlier in _numbered(self.path.parent, "attempt").items():
            if number < self.number:
                for path in _children(earlier):
                    if path.name.endswith(PARTIAL):
                        _remove(path)
                _remove_empty(earlier)


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Tell a file operation that failed as what it means to the search.

    Raises:
        StorageError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"a trial's checkpoints must be readable and writable, but in {error.filename or folder}: "
            f"{error.strerror or error}. Free space in {folder} or make it writable, then give the same command "
            "again: the search resumes from the last complete checkpoints."
        ) from error


def _claim(folder: Path) -> tuple[int, Path]:
    """A folder that no other attempt has, even one that begins at the same moment."""
    number = max(_numbered(folder, "attempt"), default=-1) + 1
    while True:
        path = folder / f"attempt-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            sync_folder(folder)
            return number, path


def _checkpoints(folder: Path) -> list[Checkpoint]:
    """All that bears a checkpoint's name, torn or not, the newest first."""
    found = [
        Checkpoint(step, number, path)
        for number, attempt in _numbered(folder, "attempt").items()
        for step, path in _numbered(attempt, "checkpoint").items()
    ]
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.attempt), reverse=True)


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """Entries `<prefix>-<number>` of a folder, by their number."""
    matches = ((re.fullmatch(rf"{prefix}-(\d+)", path.name), path) for path in _children(folder))
    return {int(match[1]): path for match, path in matches if match}


def _children(folder: Path) -> list[Path]:
    """Entries of a folder; none if it is not there, or was removed by another attempt meanwhile."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_complete(checkpoint: Checkpoint, *, hashed: bool = True) -> bool:
    fault = _fault(checkpoint.path, hashed=hashed)
    if fault is not None:
        _log.warning("%s is torn and is passed over: %s", checkpoint.path, fault)
    return fault is None


def _fault(checkpoint: Path, *, hashed: bool) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if it is complete. Bytes are read only if `hashed`."""
    try:
        files = json.loads((checkpoint / MARKER).read_bytes())["files"]
        listed = [(str(name), int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()]
    except (FileNotFoundError, NotADirectoryError):
        return f"{MARKER} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} is not readable"
    for name, size, sha256 in listed:
        try:
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            with (checkpoint / name).open("rb") as file:
                if hashed and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return f"{name} has another sha256 than when it was written"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _synced(path: Path) -> dict[str, int | str]:
    """The marker's entry of a file whose bytes are on the disk."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": sha256}


def _remove(path: Path) -> None:
    """Remove a checkpoint, its marker first; one that stays costs space and nothing else, so it is only warned of."""
    try:
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
    except FileNotFoundError:
        pass  # an attempt on another node removed it
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error.strerror)


def _remove_empty(attempt: Path) -> None:
    with suppress(OSError):  # it has a checkpoint, or its attempt has just written one
        attempt.rmdir()
