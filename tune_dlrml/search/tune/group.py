"""One long-lived Ray Train run, and what its early end means for a trial."""

import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tune_dlrml.errors import GroupDiedError, headline
from tune_dlrml.records import Fault, State, TrialOutcome
from tune_dlrml.search.tune.mailbox import Mailbox
from tune_dlrml.search.tune.process_group import ProcessGroupConfig
from tune_dlrml.system.imports import importing
from tune_dlrml.training.group_spec import GroupShape, GroupSpec, Lease

CLOSE_S = 7.0
"""How long a group may take to leave its loop; Tune kills a slot that needs more than 10 s to stop, step included."""


def train_trials(config: dict[str, Any]) -> None:
    """Loop of one rank, `training.worker.train_trials`; it alone needs torch and TRL, whose import takes seconds.

    The slot and Ray Train's controller start before the ranks do and look this function up, too.
    """
    began_s = time.time()
    with importing():
        from tune_dlrml.training import worker

    worker.train_trials(config, began_s)


class FixedSize(FixedScalingPolicy):  # type: ignore[misc]  # mypy skips ray, see pyproject.toml
    """A group of so many workers, which asks the cluster for them by its placement group alone.

    Ray Train asks a second time, for a cluster that it shares with Ray Data, by an actor whose process the controller
    waits for.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing is asked for."""

    def _maybe_send_resource_request(self) -> None:
        return


class GroupTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train without what Ray Data needs of it: two processes fewer before the first step."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        policy = FixedSize(scaling_config=self.scaling_config)
        return super()._initialize_and_run_controller(**parts | {"scaling_policy": policy})


class Run:
    """A Ray Train run, which ends with the process that owns it.

    Args:
        spec: Of the search that starts it.
        lease: The trials that it trains; None where it gets one after another from the lobby.
        lobby: A mailbox whose orders are leases.

    Attributes:
        error: Why it ended, where that was an error.
    """

    def __init__(self, spec: GroupShape, *, lease: Lease | None = None, lobby: Any = None) -> None:
        self.error: BaseException | None = None
        resources = spec.resources
        per_worker = {"CPU": float(resources.cpus_per_worker)}
        if resources.gpus_per_worker:
            per_worker["GPU"] = resources.gpus_per_worker
        self._trainer = GroupTrainer(
            train_trials,
            train_loop_config={"lease": lease, "lobby": lobby},
            backend_config=ProcessGroupConfig("nccl" if resources.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            run_config=RunConfig(
                name=f"{spec.name}-{ray.get_runtime_context().get_actor_id()[:8]}-{time.time_ns()}",
                storage_path=spec.storage,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="worker-group", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(seconds)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # the thread's end is the group's end; the slot reports what it was
            self.error = error


class WorkerGroup:
    """Workers that train the trials put into their mailbox, in turn; the group ends with its slot.

    Args:
        spec: What its workers need.

    Attributes:
        trials: How many it has been given.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self._mailbox = new_mailbox()
        self.trials = 0
        self._run = Run(spec.shape, lease=Lease(self._mailbox, ray.put(spec)))

    @property
    def alive(self) -> bool:
        """Whether its run is still running."""
        return self._run.alive

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the mailbox.

        Raises:
            GroupDiedError: The mailbox is dead, and with it the only way to the workers, who leave when they notice.
        """
        return ask(self._mailbox, method, *args)

    def close(self) -> None:
        """Ask the workers to leave their loop and wait until they have."""
        leave(self._run, self._mailbox)

    def how_it_was_lost(self, number: int) -> TrialOutcome:
        """The outcome of the trial that the run was training when it ended; a worker reports its own exceptions."""
        return lost(number, self._run.error or GroupDiedError(NO_ERROR))


NO_ERROR = "the worker group ended without an error and without a result"


def new_mailbox() -> Any:
    """A mailbox, which ends with the process that owns it."""
    return ray.remote(num_cpus=0)(Mailbox).remote()


def ask(actor: Any, method: str, *args: Any) -> Any:
    """Call a method of a mailbox, or of another actor without which a group is lost.

    Raises:
        GroupDiedError: It is dead.
    """
    try:
        return ray.get(getattr(actor, method).remote(*args))
    except RayActorError as error:
        raise GroupDiedError("the mailbox of the worker group died") from error


def leave(run: Run, mailbox: Any) -> None:
    """Ask the workers of a run, by the mailbox in which they look for orders, to leave, and wait until they have."""
    if run.alive:
        with suppress(GroupDiedError):
            ask(mailbox, "put", None)
            run.wait(CLOSE_S)
    # Workers that did not get the message, since the mailbox could not be reached, leave when it is gone.
    ray.kill(mailbox)


def lost(number: int, error: BaseException) -> TrialOutcome:
    """The outcome of a trial that ended because a process or a node did."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    return TrialOutcome(number, State.FAILED, headline(cause), exception=str(error), fault=Fault.LOST)
