"""What is checked, waited for and cleared away on a Ray cluster."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tune_dlrml.cluster import cluster, placement
from tune_dlrml.config import ResourcesConfig
from tune_dlrml.errors import InputError


def test_a_study_in_a_file_is_for_one_machine():
    cluster.refuse_sqlite_on_a_cluster(1)
    with pytest.raises(InputError, match=r"2 nodes.*--study-url postgresql://"):
        cluster.refuse_sqlite_on_a_cluster(2)


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 4.0}], 0),
        ([{"CPU": 8.0, "GPU": 1.0}], 4),
    ],
)
def test_a_worker_that_fits_no_node_is_refused_though_all_nodes_together_would_do(nodes, room):
    share = 0.25 if any("GPU" in node for node in nodes) else 0
    asked = ResourcesConfig(workers=3, cpus_per_worker=2, gpus_per_worker=share)
    if room >= 3:
        cluster.check_resources(asked, nodes, "the Ray cluster")
    else:
        with pytest.raises(InputError, match=rf"must fit one node.* of 1 x 3 workers .* have room for {room};"):
            cluster.check_resources(asked, nodes, "the Ray cluster")


@pytest.fixture
def growing(monkeypatch):
    """A cluster that has more CPUs each time it is looked at, and a clock that moves by the pauses."""
    state = SimpleNamespace(cpus=[0.0, 1.0, 4.0], now=0.0, demands=[])

    def sleep(seconds):
        state.now += seconds

    def nodes():
        return [{"Alive": True, "Resources": {"CPU": state.cpus.pop(0) if state.cpus else 0.0}}]

    monkeypatch.setattr("ray.nodes", nodes)
    monkeypatch.setattr(cluster, "request_resources", lambda bundles: state.demands.append(bundles))
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: state.now)
    return state


def test_nodes_that_come_later_are_waited_for_and_asked_for_once(growing):
    told = []
    cluster._wait_for(ResourcesConfig(workers=2, cpus_per_worker=2, wait_s=60), told.append)
    assert growing.demands == [[{"CPU": 2.0}, {"CPU": 2.0}], []]
    assert len(told) == 1 and "waiting up to 60 s for nodes" in told[0]


def test_nodes_that_do_not_come_are_refused_with_what_there_is(growing):
    growing.cpus = []
    with pytest.raises(InputError, match=r"4 CPUs are needed and the Ray cluster has 0"):
        cluster._wait_for(ResourcesConfig(workers=2, cpus_per_worker=2, wait_s=5), lambda text: None)
    assert 5 < growing.now < 8
    assert growing.demands[-1] == []


@pytest.mark.slow
def test_placement_groups_of_ended_jobs_alone_are_removed(local_ray, monkeypatch):
    import ray
    from ray.util.state import get_placement_group

    def state_of(group):
        return get_placement_group(group.id.hex()).state

    job = ray.get_runtime_context().get_job_id()
    never = [{"CPU": 1000}]
    ordinary, detached = ray.util.placement_group(never), ray.util.placement_group(never, lifetime="detached")

    jobs = [SimpleNamespace(job_id=job, status="RUNNING")]
    monkeypatch.setattr(placement.state, "list_jobs", lambda limit: jobs)
    assert placement.free_dead_placement_groups() == 0
    jobs[0].status = "SUCCEEDED"
    assert placement.free_dead_placement_groups() == 1
    assert (state_of(ordinary), state_of(detached)) == ("REMOVED", "PENDING")
    ray.util.remove_placement_group(detached)


@pytest.mark.slow
def test_placement_groups_without_living_actors_are_removed_at_the_second_look(local_ray):
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    from ray.util.state import get_placement_group

    def state_of(group):
        return get_placement_group(group.id.hex()).state

    @ray.remote(num_cpus=0)
    class Worker:
        def ready(self):
            return True

    orphans = placement.OrphanedGroups()  # also of what tests before have killed, whose processes may still be ending
    half = [{"CPU": 0.5}]
    lived_in, left, of_a_slot = (ray.util.placement_group(bundles) for bundles in (half, half, [{"memory": 1 << 20}]))
    waiting = ray.util.placement_group([{"CPU": 1000}])
    ray.get([group.ready() for group in (lived_in, left, of_a_slot)])
    strategy = PlacementGroupSchedulingStrategy(placement_group=lived_in)
    worker = Worker.options(scheduling_strategy=strategy).remote()
    assert ray.get(worker.ready.remote())

    orphans.free()
    assert [state_of(group) for group in (lived_in, left, of_a_slot)] == ["CREATED"] * 3
    assert orphans.free() >= 1
    states = [state_of(group) for group in (lived_in, left, of_a_slot, waiting)]
    assert states == ["CREATED", "REMOVED", "CREATED", "PENDING"]
    ray.kill(worker)
    deadline = time.monotonic() + 30
    while worker_lives(lived_in):
        assert time.monotonic() < deadline, "the worker lives on"
    orphans.free()
    assert state_of(lived_in) == "CREATED"
    assert orphans.free() >= 1
    assert state_of(lived_in) == "REMOVED"
    for group in (of_a_slot, waiting):
        ray.util.remove_placement_group(group)


def worker_lives(group):
    from ray.util.state import list_actors

    return any(
        actor.placement_group_id == group.id.hex() and actor.state != "DEAD" for actor in list_actors(detail=True)
    )


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """What is started, joined and left, in order."""
    events = []

    @contextmanager
    def at(address):
        events.append(f"reach {address}")
        yield
        events.append(f"leave {address}")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(cluster, "_started_here", lambda scratch: at("here"))
    monkeypatch.setattr(cluster, "_joined_at", at)
    monkeypatch.setattr(cluster, "_free_dead_placement_groups", lambda on_notice: None)
    monkeypatch.setattr(cluster, "_wait_for", lambda resources, on_notice: events.append("search"))
    return events


def search_at(address, scratch):
    with cluster.ray_cluster(address, ResourcesConfig(), scratch, print):
        pass


def test_a_search_by_itself_has_its_own_cluster(reached, tmp_path):
    search_at(None, tmp_path)
    search_at("head:1", tmp_path)
    assert reached == ["reach here", "search", "leave here", "reach head:1", "search", "leave head:1"]


def test_searches_of_a_block_share_the_cluster_that_the_first_of_them_reaches(reached, tmp_path):
    with cluster.kept_cluster(print):
        assert reached == []
        search_at(None, tmp_path)
        with cluster.kept_cluster(print):
            search_at(None, tmp_path)
        assert reached == ["reach here", "search", "search"]
        search_at("head:1", tmp_path)
        assert reached[3:] == ["leave here", "reach head:1", "search"]
    assert reached[6:] == ["leave head:1"]


def test_a_cluster_that_the_first_search_of_a_block_cannot_reach_is_tried_by_the_next(reached, tmp_path, monkeypatch):
    working = cluster._joined_at

    def gone(address):
        raise InputError("RAY_ADDRESS: a Ray cluster must answer")

    with cluster.kept_cluster(print):
        monkeypatch.setattr(cluster, "_joined_at", gone)
        with pytest.raises(InputError, match="must answer"):
            search_at("head:1", tmp_path)
        monkeypatch.setattr(cluster, "_joined_at", working)
        search_at("head:1", tmp_path)
    assert reached == ["reach head:1", "search", "leave head:1"]
