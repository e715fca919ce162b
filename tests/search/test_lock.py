import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from cluster.services import PROJECT, Cluster, lacking

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.search.database import study_database
from tune_dlrml.search.lock import only_driver
from tune_dlrml.search.study import SearchStudy
from tune_dlrml.space import SearchSpace

HOLDER = """
import sys, time
from pathlib import Path
from tune_dlrml.search.lock import only_driver
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
    study = SearchStudy(config, SearchSpace(config), url, full_steps=40)
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
    with pytest.raises(InputError, match="has a driver already"), only_driver(url, tmp_path, "planted"):
        pass
    holder.kill()
    holder.communicate()
    with only_driver(url, tmp_path, "planted") as lock:
        lock.check()


def test_a_driver_whose_study_is_not_there_yet_is_named_as_beginning(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with (
        only_driver(url, tmp_path, "planted"),
        pytest.raises(InputError, match="just beginning"),
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
    first = SearchStudy(config, SearchSpace(config), postgres, full_steps=40)
    issued = first.ask()
    assert issued is not None
    first.record(issued.number, 5, 0.75)
    assert first.verdict(issued.number, 5) == "continue"
    first.close()
    second = SearchStudy(config, SearchSpace(config), postgres, full_steps=40)
    assert second.interrupted() == [issued.number]
    again = second.reissue(issued.number)
    assert (again.params, again.attempt) == (issued.params, 1)
    assert second.row(issued.number).value == 0.75
    second.close()
