import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tune_dlrml.cluster import driver_tmp
from tune_dlrml.cluster.driver_tmp import kept_folder, scratch_folder
from tune_dlrml.errors import InputError

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def search(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    return folder


def record(search: Path, folder: str, host: str | None = None) -> None:
    (search / "scratch.json").write_text(json.dumps({"host": host or socket.gethostname(), "folder": folder}))


def sleeping(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(SLEEPER, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    return process


def test_temporary_files_of_this_process_and_its_children_go_there_for_the_while(search, tmp_path):
    with scratch_folder(search, print) as folder:
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        Path(tempfile.mkdtemp(), "file").write_text("x")
    assert not folder.exists() and not (search / "scratch.json").exists()
    assert tempfile.gettempdir() == str(tmp_path)


def test_what_a_killed_driver_left_is_cleared_and_its_processes_ended(search, tmp_path):
    left = tmp_path / "ray_0123abcd"
    left.mkdir()
    (left / "file").write_text("x")
    record(search, str(left))
    orphan, other = sleeping(left), sleeping(tmp_path)
    try:
        with scratch_folder(search, print):
            assert not left.exists()
            assert not psutil.pid_exists(orphan.pid)
            assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.communicate()


def test_a_process_that_forgot_its_environment_is_known_by_its_open_files(search, tmp_path):
    left = tmp_path / "ray_0123abcd"
    left.mkdir()
    record(search, str(left))
    program = f"import time; log = open({str(left / 'log')!r}, 'w'); print('up', flush=True); time.sleep(600)"
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None and agent.stdout.readline() == "up\n"
        with scratch_folder(search, print):
            assert not psutil.pid_exists(agent.pid)
    finally:
        agent.kill()
        agent.communicate()


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_folder_of_another_machine_or_of_another_kind_is_left_alone(search, tmp_path, host):
    kept = tmp_path / ("ray_0123abcd" if host else "precious")
    kept.mkdir()
    record(search, str(kept), host)
    with scratch_folder(search, print):
        assert kept.exists()


def said_of(folder: Path | str, search: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """Where the scratch folder is if the temporary one is `folder`, and what is told."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    told: list[str] = []
    with scratch_folder(search, told.append) as scratch:
        with socket.socket(socket.AF_UNIX) as listening:
            session = scratch / "session_2026-12-31_23-59-59_999999_4194304" / "sockets"
            session.mkdir(parents=True)
            listening.bind(str(session / "plasma_store"))
        return scratch.parent, told


@pytest.mark.parametrize("name", ["a b", "%41", "q?x", "h#x", "[x]", "'", "ü" * 6, "x" * 12, "a:b@c"])
def test_any_short_temporary_folder_is_used_without_a_notice(search, monkeypatch, name):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as outer:
        folder = Path(outer, name)
        folder.mkdir()
        assert said_of(folder, search, monkeypatch) == (folder, [])


@pytest.mark.parametrize("name", ["x" * 85, "ü" * 12, "slurm/job-1234567/node-0042/tmp", "a b/" * 12])
def test_a_temporary_folder_too_long_for_sockets_gives_way_to_a_short_one(search, tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    place, told = said_of(folder, search, monkeypatch)
    assert place == Path("/tmp") and os.listdir(folder) == []
    assert len(told) == 1 and str(folder) in told[0] and "/tmp" in told[0]


@pytest.mark.parametrize("name", ["missing", "missing/" * 30])
def test_a_temporary_folder_that_is_not_there_is_replaced(search, tmp_path, monkeypatch, name):
    monkeypatch.delenv("TEMP", raising=False)
    monkeypatch.delenv("TMP", raising=False)
    assert said_of(tmp_path / name, search, monkeypatch) == (Path("/tmp"), [])


def test_where_no_short_folder_can_be_written_it_is_refused_by_name(search, tmp_path, monkeypatch):
    monkeypatch.setattr(driver_tmp, "SHORT_FOLDERS", ("/proc", "/nonexistent"))
    with pytest.raises(InputError, match=r"TMPDIR: .* longer than \d+ bytes.*; /proc: .*; /nonexistent: No such file"):
        said_of(tmp_path, search, monkeypatch)


@pytest.mark.parametrize("torn", ["", "{", '{"host": "here"}', "[]"])
def test_a_record_torn_by_a_crash_is_passed_over(search, torn):
    (search / "scratch.json").write_text(torn)
    with scratch_folder(search, print) as folder:
        assert folder.is_dir()


def test_searches_inside_a_kept_folder_have_that_one_and_leave_it(search, tmp_path):
    with kept_folder(print) as kept:
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(kept)
        for _ in range(2):
            with scratch_folder(search, print) as folder:
                assert folder == kept
                assert json.loads((search / "scratch.json").read_text())["folder"] == str(kept)
            assert kept.is_dir() and not (search / "scratch.json").exists()
    assert not kept.exists() and tempfile.gettempdir() == str(tmp_path)
