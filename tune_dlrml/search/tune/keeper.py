"""Worker groups that outlive their slots, for the searches of a notebook or a command that follow one another.

A keeper is an actor that owns the Ray Train runs. A slot leases a group: its workers find the slot's mailbox in the
keeper's lobby, train until that has no more trials for them, and come back. The mailbox stays the slot's own, so that
a killed slot ends its group as it does without a keeper, and a lost keeper costs no more than lost groups.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from tune_dlrml.errors import GroupDiedError
from tune_dlrml.records import TrialOutcome
from tune_dlrml.search.tune.group import CLOSE_S, NO_ERROR, Run, ask, leave, lost, new_mailbox
from tune_dlrml.training.group_spec import GroupShape, GroupSpec, Lease

CALLS = 64
"""Slots that a keeper answers at once; each waits for its group's return for up to `CLOSE_S`."""
LOOK_S = 0.25


class _Kept:
    """A worker group of a keeper."""

    def __init__(self, shape: GroupShape) -> None:
        self.shape = shape
        self.trials = 0
        self.is_idle = True
        self._lobby = new_mailbox()
        self._place = -1
        self.run = Run(shape, lobby=self._lobby)

    def lease(self, lease: Lease) -> None:
        """Have the workers train for a slot.

        Raises:
            GroupDiedError: The lobby is dead.
        """
        self.is_idle = False
        self._place = ask(self._lobby, "put", lease)

    def wait_for_return(self) -> bool:
        """Whether the workers are back in the lobby, within `CLOSE_S`."""
        deadline = time.monotonic() + CLOSE_S
        with suppress(GroupDiedError):
            while self.run.alive and time.monotonic() < deadline:
                if ask(self._lobby, "collect", self._place, LOOK_S):
                    return True
        return False

    def close(self) -> None:
        """Have the workers leave the lobby, and wait until they have."""
        leave(self.run, self._lobby)

    def give_up(self) -> None:
        """Close the lobby: workers that come back to it leave when they find it gone."""
        ray.kill(self._lobby)


class GroupKeeper:
    """Owns the worker groups of searches that follow one another; an actor."""

    def __init__(self) -> None:
        self._groups: dict[int, _Kept] = {}
        self._numbers = itertools.count()
        self._one_at_a_time = threading.Lock()

    def prepare(self, shape: GroupShape) -> None:
        """Start a group that the first slot will ask for, unless there is one; Tune and the slot start meanwhile."""
        with self._one_at_a_time:
            if self._fitting(shape) is None:
                self._start(shape)

    def lend(self, shape: GroupShape, lease: Lease) -> tuple[int, int]:
        """Have an idle group that fits, or else a new one, train for a slot: its number, and its trials so far."""
        with self._one_at_a_time:
            number = self._fitting(shape)
            if number is not None:
                try:
                    self._groups[number].lease(lease)
                    return number, self._groups[number].trials
                except GroupDiedError:
                    self._groups.pop(number).give_up()
            number = self._start(shape)
            self._groups[number].lease(lease)
            return number, 0

    def take_back(self, number: int, trials: int) -> None:
        """Wait for a group that its slot needs no more; one that does not come back is given up."""
        group = self._groups.get(number)
        if group is None:
            return
        group.trials = trials
        is_back = group.wait_for_return()
        with self._one_at_a_time:
            group.is_idle = is_back
            if not is_back and self._groups.pop(number, None) is not None:
                group.give_up()

    def is_alive(self, number: int) -> bool:
        """Whether a group's run is still running."""
        return number in self._groups and self._groups[number].run.alive

    def error(self, number: int) -> BaseException | None:
        """Why a group's run ended."""
        group = self._groups.get(number)
        return None if group is None else group.run.error

    def close_idle(self) -> None:
        """End the groups that no slot needs, and so free their resources."""
        with self._one_at_a_time:
            self._close_idle()

    def _fitting(self, shape: GroupShape) -> int | None:
        limit = shape.resources.trials_per_group
        return next(
            (
                number
                for number, group in self._groups.items()
                if group.is_idle
                and group.run.alive
                and group.shape.serves(shape)
                and (limit is None or group.trials < limit)
            ),
            None,
        )

    def _start(self, shape: GroupShape) -> int:
        """A new group; those that are idle do not fit, and may hold what it needs."""
        self._close_idle()
        number = next(self._numbers)
        self._groups[number] = _Kept(shape)
        return number

    def _close_idle(self) -> None:
        for number, group in [*self._groups.items()]:
            if group.is_idle:
                del self._groups[number]
                group.close()
            elif not group.run.alive:  # and its slot, which may still ask why, will not bring it back
                group.give_up()


class LeasedGroup:
    """A keeper's worker group, as its slot sees it.

    Args:
        spec: What its workers need.
        keeper: Handle of the keeper.

    Attributes:
        trials: How many it has been given, by its earlier slots as well.

    Raises:
        GroupDiedError: The keeper, or what it has just started, is dead.
    """

    def __init__(self, spec: GroupSpec, keeper: Any) -> None:
        self._keeper, self._mailbox = keeper, new_mailbox()
        lease = Lease(self._mailbox, ray.put(spec))
        self._number, self.trials = ask(keeper, "lend", spec.shape, lease)

    @property
    def alive(self) -> bool:
        """Whether its run is still running, as far as its keeper knows."""
        try:
            return bool(ask(self._keeper, "is_alive", self._number))
        except GroupDiedError:
            return False

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the mailbox.

        Raises:
            GroupDiedError: The mailbox is dead, and with it the only way to the workers, who leave when they notice.
        """
        return ask(self._mailbox, method, *args)

    def close(self) -> None:
        """Ask the workers to train for others, and wait until they have left."""
        with suppress(GroupDiedError):
            self.call("put", None)
        with suppress(GroupDiedError):
            ask(self._keeper, "take_back", self._number, self.trials)
        ray.kill(self._mailbox)

    def how_it_was_lost(self, number: int) -> TrialOutcome:
        """The outcome of the trial that the run was training when it ended; a worker reports its own exceptions."""
        try:
            error = ask(self._keeper, "error", self._number)
        except GroupDiedError:
            error = GroupDiedError("the keeper of the worker group died")
        return lost(number, error or GroupDiedError(NO_ERROR))


_keepers: dict[tuple[str, str], Any] | None = None
"""Of this process, by the cluster that it has joined and its job there, while a `kept_groups` is open."""


@contextmanager
def kept_groups() -> Iterator[None]:
    """Worker groups stay for all searches of this process inside the block, inside a `kept_cluster`."""
    global _keepers
    if _keepers is not None:
        yield
        return
    _keepers = {}
    try:
        yield
    finally:
        keepers, _keepers = _keepers, None  # first: who interrupts the rest leaves no keeper that is gone
        _close_idle(keepers)


def keeper_of(shape: GroupShape) -> Any:
    """The keeper of the search that this process drives, with a first group on its way; None outside `kept_groups`."""
    if _keepers is None:
        return None
    here = _here()
    if here not in _keepers:
        _keepers.clear()
        _keepers[here] = ray.remote(num_cpus=0, max_concurrency=CALLS)(GroupKeeper).remote()
    _keepers[here].prepare.remote(shape)
    return _keepers[here]


def make_room() -> None:
    """End the worker groups that no search needs, for what else needs their resources."""
    _close_idle(_keepers or {})


def _close_idle(keepers: Mapping[tuple[str, str], Any]) -> None:
    keeper = keepers.get(_here()) if keepers and ray.is_initialized() else None
    if keeper is not None:  # one of another cluster ended with the connection to it
        with suppress(RayActorError, GetTimeoutError):
            ray.get(keeper.close_idle.remote(), timeout=2 * CLOSE_S)


def _here() -> tuple[str, str]:
    """The cluster that this process has joined, and its job there: a new cluster numbers jobs from the start."""
    context = ray.get_runtime_context()
    return context.get_session_name(), context.get_job_id()
