import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from cluster.services import PROJECT, Cluster, lacking

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.study import lock as lock_module
from tune_dlrml.study.database import study_database
from tune_dlrml.study.lock import only_driver
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy

HOLDER = """
import sys, time
from pathlib import Path
from tune_dlrml.study.lock import only_driver
with only_driver(sys.argv[1], Path(sys.argv[2]), "planted"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The study's database of docker/compose.yaml; its URL with the password."""
    secrets = tmp_path_factory.mktemp("secrets")
    subprocess.run([str(PROJECT / "docker" / "make-secrets.sh"), str(secrets)], check=True)
    password = (secrets / "study_pgpass").read_text().strip().rpartition(":")[2]
    cluster = Cluster(secrets)
    try:
        cluster.start_one("postgres")
        yield study_database(f"postgresql://study:{password}@127.0.0.1:{cluster.ports[5432]}/study")
    finally:
        assert cluster.end() == []


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param(
            "postgres",
            marks=[
                pytest.mark.postgres,
                pytest.mark.slow,
                pytest.mark.skipif(bool(lacking()), reason=f"PostgreSQL cannot run here, for want of {lacking()}"),
            ],
        ),
    ]
)
def url(request: Any, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def signed(url: str, config_with: Callable[..., SearchConfig]) -> Iterator[SearchStudy]:
    config = config_with()
    study = SearchStudy(config, proposer_of(config), url, full_steps=40)
    study.sign("node-7", 4711, "2026-11-25T10:00:00+00:00", {})
    yield study
    study.close()


def test_a_second_driver_is_refused_with_host_and_process_of_the_first(
    url: str, tmp_path: Path, signed: SearchStudy
) -> None:
    with only_driver(url, tmp_path, "planted"):
        with pytest.raises(InputError, match="process 4711 on host node-7"), only_driver(url, tmp_path, "planted"):
            pytest.fail("two drivers hold one lock")
        with only_driver(url, tmp_path / "..", "another"):
            pass
    with only_driver(url, tmp_path, "planted"):
        pass


def test_the_lock_of_a_killed_driver_is_gone_with_it(url: str, tmp_path: Path, signed: SearchStudy) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="already has a driver"), only_driver(url, tmp_path, "planted"):
        pass
    holder.kill()
    holder.communicate()
    deadline = time.monotonic() + 60
    while True:
        try:
            with only_driver(url, tmp_path, "planted") as lock:
                return lock.check()
        except InputError:  # on a busy machine PostgreSQL takes a moment to notice that the connection is gone
            assert time.monotonic() < deadline, "the lock outlives its driver"


def test_a_driver_whose_study_is_not_there_yet_is_named_as_beginning(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with (
        only_driver(url, tmp_path, "planted"),
        pytest.raises(InputError, match="just starting"),
        only_driver(url, tmp_path, "planted"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(bool(lacking()), reason=f"PostgreSQL cannot run here, for want of {lacking()}")
def test_a_driver_learns_that_the_database_ended_its_session(postgres: str, tmp_path: Path) -> None:
    admin = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with only_driver(postgres, tmp_path, "planted") as lock:
        lock.check()
        with admin.connect() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            connection.execute(sqlalchemy.text(others))
        with pytest.raises(StorageError, match="same command"):
            lock.check()
    admin.dispose()


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(bool(lacking()), reason=f"PostgreSQL cannot run here, for want of {lacking()}")
def test_a_study_in_postgresql_is_resumed_as_one_in_a_file_is(
    postgres: str, config_with: Callable[..., SearchConfig]
) -> None:
    config = config_with(sampler="random").model_copy(update={"name": "resumed"})
    first = SearchStudy(config, proposer_of(config), postgres, full_steps=40)
    issued = first.ask()
    assert issued is not None
    first.record(issued.number, 5, 0.75)
    assert first.verdict(issued.number, 5) == "continue"
    first.close()
    second = SearchStudy(config, proposer_of(config), postgres, full_steps=40)
    assert second.interrupted() == [issued.number]
    again = second.reissue(issued.number)
    assert (again.params, again.attempt) == (issued.params, 1)
    assert second.row(issued.number).value == 0.75
    second.close()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has every lock of the operating system fail as on a file system that keeps none."""

    def fail(number: int) -> None:
        def flock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)
        monkeypatch.setattr(lock_module, "LEASE_S", 0.6)
        monkeypatch.setattr(lock_module, "REFRESH_S", 0.1)

    return fail


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_a_file_system_keeps_no_locks_a_lease_does(
    tmp_path: Path, without_locks: Callable[[int], None], number: int
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    without_locks(number)
    with only_driver(url, tmp_path, "planted") as lock:
        with pytest.raises(InputError, match="already has a driver"), only_driver(url, tmp_path, "planted"):
            pytest.fail("two drivers hold one lease")
        lock.check()
    with only_driver(url, tmp_path, "planted"):  # it was given back, so nobody waits for its end
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {"lock", "lease.lock"}


LEASEHOLDER = """
import errno, fcntl, sys, time
from pathlib import Path
from tune_dlrml.study import lock
def flock(*_): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
lock.LEASE_S, lock.REFRESH_S = 0.6, 0.1
with lock.only_driver(sys.argv[1], Path(sys.argv[2]), "planted") as held:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        while True:
            held.check()
            time.sleep(0.02)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture
def leaseholder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver that holds the lease of `tmp_path`, and does not outlive its test, however that ends."""
    command = [sys.executable, "-c", LEASEHOLDER, f"sqlite:///{tmp_path / 'study.db'}", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_the_lease_of_a_killed_driver_is_taken_over(
    tmp_path: Path, leaseholder: subprocess.Popen[str], without_locks: Callable[[int], None]
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    without_locks(errno.ENOLCK)
    with pytest.raises(InputError, match="already has a driver"), only_driver(url, tmp_path, "planted"):
        pass
    leaseholder.kill()
    leaseholder.communicate()
    with only_driver(url, tmp_path, "planted") as lock:
        lock.check()


def test_a_driver_that_slept_for_longer_than_its_lease_learns_that_it_is_lost(
    tmp_path: Path, leaseholder: subprocess.Popen[str], without_locks: Callable[[int], None]
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    without_locks(errno.ENOLCK)
    leaseholder.send_signal(signal.SIGSTOP)
    with only_driver(url, tmp_path, "planted") as lock:
        lock.check()
        leaseholder.send_signal(signal.SIGCONT)
        told, _ = leaseholder.communicate("\n", timeout=60)
        assert told.startswith("StorageError") and "another driver may have started" in told
        lock.check()


def test_another_fault_of_the_disk_is_none_of_locks(tmp_path: Path, without_locks: Callable[[int], None]) -> None:
    without_locks(errno.EIO)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(OSError, match="Input/output"), only_driver(url, tmp_path, "planted"):
        pass
