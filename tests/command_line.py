"""`tune-dlrml` as a process of its own, and in this process, which spares seconds of imports.

In this process it is for commands that start nothing; what kills, streams and ends of processes do needs a real one.
"""

import io
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from tune_dlrml.cli.main import main

PROGRAM = str(Path(sys.executable).with_name("tune-dlrml"))


def without(*names: str) -> dict[str, str]:
    """The environment of this process but for some variables."""
    return {name: value for name, value in os.environ.items() if name not in names}


def on_this_cluster(*but: str) -> dict[str, str]:
    """The environment of a search that trains on the cluster of this test session (`local_ray`)."""
    return without(*but) | {"RAY_AUTH_MODE": "token"}


def started(*argv: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """The command as a process; what it prints is to be read by `communicate`."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([PROGRAM, *argv], cwd=folder, env=environment, **pipes)


def ended(process: subprocess.Popen[str], *, within_s: float) -> subprocess.CompletedProcess[str]:
    """A process at its end, which it must reach in time."""
    try:
        out, err = process.communicate(timeout=within_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def said(done: subprocess.CompletedProcess[str], runs: Path) -> str:
    """All that a search said, with the end of its logs: a process that Ray ends says why nowhere else."""
    logs = (f"{log}:\n{log.read_text(errors='replace')[-6000:]}" for log in sorted(runs.glob("*/search.log")))
    return "\n".join([done.stdout, done.stderr, *logs])


def called(*argv: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command in this process, whose arguments, environment, folder, streams and signals are put back."""
    handler = signal.getsignal(signal.SIGTERM)
    code: Any = 0
    with (
        tempfile.TemporaryFile("w+") as out,  # files, since what the libraries print is sent elsewhere by descriptor
        tempfile.TemporaryFile("w+") as err,
        mock.patch.object(sys, "argv", ["tune-dlrml", *argv]),
        mock.patch.dict(os.environ, environment, clear=True),
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
        told = [_content(stream) for stream in (out, err)]
    return subprocess.CompletedProcess(["tune-dlrml", *argv], code, *told)


def _content(stream: io.TextIOBase) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
