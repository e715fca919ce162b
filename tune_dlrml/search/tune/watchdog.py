"""Reports running trials that send no reports, and frees the resources for which they may be waiting."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from ray.exceptions import RayError
from ray.util.state.exception import RayStateApiException

from tune_dlrml.cluster.placement import OrphanedGroups
from tune_dlrml.config import ResourcesConfig
from tune_dlrml.search.tune.searcher import Silence, StudySearcher

LOOK_S, LOOKS = 5.0, 4
"""How often the watchdog looks, and how often at least within the time after which silence is reported."""
QUIET_S = 10.0
"""A trial without a report for so long may be waiting for resources that a dead worker group still holds."""

_log = logging.getLogger(__name__)


class Watchdog:
    """Reports every silence once it has lasted `resources.silence_s`, and again each time it has doubled.

    It ends no trial: a first step may take long, and a group may wait for a node that comes tomorrow. But it frees the
    resources of worker groups that are gone.

    Args:
        searcher: Knows the running trials.
        resources: What a worker group requests, and the patience.
        on_notice: Called with each message, from the watchdog's own thread.
        waiting: Describes what a trial without a first report may be waiting for.
        free: Frees what dead worker groups still hold; returns how many did.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        resources: ResourcesConfig,
        on_notice: Callable[[str], None],
        waiting: Callable[[ResourcesConfig], str],
        free: Callable[[], int] | None = None,
    ) -> None:
        self._searcher, self._resources, self._notify, self._waiting = searcher, resources, on_notice, waiting
        self._free = free or OrphanedGroups().free
        self._reported: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(LOOK_S, self._resources.silence_s / LOOKS)):
            self.look()

    def look(self) -> None:
        """Free what may block a silent trial, and report the silences that have lasted long enough."""
        if self._searcher.silences(QUIET_S):
            self._free_orphans()
        silences = self._searcher.silences(self._resources.silence_s)
        for silence in silences:
            if silence.seconds >= 2 * self._reported.get(silence.number, 0.0):
                self._reported[silence.number] = silence.seconds
                self._notify(self._text(silence))
        self._reported = {silence.number: self._reported[silence.number] for silence in silences}

    def _free_orphans(self) -> None:
        try:
            freed = self._free()
        except (RayError, RayStateApiException) as error:
            _log.warning("whether dead worker groups still hold resources is unknown: %s", error)
            return
        if freed:
            self._notify(f"removed {freed} placement groups whose worker groups had died")

    def _text(self, silence: Silence) -> str:
        since = f"trial {silence.number}: no report for {silence.seconds:.0f} s"
        if silence.steps:
            return f"{since} since step {silence.steps}; its workers hang, or one step takes longer than that"
        try:
            waiting = self._waiting(self._resources)
        except RayError as error:
            waiting = f"the free resources are unknown ({type(error).__name__})"
        return f"{since} since it was issued; {waiting}"
