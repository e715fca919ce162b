"""One driver a search: a lock that vanishes with the process that holds it, whatever ends that process."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy
from filelock import FileLock, Timeout

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.search.database import engine_options, is_sqlite, unreachable
from tune_dlrml.search.history import StudyHistory


class DriverLock:
    """Held by the driver of a search.

    Args:
        session: Of PostgreSQL, which holds the lock; None for a lock on a file, which only the end of this process
            takes away.
    """

    def __init__(self, session: sqlalchemy.Connection | None = None) -> None:
        self._session = session

    def check(self) -> None:
        """Make sure that the lock is still this driver's.

        Raises:
            StorageError: PostgreSQL ended the session, and so another driver may have begun.
        """
        if self._session is not None:
            try:
                self._session.execute(sqlalchemy.text("SELECT 1"))
            except sqlalchemy.exc.SQLAlchemyError as error:
                raise StorageError(
                    "the database ended the session that held this search's lock, so another driver may have begun "
                    f"({type(error).__name__}); the same command goes on with the search"
                ) from None


@contextmanager
def only_driver(url: str, folder: Path, name: str) -> Iterator[DriverLock]:
    """Hold the locks of a search: on `<folder>/lock`, and in the database where the study is in PostgreSQL.

    The first keeps two studies out of one folder, the second two folders out of one study, on whatever nodes.

    Args:
        url: Of the study.
        folder: Of the search.
        name: Of the search.

    Raises:
        InputError: Another driver holds it; the message names its host and process.
        StorageError: The database does not answer; it may be back when the same command is run again.
    """
    with _file_lock(url, folder, name):
        if is_sqlite(url):
            yield DriverLock()
        else:
            with _database_lock(url, name) as lock:
                yield lock


@contextmanager
def _file_lock(url: str, folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _refusal(url, name) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _database_lock(url: str, name: str) -> Iterator[DriverLock]:
    key = int.from_bytes(hashlib.sha256(f"tune_dlrml/{name}".encode()).digest()[:8], "big", signed=True)
    # A pool would hand the session, and with it the lock, to others.
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **_without_pool(engine_options(url)))
    try:
        session = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        taken = session.execute(sqlalchemy.select(sqlalchemy.func.pg_try_advisory_lock(key))).scalar()
    except sqlalchemy.exc.OperationalError as error:
        raise StorageError(unreachable(url, error)) from None
    try:
        if not taken:
            raise _refusal(url, name)
        yield DriverLock(session)
    finally:
        session.close()


def _without_pool(options: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if not key.startswith("pool_")}


def _refusal(url: str, name: str) -> InputError:
    who = "it is just beginning"
    with suppress(InputError):
        history = StudyHistory.open(url, name)
        if history.driver:
            who = "process {pid} on host {host} runs it since {since}".format_map(history.driver)
        history.close()
    return InputError(f"search {name!r} has a driver already: {who}; wait for its end, or choose another --name")
