"""A Tune trial actor that owns no training process: it hands trials to a worker group that outlives them."""

import asyncio
import re
import threading
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from tune_dlrml.errors import GroupDiedError
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.training.worker import GroupSpec, train_trials

HEARTBEAT_S = 2.0
"""A step without news returns after this; a longer one would delay every decision of Tune."""
CLOSE_S = 7.0
"""How long a group may take to leave its loop; Tune kills a slot that needs more than 10 s to stop, step included."""


REASON_LENGTH = 300
"""Characters of an exception that fit a table; all of it is in the study."""


class Mailbox:
    """Orders go to the workers by index, reports come back; at a rung the workers wait for the verdict."""

    def __init__(self) -> None:
        self._orders: list[dict[str, Any] | None] = []
        self._dropped: set[int] = set()
        self._released: dict[int, int] = defaultdict(int)
        self._rungs: dict[int, int] = defaultdict(int)
        self._news: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._changed = asyncio.Condition()

    async def put(self, order: dict[str, Any] | None) -> int:
        """Queue a trial and drop all earlier ones; None asks the workers to leave. Returns the order's index."""
        async with self._changed:
            self._dropped.update(range(len(self._orders)))
            self._orders.append(order)
            self._changed.notify_all()
        return len(self._orders) - 1

    async def order(self, index: int) -> dict[str, Any] | None:
        """The order of that index, waited for."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._orders) > index)
        return self._orders[index]

    async def send(self, index: int, report: dict[str, Any], rung: bool) -> bool:
        """Take a report in; at a rung, wait for the verdict. Says whether the trial is to go on."""
        async with self._changed:
            if index not in self._dropped:
                self._news[index].append({"report": report})
                self._changed.notify_all()
            if rung:
                self._rungs[index] += 1
                mine = self._rungs[index]
                await self._changed.wait_for(lambda: self._released[index] >= mine or index in self._dropped)
        return index not in self._dropped

    async def finish(self, index: int, outcome: dict[str, Any]) -> None:
        """Take in how a trial ended."""
        async with self._changed:
            self._news[index].append({"outcome": outcome})
            self._changed.notify_all()

    async def release(self, index: int) -> None:
        """Let a trial go on behind the rung at which it waits."""
        async with self._changed:
            self._released[index] = self._rungs[index]
            self._changed.notify_all()

    async def collect(self, index: int, timeout_s: float) -> list[dict[str, Any]]:
        """What came in for a trial since the last call, waited for up to `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: bool(self._news[index])), timeout_s)
            except TimeoutError:
                return []
            return self._news.pop(index)


class WorkerGroup:
    """One long-lived Ray Train run and the mailbox to it."""

    def __init__(self, spec: GroupSpec) -> None:
        self.mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        self.trials = 0
        self.error: BaseException | None = None
        resources = spec.resources
        per_worker = {"CPU": float(resources.cpus_per_worker)}
        if resources.gpus_per_worker:
            per_worker["GPU"] = resources.gpus_per_worker
        self._trainer = TorchTrainer(
            train_trials,
            train_loop_config={"mailbox": self.mailbox, "group": spec},
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            run_config=RunConfig(
                name=f"{spec.name}-{ray.get_runtime_context().get_actor_id()[:8]}-{time.time_ns()}",
                storage_path=spec.storage,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="worker-group", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the Train run goes on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ask the workers to leave their loop and wait until they have."""
        if self.alive:
            ray.get(self.mailbox.put.remote(None))
            self._thread.join(CLOSE_S)
        ray.kill(self.mailbox)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # the thread's end is the group's end; the slot reports what it was
            self.error = error


class TrialSlot(tune.Trainable):  # type: ignore[misc]  # mypy skips ray, see pyproject.toml
    """Trains one trial at a time in its worker group; Tune reuses the slot, and with it the group, for the next.

    A result is `{"number", "reports", "outcome", "done"}`: the reports that came in since the last one, of which only
    the last can be at a rung, and how the trial ended, once it has. An empty one is a heartbeat.
    """

    def setup(self, config: dict[str, Any], group: GroupSpec) -> None:
        """Start the worker group with the first trial."""
        self._group_spec = group
        self._group: WorkerGroup | None = None
        self._number, self._index, self._at_rung = -1, -1, False
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Drop the present trial, if it still runs, and hand the group the next."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for news of the trial, at most `HEARTBEAT_S`."""
        assert self._group is not None
        if self._at_rung:
            ray.get(self._group.mailbox.release.remote(self._index))
            self._at_rung = False
        news = ray.get(self._group.mailbox.collect.remote(self._index, HEARTBEAT_S))
        reports = [item["report"] for item in news if "report" in item]
        outcome = next((item["outcome"] for item in news if "outcome" in item), None)
        if not news and not self._group.alive:
            outcome = asdict(self._failed(self._group))
            self._group = None
        self._at_rung = bool(reports) and reports[-1]["rung"]
        return {"number": self._number, "reports": reports, "outcome": outcome, "done": outcome is not None}

    def cleanup(self) -> None:
        """Let the workers leave their loop."""
        if self._group is not None:
            self._group.close()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: what counts is in the study and in the trial's own folder."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load, see `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        limit = self._group_spec.resources.trials_per_group
        worn_out = self._group is not None and limit is not None and self._group.trials >= limit
        if self._group is not None and (worn_out or not self._group.alive):
            self._group.close()
            self._group = None
        if self._group is None:
            self._group = WorkerGroup(self._group_spec)
        self._group.trials += 1
        self._number = int(config["spec"]["number"])
        self._at_rung = False
        order = {"spec": config["spec"], "handed_over_s": time.time()}
        self._index = ray.get(self._group.mailbox.put.remote(order))

    def _failed(self, group: WorkerGroup) -> TrialOutcome:
        error = group.error or GroupDiedError("The worker group ended without an error and without a result.")
        return TrialOutcome(self._number, State.FAILED, _root_cause(error), exception=f"{error}")


def _root_cause(error: BaseException) -> str:
    """Type and first sentence of the exception that a worker raised, which Ray Train wraps."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    lines = str(error).strip().splitlines() or [""]
    sentence = re.split(r"(?<=\.)\s", lines[-1].strip())[0]
    return f"{type(error).__name__}: {sentence[:REASON_LENGTH]}"
