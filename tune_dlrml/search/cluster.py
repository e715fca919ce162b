"""Joining or starting Ray, and whether it can hold what a search asks for."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from tune_dlrml.config import ResourcesConfig
from tune_dlrml.errors import InputError
from tune_dlrml.search.checks import Finding

WORKER_ENVIRONMENT = {
    # Ray Train polls reports and health this often; the default of 2 s also delays the news of a dead worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # The patched print makes dill inspect sources and floods the workers' logs.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
DRIVER_ENVIRONMENT = {
    # Nothing that Tune writes is ever read again: the study is the one truth.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": str(10**6),
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
POLL_S = 1.0


@contextmanager
def ray_cluster(address: str | None, resources: ResourcesConfig) -> Iterator[None]:
    """Ray for the time of a search: the cluster at `address`, or one of this machine's own.

    Args:
        address: Address of a running cluster; None starts one here and ends it afterwards.
        resources: What the search asks for.

    Raises:
        InputError: The cluster cannot be reached, or cannot hold the search within `wait_s`.
    """
    folder: str | None = None
    os.environ.update(DRIVER_ENVIRONMENT)
    environment = {"env_vars": WORKER_ENVIRONMENT}
    if address is None:
        check_resources(resources, local_capacity(), "this machine")
        folder = tempfile.mkdtemp(prefix="ray_")  # short: Unix sockets below it have at most 107 characters
        context = ray.init(
            address="local",
            num_cpus=int(local_capacity()["CPU"]),
            include_dashboard=True,  # Ray Train frees placement groups through its State API
            _temp_dir=folder,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=environment,
        )
    else:
        try:
            context = ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
        except ConnectionError as error:
            raise InputError(f"no Ray cluster answers at {address}: {error}; start one, or unset RAY_ADDRESS") from None
    try:
        # Ray Train's placement group cleaner looks the cluster up afresh, and hangs on the trace of a dead one.
        os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
        _wait_for(resources)
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def local_capacity() -> dict[str, float]:
    """CPUs and GPUs that a cluster on this machine would have."""
    return {
        "CPU": float(len(os.sched_getaffinity(0))),
        "GPU": float(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()),
    }


def check_resources(resources: ResourcesConfig, capacity: dict[str, float], where: str) -> None:
    """Refuse what cannot be had.

    Raises:
        InputError: Naming the resource, what is asked for and what there is.
    """
    groups = resources.concurrent_trials
    for name, key, each in (
        ("CPU", "cpus_per_worker", float(resources.cpus_per_worker)),
        ("GPU", "gpus_per_worker", float(resources.gpus_per_worker)),
    ):
        asked, there = groups * resources.workers * each, capacity.get(name, 0.0)
        if asked > there + 1e-9:
            raise InputError(
                f"resources: concurrent_trials x workers x {key} must fit the cluster, but {groups} x "
                f"{resources.workers} x {each:g} = {asked:g} {name}s are asked for and {where} has {there:g}; "
                "lower one of them"
            )


def examine_resources(resources: ResourcesConfig, address: str | None) -> Finding:
    """Whether the cluster at `address`, or else this machine, can hold a search; starts nothing on it."""
    asked = (
        f"{resources.concurrent_trials} group(s) of {resources.workers} worker(s) with {resources.cpus_per_worker} "
        f"CPUs and {resources.gpus_per_worker:g} GPUs each"
    )
    try:
        if address is None:
            check_resources(resources, local_capacity(), "this machine")
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            check_resources(resources, ray.cluster_resources(), "the Ray cluster")
            ray.shutdown()
    except (InputError, ConnectionError) as error:
        return Finding("resources", "error", str(error))
    return Finding("resources", "ok", f"{asked} fit {'this machine' if address is None else address}")


def _wait_for(resources: ResourcesConfig) -> None:
    """Wait for nodes that are still to come, at most `wait_s`."""
    deadline = time.monotonic() + resources.wait_s
    while True:
        try:
            return check_resources(resources, ray.cluster_resources(), "the Ray cluster")
        except InputError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def group_storage(folder: Path) -> str:
    """Folder for the files that Ray Train insists on; nothing in it counts."""
    path = folder / "ray"
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
