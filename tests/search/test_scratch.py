import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tune_dlrml.search.scratch import scratch_folder

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
    with scratch_folder(search) as folder:
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
        with scratch_folder(search):
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
        with scratch_folder(search):
            assert not psutil.pid_exists(agent.pid)
    finally:
        agent.kill()
        agent.communicate()


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_folder_of_another_machine_or_of_another_kind_is_left_alone(search, tmp_path, host):
    kept = tmp_path / ("ray_0123abcd" if host else "precious")
    kept.mkdir()
    record(search, str(kept), host)
    with scratch_folder(search):
        assert kept.exists()


@pytest.mark.parametrize("torn", ["", "{", '{"host": "here"}', "[]"])
def test_a_record_torn_by_a_crash_is_passed_over(search, torn):
    (search / "scratch.json").write_text(torn)
    with scratch_folder(search) as folder:
        assert folder.is_dir()
