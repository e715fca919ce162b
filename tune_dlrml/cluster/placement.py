"""Frees unused placement groups that Ray leaves on the cluster with their resources."""

from collections.abc import Collection
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util import state
from ray.util.placement_group import PlacementGroup

STATE_LIMIT = 10_000
"""Most jobs, actors and placement groups that are examined; the limit of Ray's State API."""


def free_dead_placement_groups() -> int:
    """Remove the placement groups that still wait for resources though their job has ended.

    A driver that was killed while it waited leaves one. A group that was placed ends with its creator, which may be a
    detached actor that is meant to outlive its job.

    Returns:
        The number of removed groups.
    """
    ended = {
        job.job_id for job in state.list_jobs(limit=STATE_LIMIT) if job.status in ("SUCCEEDED", "FAILED", "STOPPED")
    }
    left = [
        group.placement_group_id
        for group in state.list_placement_groups(limit=STATE_LIMIT, detail=True)
        if group.creator_job_id in ended and not group.is_detached and group.state == "PENDING"
    ]
    return _remove(left)


class OrphanedGroups:
    """Placement groups of worker groups of this driver's job whose processes are gone.

    Ray keeps a placement group as long as the job of its creator lives. Ray Train has an actor that removes those of a
    controller that was killed, but it can miss one, and a new worker group then waits for resources for ever.
    """

    def __init__(self) -> None:
        self._suspected: set[str] = set()

    def free(self) -> int:
        """Remove groups that had no living actor at the last call and have none now; returns how many.

        Raises:
            RayStateApiException: Ray does not answer.
        """
        job = ray.get_runtime_context().get_job_id()
        groups = state.list_placement_groups(
            filters=[("creator_job_id", "=", job), ("state", "=", "CREATED")], limit=STATE_LIMIT, detail=True
        )
        actors = state.list_actors(
            filters=[("job_id", "=", job), ("state", "!=", "DEAD")], limit=STATE_LIMIT, detail=True
        )
        lived_in = {actor.placement_group_id for actor in actors}
        # Those of Tune's slots have no CPU, and Tune removes them.
        empty = {group.placement_group_id for group in groups if _asks_for_cpus(group.bundles)} - lived_in
        orphaned, self._suspected = empty & self._suspected, empty
        return _remove(orphaned)


def _asks_for_cpus(bundles: list[dict[str, Any]] | None) -> bool:
    return any("CPU" in bundle["unit_resources"] for bundle in bundles or ())


def _remove(groups: Collection[str]) -> int:
    for group in groups:
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return len(groups)
