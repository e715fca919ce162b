"""The torch process group of a worker group: as TorchTrainer sets it up, but with torch in the workers alone.

TorchTrainer imports torch in the process that makes it and in Ray Train's controller as well. A slot and its controller
start one after the other and before the workers do, so a search's first step would wait for both imports.
"""

import os
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from tune_dlrml.system.imports import importing

LEAVE_S = 30.0
"""How long workers may take to leave the process group, as in Ray Train."""


@dataclass
class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]  # mypy skips ray, see pyproject.toml
    """What the workers set up.

    Attributes:
        backend: `nccl` or `gloo`.
        timeout_s: Of a collective.
    """

    backend: str
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        """Sets the group up."""
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        """Makes a context for the training loop of a worker."""
        return on_own_device

    @property
    def framework(self) -> TrainingFramework:
        """What Ray's dashboard shows."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """For Ray's dashboard."""
        return asdict(self)


class ProcessGroup(Backend):  # type: ignore[misc]
    """Sets the process group up and takes it down; runs in Ray Train's controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: ProcessGroupConfig) -> None:
        """Have every worker join, with rank 0 as the master."""
        host, port = worker_group.execute_single(0, get_address_and_port)
        joining = [
            worker_group.execute_single_async(
                rank, join, host=host, port=port, world_rank=rank, world_size=len(worker_group), config=backend_config
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: ProcessGroupConfig) -> None:
        """Have every worker leave; the controller ends one that does not answer."""
        leaving = worker_group.execute_async(leave, several=len(worker_group) > 1)
        with suppress(GetTimeoutError):
            ray.get(leaving, timeout=LEAVE_S)


def join(*, host: str, port: int, world_rank: int, world_size: int, config: ProcessGroupConfig) -> None:
    """Join the process group, by the functions of Ray Train's own torch backend; runs in a worker."""
    with importing():
        from ray.train.torch import config as torch_backend

    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    torch_backend._set_torch_distributed_env_vars()
    torch_backend._setup_torch_process_group(
        backend=config.backend,
        world_rank=world_rank,
        world_size=world_size,
        init_method="env://",
        timeout_s=config.timeout_s,
    )


def leave(*, several: bool) -> None:
    """Leave the process group and free the device's cache; runs in a worker."""
    from ray.train.torch import config as torch_backend

    torch_backend._shutdown_torch(destroy_process_group=several)


def on_own_device() -> AbstractContextManager[None]:
    """A context in which the worker's own device is torch's current one."""
    from ray.train.torch.config import TorchConfigContextManager

    context: AbstractContextManager[None] = TorchConfigContextManager()
    return context
