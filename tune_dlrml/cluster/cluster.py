"""Joining or starting Ray, and whether it can hold what a search asks for."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.state.exception import RayStateApiException

from tune_dlrml.cluster.environment import DRIVER_ENVIRONMENT, WORKER_ENVIRONMENT, changed_environment, reach_directly
from tune_dlrml.cluster.joining import joined, leave_ray, own_cluster
from tune_dlrml.cluster.placement import free_dead_placement_groups
from tune_dlrml.config import ResourcesConfig
from tune_dlrml.errors import InputError, headline

POLL_S = 1.0
ROUNDING = 1e-9
"""Of shares of a GPU that are added up."""


@contextmanager
def ray_cluster(
    address: str | None, resources: ResourcesConfig, scratch: Path, tell: Callable[[str], None]
) -> Iterator[None]:
    """Ray for the time of a search: the cluster at `address`, or one of this machine's own.

    Args:
        address: Address of a running cluster; None starts one here and ends it afterwards.
        resources: What the search asks for.
        scratch: Folder for the files of a cluster of this machine's own.
        tell: Told what is waited for, or was cleared away.

    Raises:
        InputError: The cluster cannot be reached, or cannot hold the search within `wait_s`.
    """
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
    polite_end = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        stack.enter_context(changed_environment(DRIVER_ENVIRONMENT))
        if address is None:
            check_resources(resources, [local_capacity()], "this machine")
            reach_directly(ray.util.get_node_ip_address())
            stack.enter_context(own_cluster(scratch, num_cpus=int(local_capacity()["CPU"]), **options))
        else:
            stack.callback(leave_ray)
            context = joined(address, **options)
            stack.enter_context(changed_environment({"RAY_ADDRESS": context.address_info["gcs_address"]}))
            reach_directly(*_hosts(context))
            _free_dead_placement_groups(tell)
        signal.signal(signal.SIGTERM, polite_end)  # Ray puts one of its own there, which ends this process at once
        _wait_for(resources, tell)
        yield


def _hosts(context: Any) -> list[str]:
    """Where the head and the dashboard of a cluster are."""
    addresses = (context.address_info["gcs_address"], context.address_info["webui_url"])
    return [address.rpartition(":")[0].strip("[]") for address in addresses if address]


def _free_dead_placement_groups(tell: Callable[[str], None]) -> None:
    """Clear away what other drivers left on the cluster; without it a search may wait longer, and loses nothing."""
    try:
        freed = free_dead_placement_groups()
    except (RayError, RayStateApiException) as error:
        tell(f"whether jobs that have ended still hold resources of the cluster is not known: {headline(error)}")
        return
    if freed:
        tell(f"removed {freed} placement groups that jobs which have ended had left on the cluster")


def local_capacity() -> dict[str, float]:
    """CPUs and GPUs that a cluster on this machine would have."""
    return {
        "CPU": float(len(os.sched_getaffinity(0))),
        "GPU": float(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()),
    }


def check_resources(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]], where: str) -> None:
    """Refuse what cannot be had.

    Args:
        resources: What the search asks for.
        nodes: CPUs and GPUs of each node.
        where: What the nodes are, for the message.

    Raises:
        InputError: Naming the resource, what is asked for and what there is.
    """
    groups = resources.concurrent_trials
    for name, key, each in (
        ("CPU", "cpus_per_worker", float(resources.cpus_per_worker)),
        ("GPU", "gpus_per_worker", float(resources.gpus_per_worker)),
    ):
        asked, there = groups * resources.workers * each, sum(node.get(name, 0.0) for node in nodes)
        if asked > there + ROUNDING:
            raise InputError(
                f"resources: concurrent_trials x workers x {key} must fit the cluster, but {groups} x "
                f"{resources.workers} x {each:g} = {asked:g} {name}s are asked for and {where} has {there:g}; "
                "lower one of them"
            )
    asked, room = groups * resources.workers, sum(_room(node, _bundle(resources)) for node in nodes)
    if asked > room:
        raise InputError(
            f"resources: a worker must fit one node, but of {groups} x {resources.workers} workers with "
            f"{each_worker(resources)} each, the nodes of {where} have room for {room}; lower cpus_per_worker or "
            "gpus_per_worker"
        )


def _room(node: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """How many workers fit a node."""
    return min(int(node.get(name, 0.0) / each + ROUNDING) for name, each in bundle.items())


def alive_nodes() -> list[dict[str, float]]:
    """CPUs, GPUs and other resources of each node of the cluster that this process has joined."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wait_for(resources: ResourcesConfig, tell: Callable[[str], None]) -> None:
    """Wait for nodes that are still to come, at most `wait_s`; an autoscaler is asked for what is missing."""
    deadline, asked = time.monotonic() + resources.wait_s, False
    try:
        while (lack := _lack(resources)) is not None:
            if time.monotonic() > deadline:
                raise lack
            if not asked:
                tell(f"waiting up to {resources.wait_s:g} s for nodes: {lack}")
                request_resources(bundles=[_bundle(resources)] * (resources.workers * resources.concurrent_trials))
            asked = True
            time.sleep(POLL_S)
    finally:
        if asked:
            request_resources(bundles=[])  # the worker groups themselves are the demand, and a refused search has none


def _lack(resources: ResourcesConfig) -> InputError | None:
    try:
        check_resources(resources, alive_nodes(), "the Ray cluster")
    except InputError as error:
        return error
    return None


def _bundle(resources: ResourcesConfig) -> dict[str, float]:
    """What a worker asks for."""
    gpus = {"GPU": float(resources.gpus_per_worker)} if resources.gpus_per_worker else {}
    return {"CPU": float(resources.cpus_per_worker)} | gpus


def each_worker(resources: ResourcesConfig) -> str:
    """What one worker takes, in words."""
    return f"{resources.cpus_per_worker} CPUs and {resources.gpus_per_worker:g} GPUs"


def refuse_sqlite_on_a_cluster(nodes: int) -> None:
    """SQLite has one writer on one machine: a driver that starts again on another node would not find it locked.

    Raises:
        InputError: There is more than one node.
    """
    if nodes > 1:
        raise InputError(
            f"the study of a search on a cluster needs a PostgreSQL database, but this cluster has {nodes} nodes and "
            "the study would be a SQLite file, which is for one machine; give --study-url "
            "postgresql://user@host:5432/database or search.study_url"
        )


def waited_for(resources: ResourcesConfig) -> str:
    """What a worker group asks for and what is free, for those who wait."""
    free = ray.available_resources()
    asked = f"{resources.workers} x {each_worker(resources)}"
    return f"its worker group asks for {asked}; {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"


def group_storage(folder: Path) -> str:
    """Folder for the files that Ray Train insists on; nothing in it counts."""
    path = folder / "ray"
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
