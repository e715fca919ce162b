"""Servers that tests start as processes of their own."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from cluster.services import free_ports

START_S = 120
POSTGRES = [shutil.which(name) for name in ("initdb", "postgres")]


@contextmanager
def process(argv: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program with all that it starts, for the time of the test."""
    with log.open("wb") as sink:
        running = subprocess.Popen(argv, stdout=sink, stderr=sink, start_new_session=True, **options)
    try:
        yield running
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(running.pid, number)
                running.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@contextmanager
def postgres_server(folder: Path, password: str) -> Iterator[str]:
    """A database of the user `canary` that asks for a password; yields its URL without it."""
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    secret = folder / "password"
    secret.write_text(password)
    if user:
        for path in (folder, secret):
            shutil.chown(path, "postgres", "postgres")
    initdb, postgres = (str(program) for program in POSTGRES)
    argv = [initdb, "-D", str(folder / "data"), "-U", "canary", "--auth", "scram-sha-256", "--pwfile", str(secret)]
    subprocess.run([*argv, "--no-sync"], check=True, capture_output=True, cwd=folder, **user)
    secret.unlink()
    (port,) = free_ports(1)
    argv = [postgres, "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    with process(argv, folder / "server.log", cwd=folder, **user):
        url = f"postgresql://canary@127.0.0.1:{port}/postgres"
        wait_for(lambda: psycopg.connect(url, password=password).close() is None)
        yield url


def wait_for(answers: object) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            assert answers()
            return
        except (OSError, psycopg.OperationalError):
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)


def has_postgres() -> bool:
    runnable = os.geteuid() != 0 or "postgres" in {user.pw_name for user in pwd.getpwall()}
    return None not in POSTGRES and runnable
