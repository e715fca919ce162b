"""Which worker group a keeper lends, and what it ends before it starts another."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from tune_dlrml.config import ResourcesConfig
from tune_dlrml.errors import GroupDiedError
from tune_dlrml.search.tune import keeper as keepers
from tune_dlrml.search.tune.keeper import GroupKeeper
from tune_dlrml.training.group_spec import GroupShape, Lease

LEASE = Lease("mailbox", "group")


def shape(**resources: Any) -> GroupShape:
    return GroupShape("toy", ResourcesConfig(**resources), "storage")


class Cluster:
    """Stands for Ray: runs and lobbies are numbered as they start, and what happens to them is noted."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.runs: list[SimpleNamespace] = []
        self.lobbies = itertools.count()
        self.closed: set[int] = set()
        self.away: set[int] = set()

    def run(self, shape: GroupShape, lobby: int) -> SimpleNamespace:
        self.events.append(("start", lobby))
        self.runs.append(SimpleNamespace(alive=True, error=None))
        return self.runs[-1]

    def ask(self, lobby: int, method: str, *args: Any) -> Any:
        if lobby in self.closed:
            raise GroupDiedError("the lobby is closed")
        if method == "put":
            self.events.append(("lease", lobby))
            return 0
        return [] if lobby in self.away else [{"outcome": {}}]

    def leave(self, run: SimpleNamespace, lobby: int) -> None:
        self.events.append(("close", lobby))
        run.alive = False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(keepers, "Run", made.run)
    monkeypatch.setattr(keepers, "new_mailbox", lambda: next(made.lobbies))
    monkeypatch.setattr(keepers, "ask", made.ask)
    monkeypatch.setattr(keepers, "leave", made.leave)
    monkeypatch.setattr(keepers.ray, "kill", lambda lobby: made.events.append(("kill", lobby)))
    monkeypatch.setattr(keepers, "CLOSE_S", 0.01)
    return made


def test_a_group_that_came_back_is_lent_to_the_next_slot_with_its_count_of_trials(cluster):
    keeper = GroupKeeper()
    assert keeper.lend(shape(), LEASE) == (0, 0)
    keeper.take_back(0, 5)
    assert keeper.lend(shape(concurrent_trials=2), LEASE) == (0, 5)
    assert keeper.lend(shape(concurrent_trials=2), LEASE) == (1, 0)
    assert cluster.events == [("start", 0), ("lease", 0), ("lease", 0), ("start", 1), ("lease", 1)]


def test_the_first_slot_gets_the_group_that_was_prepared_for_it(cluster):
    keeper = GroupKeeper()
    keeper.prepare(shape())
    keeper.prepare(shape())
    assert keeper.lend(shape(), LEASE) == (0, 0)
    assert cluster.events == [("start", 0), ("lease", 0)]


@pytest.mark.parametrize("other", [{"workers": 2}, {"cpus_per_worker": 2}, {"gpus_per_worker": 1}])
def test_a_group_of_other_resources_ends_before_another_starts(cluster, other):
    keeper = GroupKeeper()
    keeper.lend(shape(), LEASE)
    keeper.take_back(0, 1)
    assert keeper.lend(shape(**other), LEASE) == (1, 0)
    assert cluster.events[2:] == [("close", 0), ("start", 1), ("lease", 1)]


def test_a_group_that_has_trained_its_trials_makes_room_for_a_new_one(cluster):
    keeper, limited = GroupKeeper(), shape(trials_per_group=3)
    keeper.lend(limited, LEASE)
    keeper.take_back(0, 2)
    assert keeper.lend(limited, LEASE) == (0, 2)
    keeper.take_back(0, 3)
    assert keeper.lend(limited, LEASE) == (1, 0)
    assert ("close", 0) in cluster.events


def test_a_group_in_use_is_not_ended_for_another(cluster):
    keeper = GroupKeeper()
    keeper.lend(shape(), LEASE)
    keeper.lend(shape(workers=2), LEASE)
    keeper.close_idle()
    assert cluster.events == [("start", 0), ("lease", 0), ("start", 1), ("lease", 1)]
    assert keeper.is_alive(0) and keeper.is_alive(1)


def test_workers_that_do_not_come_back_in_time_are_given_up(cluster):
    keeper = GroupKeeper()
    keeper.lend(shape(), LEASE)
    cluster.away.add(0)
    keeper.take_back(0, 1)
    assert not keeper.is_alive(0) and cluster.events[-1] == ("kill", 0)
    assert keeper.lend(shape(), LEASE) == (1, 0)


def test_a_group_that_died_is_not_lent_and_its_cause_is_told(cluster):
    keeper, cause = GroupKeeper(), RuntimeError("out of memory")
    keeper.lend(shape(), LEASE)
    cluster.runs[0].alive, cluster.runs[0].error = False, cause
    assert not keeper.is_alive(0) and keeper.error(0) is cause
    keeper.take_back(0, 1)
    keeper.prepare(shape())
    cluster.runs[1].alive = False
    assert keeper.lend(shape(), LEASE) == (2, 0)


def test_a_group_whose_lobby_died_while_it_was_idle_is_replaced(cluster):
    keeper = GroupKeeper()
    keeper.prepare(shape())
    cluster.closed.add(0)
    assert keeper.lend(shape(), LEASE) == (1, 0)
    assert cluster.events == [("start", 0), ("kill", 0), ("start", 1), ("lease", 1)]


class Far:
    """Stands for Ray and the keepers that it makes, each of the cluster that this process has joined at the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = ("session_1", "01000000")
        self.closed: list[tuple[str, str]] = []
        self.interrupts = False
        monkeypatch.setattr(keepers, "_here", lambda: self.here)
        monkeypatch.setattr(keepers.ray, "is_initialized", lambda: True)
        monkeypatch.setattr(keepers.ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=self.keeper))
        monkeypatch.setattr(keepers.ray, "get", lambda *_, **__: None)

    def keeper(self) -> SimpleNamespace:
        of = self.here

        def call(*_: Any) -> None:
            if self.here != of:
                raise Exception("Failed to submit task to actor: it's from a different cluster")

        def close() -> None:
            call()
            if self.interrupts:
                raise KeyboardInterrupt
            self.closed.append(of)

        return SimpleNamespace(prepare=SimpleNamespace(remote=call), close_idle=SimpleNamespace(remote=close))


def test_a_keeper_of_a_cluster_that_was_left_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(monkeypatch)
    with keepers.kept_groups():
        first = keepers.keeper_of(shape())
        assert keepers.keeper_of(shape()) is first
        far.here = ("session_2", "01000000")  # jobs are numbered from the start again
        keepers.make_room()
        assert keepers.keeper_of(shape()) is not first
    assert far.closed == [("session_2", "01000000")]


def test_a_block_whose_closing_is_interrupted_leaves_no_keeper_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(monkeypatch)
    far.interrupts = True
    with pytest.raises(KeyboardInterrupt), keepers.kept_groups():
        first = keepers.keeper_of(shape())
    assert keepers.keeper_of(shape()) is None
    far.interrupts = False
    with keepers.kept_groups():
        assert keepers.keeper_of(shape()) is not first


def test_outside_of_a_block_there_is_no_keeper():
    assert keepers.keeper_of(shape()) is None
    keepers.make_room()
