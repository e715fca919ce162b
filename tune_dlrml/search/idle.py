"""How long worker groups have no trial."""

import threading
import time
from collections.abc import Callable


class IdleTime:
    """The time in which worker groups have no trial, in seconds, summed over the groups; used by two threads.

    Args:
        groups: Number of them.
        clock: In seconds.
    """

    def __init__(self, groups: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._groups, self._clock, self._lock = groups, clock, threading.Lock()
        self._seconds, self._waited, self._idle, self._since = 0.0, 0.0, 0, clock()

    def start(self, running: int) -> float:
        """All groups but those of the running trials are idle from now on.

        Returns:
            The seconds since `take` in which any group was idle, not summed over the groups.
        """
        with self._lock:
            self._count()
            self._idle = self._groups - running
            return self._waited

    def stop(self) -> None:
        """No group is idle any more, as far as is known."""
        self.start(self._groups)

    def take(self) -> float:
        """The seconds up to the last call of any other method, which are given once."""
        with self._lock:
            seconds, self._seconds, self._waited = self._seconds, 0.0, 0.0
        return round(seconds, 3)

    def since_last(self) -> float:
        """The seconds up to now, which are given once."""
        with self._lock:
            self._count()
        return self.take()

    def _count(self) -> None:
        now = self._clock()
        self._seconds += self._idle * (now - self._since)
        self._waited += (self._idle > 0) * (now - self._since)
        self._since = now
