"""The child that checks a proposal can do no harm even if the language of proposals could be left."""

import json
import os
import select
import subprocess
import sys

import pytest

from tune_dlrml.discovery.checks import Checker

pytestmark = pytest.mark.slow
PROGRAM = """
import json, os, socket, subprocess, sys
import torch
from tune_dlrml.discovery import check_process

def reading(): return open("secret").read()
def writing(): return open("written", "w").write("x")
def connecting(): return socket.socket()
def starting(): return subprocess.run(["true"])
def forking(): return os.fork() or os._exit(0)
def removing(): return os.remove("secret")
def importing(): return __import__("sqlite3")
def filling(): return torch.zeros(2 ** 40)
def telling(): return os.write(1, b"told")

torch.set_num_threads(1)
found = {}
for hooked in (False, True):
    reader, writer = os.pipe()
    if os.fork() == 0:
        check_process._confine(writer, 5, 256)
        if hooked:
            sys.addaudithook(check_process._refuse)
        done = {"environment": sorted(os.environ)}
        for attempt in (reading, writing, connecting, starting, forking, removing, importing, filling, telling):
            if not hooked and attempt is removing:
                continue
            try:
                done[attempt.__name__] = repr(attempt())
            except BaseException as error:
                done[attempt.__name__] = type(error).__name__
        os.write(writer, json.dumps(done).encode())
        os._exit(0)
    os.close(writer)
    found[str(hooked)] = json.loads(os.read(reader, 10 ** 6))
    os.wait()
sys.stdout.write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """What came of each attempt, by whether Python's audit hook is set beside the limits, and the folder."""
    folder = tmp_path_factory.mktemp("confined")
    (folder / "secret").write_text("kept")
    environment = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{PROGRAM}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("{"), "what a child writes to its output is not told"
    return json.loads(done.stdout), folder


def test_the_limits_alone_leave_no_file_no_socket_and_no_memory(attempts):
    alone = attempts[0]["False"]
    for attempt in ("reading", "writing", "connecting", "starting"):
        assert alone[attempt] in ("OSError", "BlockingIOError"), attempt
    assert alone["filling"] == "RuntimeError"


def test_the_hook_refuses_all_that_is_more_than_computing(attempts):
    hooked, folder = attempts[0]["True"], attempts[1]
    for attempt in ("reading", "writing", "connecting", "starting", "forking", "removing", "importing"):
        assert hooked[attempt] == "InputError", attempt
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == "kept"


def test_the_child_knows_nothing_of_the_environment(attempts):
    assert attempts[0]["True"]["environment"] == ["LC_CTYPE", "OMP_NUM_THREADS"]


def test_a_checker_passes_on_no_variable_of_its_own(monkeypatch):
    given = {}

    def refusing(*_, **options):
        given.update(options)
        raise OSError

    monkeypatch.setenv("PROPOSER_KEY", "secret")
    monkeypatch.setattr(subprocess, "Popen", refusing)
    with pytest.raises(OSError):
        Checker().start()
    threads = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert set(given["env"]) == threads | {"CUDA_VISIBLE_DEVICES", "PYTHONDONTWRITEBYTECODE"}


def test_the_process_ends_with_the_one_that_started_it():
    program = (
        "import sys, time\nfrom tune_dlrml.discovery.checks import Checker\nchecker = Checker()\nchecker.start()\n"
        "sys.stdout.write(f'{checker._process.pid}\\n')\nsys.stdout.flush()\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        watched = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    ended, _, _ = select.select([watched], [], [], 30)
    assert ended == [watched]
