"""Detects that an endpoint is unavailable, and not only that a few requests failed."""

import threading

SILENT_CYCLES = 3
"""Number of consecutive cycles of retries without any reply after which an endpoint is unavailable."""


class Outage:
    """Distinguishes an unavailable endpoint from single failed requests; may be used from several threads.

    Threads that fail together fail by the same outage, so failures are not simply counted. A cycle is one completion
    with all its retries. A cycle without a reply counts if since its start no thread got a reply and no other cycle
    counted. An endpoint found unavailable stays so for cycles that started before; a later cycle tries it again, and
    one such cycle without a reply is enough to find it still unavailable.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._learnt = self._down_since = self._cycles = 0

    def begin(self) -> int:
        """A mark of the start of a cycle."""
        with self._lock:
            return self._learnt

    def has_ended(self, began: int) -> bool:
        """Whether the endpoint was found unavailable after this mark, so that the cycle is pointless."""
        with self._lock:
            return began < self._down_since

    def heard(self) -> None:
        """Record a reply."""
        with self._lock:
            self._learnt += 1
            self._down_since = self._cycles = 0

    def unheard(self, began: int) -> bool:
        """Record that a cycle from this mark got no reply; returns whether the endpoint is unavailable."""
        with self._lock:
            if began == self._learnt:
                self._learnt += 1
                self._cycles += 1
                if self._cycles >= SILENT_CYCLES:
                    self._down_since = self._learnt
            return began < self._down_since
