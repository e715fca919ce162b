"""Searches that begin at once on a new database do not keep each other from it."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import has_postgres, postgres_server

from tune_dlrml.study.database import open_storage, study_database

PASSWORD = "any"


@pytest.fixture
def database() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server is another user's
        with postgres_server(folder, PASSWORD) as url:
            yield study_database(url.replace("canary@", f"canary:{PASSWORD}@"))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.skipif(not has_postgres(), reason="there is no PostgreSQL server here")
def test_a_new_database_is_opened_by_many_at_once(database: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        storages = list(pool.map(open_storage, [database] * 8))
    assert [storage.get_all_studies() for storage in storages] == [[]] * 8
    for storage in storages:
        storage.engine.dispose()
