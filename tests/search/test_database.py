import errno

import optuna
import pytest
import sqlalchemy

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.study.database import faults_of_storage, study_database


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_way_to_write_postgresql_gets_the_driver_that_is_installed(scheme):
    assert study_database(f"{scheme}://me:pw@host:5433/study") == "postgresql+psycopg://me:pw@host:5433/study"


@pytest.mark.parametrize(
    "url", ["sqlite:///study.db", "mysql://me:secret@host/study", "redis://:secret@host", "study.db", "", "://"]
)
def test_another_database_is_refused_without_its_password(url):
    with pytest.raises(InputError, match=r"search\.study_url: .*postgresql://user@host") as refusal:
        study_database(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_refuses_writes_is_reported_with_its_path_and_the_remedy(number):
    with pytest.raises(StorageError, match=r"/runs/toy/trials.*the same command") as told, faults_of_storage("/runs"):
        raise OSError(number, "why", "/runs/toy/trials")
    assert told.value.exit_code == 130


@pytest.mark.parametrize(
    "error",
    [
        sqlalchemy.exc.OperationalError("INSERT INTO trials", {}, Exception("database or disk is full")),
        optuna.exceptions.StorageInternalError("An exception is raised during the commit."),
    ],
)
def test_a_study_that_refuses_writes_is_reported_without_the_statement(error):
    cannot = "the study of /runs/toy cannot be written"
    with pytest.raises(StorageError, match=cannot) as told, faults_of_storage("/runs/toy"):
        raise error
    assert "INSERT" not in str(told.value)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "peer"), FileNotFoundError(errno.ENOENT, "x")]
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)), faults_of_storage("/runs"):
        raise error
