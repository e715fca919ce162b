"""One driver a search: a lock that vanishes with the process that holds it, whatever ends that process.

The operating system's own lock does so at once. Where a file system keeps none, as Lustre or NFS without its lock
service, a lease stands in: a file that its driver refreshes while it lives, and that others take over when they have
seen no refresh for `LEASE_S`, so that it outlives a killed driver by that long. A driver that slept for longer may have
lost it, and asks before it goes on.
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
"""How long a lease lasts that nobody refreshes, and how often its driver does."""


class DriverLock:
    """Held by the driver of a search.

    Args:
        session: Of PostgreSQL, which holds the lock; None where the lock on the folder is all.
        lost: Why the lock on the folder is another's by now; None while it is this driver's, as a lock of the operating
            system is to the end.
    """

    def __init__(
        self, session: sqlalchemy.Connection | None = None, lost: Callable[[], str | None] = lambda: None
    ) -> None:
        self._session, self._lost = session, lost

    def check(self) -> None:
        """Make sure that the lock is still this driver's.

        Raises:
            StorageError: PostgreSQL ended the session, or a lease was lost, and so another driver may have begun.
        """
        if (reason := self._lost()) is not None:
            raise StorageError(
                f"the search's folder keeps no locks, and the lease that stands in was lost ({reason}), so another "
                "driver may have begun; the same command goes on with the search"
            )
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
    with _file_lock(url, folder, name) as lost:
        if is_sqlite(url):
            yield DriverLock(lost=lost)
        else:
            with _database_session(url, name) as session:
                yield DriverLock(session, lost)


@contextmanager
def _file_lock(url: str, folder: Path, name: str) -> Iterator[Callable[[], str | None]]:
    """Hold a lock or a lease on a folder; what is yielded says why it was lost."""
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
    """The lock on a folder, or a lease where the file system keeps no locks; why a lease was lost goes to `reasons`."""
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
    # A pool would hand the session, and with it the lock, to others.
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
    who = "it is just beginning"
    with suppress(InputError):
        history = StudyHistory.open(url, name)
        if history.driver:
            who = "process {pid} on host {host} runs it since {since}".format_map(history.driver)
        history.close()
    return InputError(f"search {name!r} has a driver already: {who}; wait for its end, or choose another --name")
