"""Opens the study's database, and turns its errors into the search's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EIO, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy  # Optuna's own dependency; here for the exceptions that it lets through, and for transactions

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.system.urls import without_password

BUSY_S = 60.0
"""Seconds to wait for another process that holds the SQLite file."""
FORM = "postgresql://user@host:5432/database"
AGAIN = "free space or repair it; the same command then resumes the search"
FULL_OR_READ_ONLY = ("is full", "readonly", "disk I/O error")
"""SQLite's messages about a faulty disk."""
OPENING = int.from_bytes(b"tunedlrm", "big")
"""Number of the lock for opening a database: eight letters, as PostgreSQL's locks have eight bytes."""
DISK_FAULTS = {ENOSPC, EDQUOT, EROFS, EACCES, EPERM, EIO}


def study_database(url: str) -> str:
    """The URL of a study for SQLAlchemy, with the driver that this project installs.

    Raises:
        InputError: It is not a URL, or not one of PostgreSQL.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(f"search.study_url: must be a URL such as {FORM}") from None
    if parsed.drivername.partition("+")[0] not in ("postgresql", "postgres"):
        raise InputError(
            f"search.study_url: a PostgreSQL database is needed, such as {FORM}, but got {without_password(url)}; "
            "without a study_url the study is SQLite in the search's folder, for searches on one machine"
        )
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file, whatever characters its path has."""
    plain, url = f"sqlite:///{file}", sqlalchemy.URL.create("sqlite", database=str(file))
    if url.render_as_string() == plain:
        return plain
    # With the driver named, since MLflow makes the folders of a path after `sqlite:///` in its escaped form.
    return url.set(drivername="sqlite+pysqlite").render_as_string()


def sqlite_file(url: str) -> Path:
    """The file of a SQLite URL."""
    return Path(sqlalchemy.make_url(url).database or "")


def is_sqlite(url: str) -> bool:
    """Whether a study lives in a file."""
    return url.startswith("sqlite")


def engine_options(url: str) -> dict[str, Any]:
    """Options with which SQLAlchemy waits for a busy file, and notices a dead connection of PostgreSQL."""
    if is_sqlite(url):
        return {"connect_args": {"timeout": BUSY_S}}
    ours = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
    # Also on the server, which otherwise holds the lock of a driver whose node lost power for hours.
    theirs = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, "options": theirs, **ours}}


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage behind a SQLAlchemy URL.

    Raises:
        InputError: It cannot be opened; the message shows the URL without its password.
        StorageError: It is a file on a disk that is full or read-only.
    """
    try:
        if is_sqlite(url):
            _make_file(url)
        with _one_at_a_time(url):
            return optuna.storages.RDBStorage(url, engine_kwargs=engine_options(url))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        if is_sqlite(url) and any(words in _cause(error) for words in FULL_OR_READ_ONLY):
            raise StorageError(f"{sqlite_file(url)}: {_cause(error)}; {AGAIN}") from None
        raise InputError(unreachable(url, error)) from None


@contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Keep other processes of this project from opening a PostgreSQL database inside the block.

    Optuna checks whether its tables exist and makes them, and two processes that do so at once on a new database fail.
    A file belongs to one search, which has one driver.
    """
    if is_sqlite(url):
        yield
        return
    engine = sqlalchemy.create_engine(url, **engine_options(url))
    try:
        with engine.connect() as connection:  # the end of its transaction releases the lock
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(OPENING)))
            yield
    finally:
        engine.dispose()


@contextmanager
def one_transaction(storage: optuna.storages.BaseStorage) -> Iterator[None]:
    """Commit all that this thread writes to a study inside the block at its end, or nothing.

    Optuna commits every attribute by itself, and each commit waits for the disk two or three times; a decision of a
    search is four to six of them. So its session joins a transaction of ours, which its commits do not end. Act on
    nothing before the end of the block. A storage without a database commits every write by itself.

    Raises:
        StorageInternalError: Optuna ignored an error of the database that undid a part.
    """
    if not isinstance(storage, optuna.storages.RDBStorage):
        yield
        return
    sessions = storage.scoped_session
    sessions.remove()
    with storage.engine.connect() as connection, connection.begin() as transaction:
        sessions(bind=connection, join_transaction_mode="rollback_only")
        try:
            yield
        finally:
            sessions.remove()
        if not transaction.is_active:
            raise optuna.exceptions.StorageInternalError("another process wrote to the same trial")


def unreachable(url: str, error: BaseException) -> str:
    """Message for a database that cannot be opened, without its password."""
    return (
        f"search.study_url: the study at {without_password(url)} cannot be opened: {_cause(error)}; the database must "
        "exist and its password come from PGPASSFILE, PGPASSWORD or the URL"
    )


def _make_file(url: str) -> None:
    """Make the tables of a new file in a partial one: SQLite commits each by itself, and an incomplete set stays so."""
    file = sqlite_file(url)
    if file.exists():
        return
    aside = file.with_name(f"{file.name}.partial")
    aside.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(sqlite_url(aside), engine_kwargs=engine_options(url))
    storage.remove_session()
    storage.engine.dispose()
    aside.rename(file)


@contextmanager
def faults_of_storage(place: str) -> Iterator[None]:
    """Turn a disk or a database that refuses a write of a search into a clear error.

    Args:
        place: The search's folder, for the message.

    Raises:
        StorageError: With the cause, and how to resume.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        raise StorageError(f"{error.filename or place}: cannot be written ({error.strerror}); {AGAIN}") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(f"the study of {place} cannot be written ({_cause(error)}); {AGAIN}") from error


def _cause(error: BaseException) -> str:
    """The database's own message, without the statement that it refused."""
    while not getattr(error, "orig", None) and error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
