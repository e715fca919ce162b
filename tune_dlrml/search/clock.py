"""The training time of a search, summed over all of its drivers, which `search.time_budget_s` limits."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from ray.tune.stopper import Stopper

from tune_dlrml.study.database import faults_of_storage

TICK_S = 5.0
"""How often the time is recorded; a driver that is killed loses at most this."""

_log = logging.getLogger(__name__)


class TimeKeeper(Protocol):
    """Where the time is kept: the study, since it outlives every driver."""

    @property
    def spent_s(self) -> float:
        """The last recorded time."""

    def keep_time(self, spent_s: float) -> None:
        """Record the time; also called from the clock's own thread."""


class SearchClock:
    """Measures the training time of a search, starting from the time that the last driver recorded.

    While it runs a thread records the time. A failed write is only logged, since a later one may succeed; the last one
    has to succeed.

    Args:
        keeper: The study.
        budget_s: Time budget of all drivers together; None for no limit.
    """

    def __init__(self, keeper: TimeKeeper, budget_s: float | None) -> None:
        self._keeper, self._budget_s = keeper, budget_s
        self._before_s = keeper.spent_s
        self._began: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="clock", daemon=True)

    @contextmanager
    def running(self, runs: bool = True) -> Iterator[None]:
        """Run the clock inside the block, until `stop` or the block's end; once."""
        if runs:
            self._began = monotonic()
            self._thread.start()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Record the time and stop the clock; nothing if it does not run."""
        if self._began is None:
            return
        self._stopped.set()
        self._thread.join()
        self._before_s, self._began = self.spent_s, None
        self._keeper.keep_time(self._before_s)

    @property
    def spent_s(self) -> float:
        """Seconds up to now."""
        return self._before_s + (0.0 if self._began is None else monotonic() - self._began)

    def is_up(self) -> bool:
        """Whether the budget is spent."""
        return self._budget_s is not None and self.spent_s >= self._budget_s

    def _tick(self) -> None:
        while not self._stopped.wait(TICK_S):
            try:
                with faults_of_storage("this search"):
                    self._keeper.keep_time(self.spent_s)
            except Exception as error:
                _log.warning("the training time of the search could not be recorded: %s", error)


class TimeIsUp(Stopper):  # type: ignore[misc]
    """Has Tune stop all trials when a search's time is up; in the study they stay running."""

    def __init__(self, clock: SearchClock) -> None:
        self._clock = clock

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether the time is up."""
        return self._clock.is_up()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it, and the study's URL may hold a password."""
        return {}
