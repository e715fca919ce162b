"""Checkpoints as folders: which one counts, what is kept, and what a fault at any file operation leaves behind."""

import errno
import io
import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tune_dlrml.errors import StorageError
from tune_dlrml.training.checkpoint import (
    MARKER,
    Attempt,
    discard_checkpoints,
    keep_newest_checkpoint,
    newest_checkpoint,
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(attempt: Attempt, step: int) -> Path:
    partial = attempt.partial(step)
    (partial / "weights").write_bytes(b"weights of step %d" % step)
    (partial / "state").write_bytes(b"state of step %d" % step)
    return attempt.seal(partial)


def begin(folder: Path, keep: int = 2) -> Attempt:
    return Attempt.begin(folder, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))


def test_the_newest_complete_checkpoint_is_that_of_the_highest_step_over_all_attempts(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    first = begin(tmp_path, keep=9)
    assert (first.number, first.resumed, newest_checkpoint(tmp_path)) == (0, None, None)
    save(first, 90)
    second = begin(tmp_path, keep=9)
    assert second.resumed is not None and second.resumed.step == 90
    save(second, 100)
    save(first, 95)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.step, newest.attempt, newest.path) == (100, 1, tmp_path / "attempt-1" / "checkpoint-100")
    save(first, 100)
    assert newest_checkpoint(tmp_path) == newest


def test_a_marker_lists_size_and_sha256_of_every_file(tmp_path: Path) -> None:
    marker = json.loads((save(begin(tmp_path), 3) / MARKER).read_text())
    assert marker == {
        "files": {
            "state": {"size": 15, "sha256": "d869c3eeb8b1169d5be1667b005728947ef2ba0162d4e3fca1db13efda9f994f"},
            "weights": {"size": 17, "sha256": "3e14e6a07d9b7ca2eada523b6eea5b8d7afab55acb3bcf6cb5473017325a93b8"},
        }
    }


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing file": ("weights", lambda folder: (folder / "weights").unlink()),
    "short file": ("weights", lambda folder: os.truncate(folder / "weights", 3)),
    "empty file": ("state", lambda folder: os.truncate(folder / "state", 0)),
    "longer file": ("state", lambda folder: (folder / "state").open("ab").write(b"x")),
    "flipped bit": ("state", lambda folder: flipped(folder / "state")),
    "no marker": (MARKER, lambda folder: (folder / MARKER).unlink()),
    "torn marker": (MARKER, lambda folder: os.truncate(folder / MARKER, 40)),
    "empty marker": (MARKER, lambda folder: os.truncate(folder / MARKER, 0)),
    "binary marker": (MARKER, lambda folder: (folder / MARKER).write_bytes(b"\xff\xfe\x00")),
    "other JSON": (MARKER, lambda folder: (folder / MARKER).write_text('{"files": ["weights"]}')),
    "a number": (MARKER, lambda folder: (folder / MARKER).write_text("7")),
    "empty folder": (MARKER, lambda folder: [path.unlink() for path in folder.iterdir()]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_passed_over_with_a_warning_and_removed_by_the_next_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    attempt = begin(tmp_path, keep=3)
    sound, torn = save(attempt, 2), save(attempt, 4)
    file, tear = DAMAGES[damage]
    tear(torn)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.path == sound
    assert str(torn) in caplog.text and f": {file} " in caplog.text
    resumed = begin(tmp_path).resumed
    assert resumed is not None and resumed.path == sound
    assert not torn.exists()


def test_nothing_is_newest_where_all_are_torn(tmp_path: Path) -> None:
    attempt = begin(tmp_path)
    for step in (2, 4):
        flipped(save(attempt, step) / "weights")
    assert newest_checkpoint(tmp_path) is None
    assert begin(tmp_path).resumed is None


def test_what_is_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    attempt = begin(tmp_path)
    (attempt.partial(2) / "weights").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_are_kept_over_all_attempts(tmp_path: Path) -> None:
    first = begin(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(first, step)
    assert names(tmp_path) == ["attempt-0/checkpoint-2", "attempt-0/checkpoint-3"]
    second = begin(tmp_path, keep=2)
    save(second, 4)
    assert names(tmp_path) == ["attempt-0/checkpoint-3", "attempt-1/checkpoint-4"]
    save(second, 5)
    assert names(tmp_path) == ["attempt-1/checkpoint-4", "attempt-1/checkpoint-5"]
    assert not first.path.exists()


def test_a_torn_checkpoint_does_not_push_a_sound_one_out(tmp_path: Path) -> None:
    first = begin(tmp_path)
    save(first, 2)
    flipped(save(first, 4) / "weights")
    save(begin(tmp_path), 4)
    assert names(tmp_path) == ["attempt-0/checkpoint-2", "attempt-1/checkpoint-4"]


def test_a_new_attempt_removes_what_earlier_ones_left_half_written(tmp_path: Path) -> None:
    first, second = begin(tmp_path), begin(tmp_path)
    first_partial = second.partial(3)
    third = begin(tmp_path)
    assert third.number == 2
    assert not first_partial.exists() and not first.path.exists() and not second.path.exists()


def test_attempts_never_share_a_folder_and_the_orphan_of_one_harms_no_later_one(tmp_path: Path) -> None:
    orphan = begin(tmp_path, keep=1)
    save(orphan, 2)
    present = begin(tmp_path, keep=2)
    partial = present.partial(3)
    save(orphan, 5)
    assert partial.exists() and present.path != orphan.path
    present.seal(partial)
    save(orphan, 6)
    assert names(tmp_path) == ["attempt-0/checkpoint-6", "attempt-1/checkpoint-3"]


def test_the_orphan_of_a_removed_attempt_cannot_write_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    orphan = begin(tmp_path)
    assert [begin(tmp_path).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(StorageError, match="attempt-0"):
        orphan.partial(2)


def test_discarding_leaves_nothing_and_keeping_the_newest_leaves_that(tmp_path: Path) -> None:
    for folder in (tmp_path / "discarded", tmp_path / "kept"):
        folder.mkdir()
        (folder / "events.jsonl").touch()
        first = begin(folder)
        save(first, 2)
        save(first, 4)
        begin(folder).partial(6)
        (save(begin(folder), 8) / "state").write_bytes(b"")
    discard_checkpoints(tmp_path / "discarded")
    keep_newest_checkpoint(tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "discarded").iterdir()) == ["events.jsonl"]
    assert names(tmp_path / "kept") == ["attempt-0/checkpoint-4"]
    for function in (discard_checkpoints, keep_newest_checkpoint):
        function(tmp_path / "kept" / "none")


class Killed(BaseException):
    """The process ends here: no handler of the package runs."""


WRITES = [(os, name) for name in ("mkdir", "open", "fsync", "rename", "unlink", "rmdir", "listdir")] + [(io, "open")]


@contextmanager
def failing(at: int, error: BaseException) -> Iterator[list[str]]:
    """Let the file operation number `at` raise; yields the names of those that were called."""
    called: list[str] = []

    def wrapped(name: str, operation: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            called.append(name)
            if len(called) == at:
                raise error
            return operation(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in WRITES:
            patch.setattr(module, name, wrapped(name, getattr(module, name)))
        yield called


def attempt_one_more(folder: Path, step: int) -> None:
    attempt = begin(folder)
    partial = attempt.partial(step)
    try:
        for name in ("weights", "state"):
            with (partial / name).open("wb") as file:
                file.write(f"{name} of step {step}".encode())
        attempt.seal(partial)
    except (OSError, StorageError):
        attempt.abandon(partial)
        raise


@pytest.mark.parametrize("kind", ["full", "read-only", "killed"])
def test_a_fault_at_any_file_operation_leaves_the_earlier_checkpoint_or_the_new_one(tmp_path: Path, kind: str) -> None:
    error = {
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "read-only": OSError(errno.EROFS, "Read-only file system"),
        "killed": Killed(),
    }[kind]
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        first = begin(folder, keep=2)
        save(first, 1)
        save(first, 2)
        try:
            with failing(at, error) as called:
                attempt_one_more(folder, 3)
        except (Killed, StorageError, OSError):
            pass
        if len(called) < at:
            break
        newest = newest_checkpoint(folder)
        assert newest is not None and newest.step in (2, 3), (at, called[-1])
        for name in ("weights", "state"):
            assert (newest.path / name).read_text() == f"{name} of step {newest.step}"
        attempt_one_more(folder, 4)
        assert [name.partition("/")[2] for name in names(folder)][-1] == "checkpoint-4"
        assert not list(folder.glob("*/*.partial")) and len(names(folder)) == 2, at
    assert at > 30


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_write_names_folder_cause_and_remedy_and_survives_pickling(tmp_path: Path, code: int) -> None:
    attempt = begin(tmp_path)
    with failing(1, OSError(code, os.strerror(code))), pytest.raises(StorageError) as caught:
        attempt.partial(3)
    error = pickle.loads(pickle.dumps(caught.value))
    folder = tmp_path / "attempt-0" / "checkpoint-3.partial"
    assert str(error) == (
        f"a trial's checkpoints must be readable and writable, but in {folder}: {os.strerror(code)}. Free space in "
        f"{folder} or make it writable, then give the same command again: the search resumes from the last complete "
        "checkpoints."
    )
    assert error.exit_code == 130


def test_what_cannot_be_removed_is_warned_of_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = begin(tmp_path, keep=1)
    save(attempt, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError(13, "not yours")))
        save(attempt, 2)
    assert names(tmp_path) == ["attempt-0/checkpoint-1", "attempt-0/checkpoint-2"]
    assert "checkpoint-1 cannot be removed: not yours" in caplog.text
