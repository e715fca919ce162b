"""When an endpoint is away, and not only out of luck with a few requests."""

import threading

SILENT_CYCLES = 3
"""So many whole cycles of retries, one after another and without any reply, mean that an endpoint is away."""


class Outage:
    """Tells an endpoint that is away from requests that fail; may be used from several threads.

    Threads that fail together fail by the same outage, so it is no count of failures. A cycle is one completion with
    all its retries. One that got no reply counts if it began when nothing had been learnt since: no reply to any thread
    and no cycle that counted. An endpoint that was found away stays so for what began before that; what begins later
    asks it again, and one such cycle without a reply is enough to find it still away.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._learnt = self._away_since = self._cycles = 0

    def begin(self) -> int:
        """A mark of the moment at which a cycle begins."""
        with self._lock:
            return self._learnt

    def has_ended(self, began: int) -> bool:
        """Whether a cycle that began at this mark is pointless by now: the endpoint was found away after it."""
        with self._lock:
            return began < self._away_since

    def heard(self) -> None:
        """There was a reply."""
        with self._lock:
            self._learnt += 1
            self._away_since = self._cycles = 0

    def unheard(self, began: int) -> bool:
        """A cycle that began at this mark got no reply: whether the endpoint is away."""
        with self._lock:
            if began == self._learnt:
                self._learnt += 1
                self._cycles += 1
                if self._cycles >= SILENT_CYCLES:
                    self._away_since = self._learnt
            return began < self._away_since
