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
        self._seconds, self._idle, self._since = 0.0, 0, clock()

    def start(self, running: int) -> None:
        """All groups but those of the running trials are idle from now on."""
        with self._lock:
            self._count()
            self._idle = self._groups - running

    def stop(self) -> None:
        """No group is idle any more, as far as is known."""
        self.start(self._groups)

    def since_last(self) -> float:
        """The seconds since the last call of this method."""
        with self._lock:
            self._count()
            seconds, self._seconds = self._seconds, 0.0
        return round(seconds, 3)

    def _count(self) -> None:
        now = self._clock()
        self._seconds += self._idle * (now - self._since)
        self._since = now
