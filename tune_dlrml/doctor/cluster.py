"""Whether the cluster can hold a search, and who else can reach it."""

from collections.abc import Iterator

from tune_dlrml.cluster.cluster import (
    alive_nodes,
    check_resources,
    each_worker,
    local_capacity,
    refuse_sqlite_on_a_cluster,
)
from tune_dlrml.cluster.joining import joined, leave_ray
from tune_dlrml.config import ResourcesConfig
from tune_dlrml.doctor.exposure import examine_dashboard
from tune_dlrml.doctor.finding import Finding
from tune_dlrml.errors import InputError


def examine_cluster(resources: ResourcesConfig, address: str | None, *, sqlite: bool) -> Iterator[Finding]:
    """Whether the cluster at `address`, or else this machine, can hold a search, and who else can reach it.

    Args:
        resources: What the search asks for.
        address: As in `ray_cluster`; nothing is started on it.
        sqlite: Whether the study is a SQLite file.
    """
    try:
        if address is None:
            check_resources(resources, [local_capacity()], "this machine")
        else:
            context = joined(address, log_to_driver=False, logging_level="ERROR")
            nodes = alive_nodes()
            leave_ray()
            if context.address_info["webui_url"]:
                yield examine_dashboard(context.address_info["webui_url"])
            check_resources(resources, nodes, "the Ray cluster")
            if sqlite:
                refuse_sqlite_on_a_cluster(len(nodes))
    except InputError as error:
        yield Finding("resources", "error", str(error))
        return
    asked = (
        f"{resources.concurrent_trials} group(s) of {resources.workers} worker(s) with {each_worker(resources)} each"
    )
    yield Finding("resources", "ok", f"{asked} fit {'this machine' if address is None else address}")
