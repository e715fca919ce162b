"""One driver per search: a lock that is released with the process that holds it, whatever ends that process.

The operating system's own lock is released at once. A file system without locks, such as Lustre or NFS without its lock
service, gets a lease instead: a file that its driver refreshes while it lives. Other drivers take the lease over when
it was not refreshed for `LEASE_S`, so it outlives a killed driver by that long. A driver that was suspended for longer
may have lost it, and checks before it continues.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy
from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.study.database import engine_options, is_sqlite, unreachable
from tune_dlrml.study.history import StudyHistory
from tune_dlrml.system.files import WITHOUT_LOCKS

LEASE_S, REFRESH_S = 30.0, 5.0
"""How long a lease lasts without a refresh, and how often its driver refreshes it."""


class DriverLock:
    """Held by the driver of a search.

    Args:
        session: Of PostgreSQL, which holds the lock; None where there is only the lock on the folder.
        lost: Why this driver has lost the lock on the folder; None while it holds it. A lock of the operating system is
            never lost.
    """

    def __init__(
        self, session: sqlalchemy.Connection | None = None, lost: Callable[[], str | None] = lambda: None
    ) -> None:
        self._session, self._lost = session, lost

    def check(self) -> None:
        """Check that this driver still holds the lock.

        Raises:
            StorageError: PostgreSQL ended the session, or the lease was lost, so another driver may have started.
        """
        if (reason := self._lost()) is not None:
            raise StorageError(
                f"the search's folder supports no locks, and the lease used instead was lost ({reason}), so another "
                "driver may have started; the same command resumes the search"
            )
        if self._session is not None:
            try:
                self._session.execute(sqlalchemy.text("SELECT 1"))
            except sqlalchemy.exc.SQLAlchemyError as error:
                raise StorageError(
                    "the database ended the session that held this search's lock, so another driver may have started "
                    f"({type(error).__name__}); the same command resumes the search"
                ) from None


@contextmanager
def only_driver(url: str, folder: Path, name: str) -> Iterator[DriverLock]:
    """Hold the locks of a search: on `<folder>/lock`, and in the database where the study is in PostgreSQL.

    The first prevents two studies in one folder, the second two folders for one study, on any nodes.

    Args:
        url: Of the study.
        folder: Of the search.
        name: Of the search.

    Raises:
        InputError: Another driver holds it; the message names its host and process.
        StorageError: The database does not answer; the same command may succeed later.
    """
    with _file_lock(url, folder, name) as lost:
        if is_sqlite(url):
            yield DriverLock(lost=lost)
        else:
            with _database_session(url, name) as session:
                yield DriverLock(session, lost)


@contextmanager
def _file_lock(url: str, folder: Path, name: str) -> Iterator[Callable[[], str | None]]:
    """Hold a lock or a lease on a folder; yields a function that returns why it was lost."""
    reasons: list[str] = []
    try:
        lock = _acquired(folder, reasons)
    except Timeout:
        raise _refusal(url, name) from None
    try:
        yield lambda: reasons[0] if reasons else None
    finally:
        lock.release()


def _acquired(folder: Path, reasons: list[str]) -> BaseFileLock | SoftFileLease:
    """The lock on a folder, or a lease where the file system has no locks; `reasons` gets why a lease was lost."""
    lock = FileLock(folder / "lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        return lock
    except OSError as error:  # a Timeout is one, too, and has no number
        if error.errno not in WITHOUT_LOCKS:
            raise
    lease = SoftFileLease(
        folder / "lease",
        lease_duration=LEASE_S,
        heartbeat_interval=REFRESH_S,
        on_compromise=lambda compromise: reasons.append(str(compromise.error or compromise.reason)),
    )
    lease.acquire(timeout=LEASE_S + 2 * REFRESH_S)
    return lease


@contextmanager
def _database_session(url: str, name: str) -> Iterator[sqlalchemy.Connection]:
    """A session of PostgreSQL that holds the lock of a search."""
    key = int.from_bytes(hashlib.sha256(f"tune_dlrml/{name}".encode()).digest()[:8], "big", signed=True)
    # A pool would give the session, and so the lock, to other users.
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **_without_pool(engine_options(url)))
    try:
        session = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        locked = session.execute(sqlalchemy.select(sqlalchemy.func.pg_try_advisory_lock(key))).scalar()
    except sqlalchemy.exc.OperationalError as error:
        raise StorageError(unreachable(url, error)) from None
    try:
        if not locked:
            raise _refusal(url, name)
        yield session
    finally:
        session.close()


def _without_pool(options: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if not key.startswith("pool_")}


def _refusal(url: str, name: str) -> InputError:
    who = "it is just starting"
    with suppress(InputError):
        history = StudyHistory.open(url, name)
        if history.driver:
            who = "process {pid} on host {host} has been running it since {since}".format_map(history.driver)
        history.close()
    return InputError(f"search {name!r} already has a driver: {who}; wait for its end, or choose another --name")
