"""A worker group is a Ray Train run without the parts that only Ray Data needs."""

import inspect
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import config as torch_backend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ResizeDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tune_dlrml.search.tune import process_group
from tune_dlrml.search.tune.group import FixedSize, GroupTrainer
from tune_dlrml.search.tune.process_group import ProcessGroup, ProcessGroupConfig


def test_the_run_keeps_all_callbacks_but_that_of_data() -> None:
    def kinds(trainer: type[DataParallelTrainer]) -> list[type]:
        made = trainer(print, backend_config=ProcessGroupConfig("gloo"), scaling_config=ScalingConfig(num_workers=2))
        return [type(each) for each in made._create_default_callbacks()]

    usual = kinds(DataParallelTrainer)
    assert DatasetsCallback in usual and PlacementGroupCleanerCallback in usual
    assert kinds(GroupTrainer) == [kind for kind in usual if kind is not DatasetsCallback]


def test_a_fixed_size_asks_no_coordinator_and_decides_as_ray_train_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2.0})
    policy, usual = FixedSize(scaling_config=config), FixedScalingPolicy(scaling_config=config)
    monkeypatch.setattr(FixedScalingPolicy, "_maybe_send_resource_request", lambda self: None)
    policy.after_controller_start(None)
    policy.before_controller_abort()
    decided = policy.make_decision_for_non_running_worker_group()
    assert decided == usual.make_decision_for_non_running_worker_group()
    assert isinstance(decided, ResizeDecision) and decided.num_workers == 3
    assert decided.resources_per_worker == {"CPU": 2.0}


class Workers:
    """Stands for Ray Train's worker group, as one process that is every worker."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[int, str, dict[str, Any]]] = []

    def __len__(self) -> int:
        return self.count

    def execute_single(self, rank: int, function: Any) -> tuple[str, int]:
        return f"host-{rank}", 1234

    def execute_single_async(self, rank: int, function: Any, **arguments: Any) -> Any:
        self.calls.append((rank, function.__name__, arguments))

    def execute_async(self, function: Any, **arguments: Any) -> list[Any]:
        self.calls.append((-1, function.__name__, arguments))
        return []


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_worker_joins_with_rank_0_as_the_master(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group.ray, "get", lambda waited, timeout=None: waited)
    workers, config = Workers(count), ProcessGroupConfig("gloo", timeout_s=60)
    backend: Any = ProcessGroup()
    backend.on_start(workers, config)
    assert [(rank, own["world_rank"], own["world_size"]) for rank, _, own in workers.calls] == [
        (rank, rank, count) for rank in range(count)
    ]
    assert all((own["host"], own["port"], own["config"]) == ("host-0", 1234, config) for *_, own in workers.calls)
    workers.calls.clear()
    backend.on_shutdown(workers, config)
    assert workers.calls == [(-1, "leave", {"several": count > 1})]


def test_it_is_what_ray_trains_own_torch_backend_has() -> None:
    ours, theirs = ProcessGroupConfig("nccl"), torch_backend.TorchConfig()
    assert ours.timeout_s == theirs.timeout_s and ours.framework == theirs.framework
    assert ProcessGroup.share_cuda_visible_devices == torch_backend._TorchBackend.share_cuda_visible_devices
    assert isinstance(process_group.on_own_device(), theirs.train_func_context)
    given = inspect.signature(torch_backend._setup_torch_process_group).parameters
    assert [*given] == ["backend", "world_rank", "world_size", "init_method", "timeout_s"]
    assert not inspect.signature(torch_backend._set_torch_distributed_env_vars).parameters
    assert [*inspect.signature(torch_backend._shutdown_torch).parameters] == ["destroy_process_group"]
