"""Joins or starts Ray, and checks that it has the resources of a search."""

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

from tune_dlrml.cluster.driver_tmp import kept_folder
from tune_dlrml.cluster.environment import DRIVER_ENVIRONMENT, WORKER_ENVIRONMENT, changed_environment, reach_directly
from tune_dlrml.cluster.joining import joined, leave_ray, own_cluster
from tune_dlrml.cluster.placement import free_dead_placement_groups
from tune_dlrml.config import ResourcesConfig
from tune_dlrml.errors import InputError, headline
from tune_dlrml.system.signals import kept_handlers

RAY_OPTIONS: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": "ERROR",
    "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
}
POLL_S = 1.0
ROUNDING = 1e-9
"""Of shares of a GPU that are added up."""


@contextmanager
def ray_cluster(
    address: str | None, resources: ResourcesConfig, scratch: Path, on_notice: Callable[[str], None]
) -> Iterator[None]:
    """Ray for the time of a search: the cluster at `address`, or a new one on this machine.

    Inside a `kept_cluster` it is that of the search before, and stays.

    Args:
        address: Address of a running cluster; None starts one here and ends it afterwards.
        resources: Resources of the search.
        scratch: Folder for the files of a new cluster.
        on_notice: Called with what is being waited for, and what was removed.

    Raises:
        InputError: The cluster cannot be reached, or cannot hold the search within `wait_s`.
    """
    with ExitStack() as stack:
        if address is None:
            check_resources(resources, [local_capacity()], "this machine")
        if _kept is None:
            _reach(stack, address, scratch, on_notice)
        else:
            _kept.reach(address, scratch, on_notice)
        _wait_for(resources, on_notice)
        yield


def _reach(stack: ExitStack, address: str | None, scratch: Path, on_notice: Callable[[str], None]) -> None:
    if address is None:
        stack.enter_context(_started_here(scratch))
    else:
        stack.enter_context(_joined_at(address))
        _free_dead_placement_groups(on_notice)


class _KeptRay:
    """The cluster of the searches of a block, which the first of them reaches; one at another address ends it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._address: str | None = None
        self.is_reached = False

    def reach(self, address: str | None, scratch: Path, on_notice: Callable[[str], None]) -> None:
        if self.is_reached and address == self._address:
            return
        self.leave()
        with ExitStack() as stack:
            _reach(stack, address, scratch, on_notice)
            self._stack = stack.pop_all()
        self._address, self.is_reached = address, True

    def leave(self) -> None:
        self.is_reached = False
        self._stack.close()


_kept: _KeptRay | None = None
"""Of this process while a `kept_cluster` is open."""


@contextmanager
def kept_cluster(on_notice: Callable[[str], None]) -> Iterator[None]:
    """One cluster for all searches of this process inside the block; each would start and end, or join, its own.

    Args:
        on_notice: Called if the temporary folder could not be used.

    Raises:
        InputError: This machine has no suitable temporary folder.
    """
    global _kept
    if _kept is not None:
        yield
        return
    with kept_folder(on_notice):
        _kept = kept = _KeptRay()
        try:
            yield
        finally:
            _kept = None
            kept.leave()


@contextmanager
def _started_here(scratch: Path) -> Iterator[None]:
    with changed_environment(DRIVER_ENVIRONMENT), ExitStack() as stack:
        reach_directly(ray.util.get_node_ip_address())
        with kept_handlers(signal.SIGTERM):  # Ray's own ends this process at once
            stack.enter_context(own_cluster(scratch, num_cpus=int(local_capacity()["CPU"]), **RAY_OPTIONS))
        yield


@contextmanager
def _joined_at(address: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(changed_environment(DRIVER_ENVIRONMENT))
        stack.callback(leave_ray)
        with kept_handlers(signal.SIGTERM):
            context = joined(address, **RAY_OPTIONS)
        stack.enter_context(changed_environment({"RAY_ADDRESS": context.address_info["gcs_address"]}))
        reach_directly(*_hosts(context))
        yield


def _hosts(context: Any) -> list[str]:
    """Hosts of the head and the dashboard of a cluster."""
    addresses = (context.address_info["gcs_address"], context.address_info["webui_url"])
    return [address.rpartition(":")[0].strip("[]") for address in addresses if address]


def _free_dead_placement_groups(on_notice: Callable[[str], None]) -> None:
    """Remove what other drivers left on the cluster; if that fails, a search may only have to wait longer."""
    try:
        freed = free_dead_placement_groups()
    except (RayError, RayStateApiException) as error:
        on_notice(f"it is unknown whether ended jobs still hold resources of the cluster: {headline(error)}")
        return
    if freed:
        on_notice(f"removed {freed} placement groups that ended jobs had left on the cluster")


def local_capacity() -> dict[str, float]:
    """CPUs and GPUs that a cluster on this machine would have."""
    return {
        "CPU": float(len(os.sched_getaffinity(0))),
        "GPU": float(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()),
    }


def check_resources(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]], where: str) -> None:
    """Refuse resources that the nodes do not have.

    Args:
        resources: Resources of the search.
        nodes: CPUs and GPUs of each node.
        where: Name of the nodes, for the message.

    Raises:
        InputError: Naming the resource, what is needed and what there is.
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
                f"{resources.workers} x {each:g} = {asked:g} {name}s are needed and {where} has {there:g}; "
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


def _wait_for(resources: ResourcesConfig, on_notice: Callable[[str], None]) -> None:
    """Wait for missing nodes, at most `wait_s`, and request them from an autoscaler."""
    deadline, asked = time.monotonic() + resources.wait_s, False
    try:
        while (lack := _lack(resources)) is not None:
            if time.monotonic() > deadline:
                raise lack
            if not asked:
                on_notice(f"waiting up to {resources.wait_s:g} s for nodes: {lack}")
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
    """Resources of a worker."""
    gpus = {"GPU": float(resources.gpus_per_worker)} if resources.gpus_per_worker else {}
    return {"CPU": float(resources.cpus_per_worker)} | gpus


def each_worker(resources: ResourcesConfig) -> str:
    """Resources of one worker, as text."""
    return f"{resources.cpus_per_worker} CPUs and {resources.gpus_per_worker:g} GPUs"


def refuse_sqlite_on_a_cluster(nodes: int) -> None:
    """Refuse a SQLite study on several nodes: its lock does not stop a second driver on another node.

    Raises:
        InputError: There is more than one node.
    """
    if nodes > 1:
        raise InputError(
            f"the study of a search on a cluster needs a PostgreSQL database, but this cluster has {nodes} nodes and "
            "the study is a SQLite file, which works on one machine only; give --study-url "
            "postgresql://user@host:5432/database or search.study_url"
        )


def waited_for(resources: ResourcesConfig) -> str:
    """Resources that a worker group needs, and those that are free, as text."""
    free = ray.available_resources()
    asked = f"{resources.workers} x {each_worker(resources)}"
    return f"its worker group needs {asked}; {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"


def group_storage(folder: Path) -> str:
    """Folder for the files that Ray Train requires; they are not used."""
    path = folder / "ray"
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
