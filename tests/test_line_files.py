"""A file of lines ends with the last line that was acknowledged, whatever a crash left behind it."""

import errno
import os
import random

import pytest

from tune_dlrml.system.line_files import append_line, complete_lines


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
@pytest.mark.parametrize("seed", range(12))
def test_acknowledged_lines_stay_and_torn_ones_go_wherever_the_file_is_cut(tmp_path, monkeypatch, seed, chunk):
    monkeypatch.setattr("tune_dlrml.system.line_files.CHUNK", chunk)
    dice, path, kept = random.Random(seed), tmp_path / "new" / "lines.jsonl", []
    for _ in range(12):
        line = dice.randbytes(dice.randrange(40)).replace(b"\n", b"-")
        append_line(path, line, durable=False)
        kept.append(line)
        assert path.read_bytes() == b"".join(each + b"\n" for each in kept)
        if dice.random() < 0.4:  # a crash somewhere in the newest line
            size = path.stat().st_size
            cut = dice.randint(size - len(line) - 1, size)
            os.truncate(path, cut)
            kept = kept if cut == size else kept[:-1]
        if dice.random() < 0.3:  # a tail that was never acknowledged
            with path.open("ab") as file:
                file.write(dice.randbytes(dice.randrange(30)).replace(b"\n", b"\0"))
        assert complete_lines(path.read_bytes()) == kept


def test_a_file_that_is_known_to_be_whole_is_not_searched_and_one_that_is_new_gets_its_names_on_the_disk(
    tmp_path, monkeypatch
):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), real(file)))
    path = tmp_path / "a" / "b" / "lines.jsonl"
    append_line(path, b"1", folders=3)
    assert synced == [str(each) for each in (path, path.parent, tmp_path / "a", tmp_path)]
    monkeypatch.setattr(os, "pread", None)
    append_line(path, b"2", clean=True, folders=3)
    append_line(path, b"3", clean=True, durable=False)
    assert synced[4:] == [str(path)] and path.read_bytes() == b"1\n2\n3\n"


def test_a_full_disk_is_an_error_and_what_it_tore_is_cut_off_by_the_next_line(tmp_path, monkeypatch):
    path, real, left = tmp_path / "lines.jsonl", os.write, [3]

    def full(file, data):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = real(file, data[: left[0]])
        left[0] -= taken
        return taken

    append_line(path, b"whole")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", full)
        append_line(path, b"too long")
    assert path.read_bytes() == b"whole\ntoo"
    append_line(path, b"next")
    assert complete_lines(path.read_bytes()) == [b"whole", b"next"]
