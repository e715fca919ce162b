"""Trials that are under way and from which nothing is heard: silent waiting becomes a message, or comes to an end."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from ray.exceptions import RayError
from ray.util.state.exception import RayStateApiException

from tune_dlrml.cluster.cluster import waited_for
from tune_dlrml.cluster.placement import OrphanedGroups
from tune_dlrml.config import ResourcesConfig
from tune_dlrml.search.tune.searcher import Silence, StudySearcher

LOOK_S, LOOKS = 5.0, 4
"""How often the watchdog looks, and how often at least within the time after which silence is told of."""
QUIET_S = 10.0
"""A trial that says nothing for so long may wait for resources that a dead worker group still holds."""

_log = logging.getLogger(__name__)


class Watchdog:
    """Tells of every silence once it has lasted `resources.silence_s`, and again each time it has doubled.

    It ends no trial: a first step may take long, and a group may wait for a node that comes tomorrow. But it frees the
    resources of worker groups that are gone.

    Args:
        searcher: Knows the trials under way.
        resources: What a worker group asks for, and the patience.
        tell: Whom to tell; called from the watchdog's own thread.
        waiting: Says what a worker group that has not started may be waiting for.
        free: Frees what dead worker groups still hold; how many did.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        resources: ResourcesConfig,
        tell: Callable[[str], None],
        waiting: Callable[[ResourcesConfig], str] = waited_for,
        free: Callable[[], int] | None = None,
    ) -> None:
        self._searcher, self._resources, self._tell, self._waiting = searcher, resources, tell, waiting
        self._free = free or OrphanedGroups().free
        self._told: dict[int, float] = {}
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
        """Free what holds a silent trial up, and tell of the silences that have lasted long enough."""
        if self._searcher.silences(QUIET_S):
            self._free_orphans()
        silences = self._searcher.silences(self._resources.silence_s)
        for silence in silences:
            if silence.seconds >= 2 * self._told.get(silence.number, 0.0):
                self._told[silence.number] = silence.seconds
                self._tell(self._text(silence))
        self._told = {silence.number: self._told[silence.number] for silence in silences}

    def _free_orphans(self) -> None:
        try:
            freed = self._free()
        except (RayError, RayStateApiException) as error:
            _log.warning("what dead worker groups hold is not known: %s", error)
            return
        if freed:
            self._tell(f"removed {freed} placement groups whose worker groups had died")

    def _text(self, silence: Silence) -> str:
        since = f"trial {silence.number}: nothing heard for {silence.seconds:.0f} s"
        if silence.steps:
            return f"{since} since step {silence.steps}; its workers hang, or a step of it takes longer than that"
        try:
            waiting = self._waiting(self._resources)
        except RayError as error:
            waiting = f"what is free is not known ({type(error).__name__})"
        return f"{since} since it was handed out; {waiting}"
