"""What a Ray Train worker runs: load once, then train the trials that the mailbox hands over, one after another."""

import gc
import logging
import time
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from datasets import disable_progress_bars
from ray.exceptions import RayActorError
from transformers.utils import logging as transformers_logging

from tune_dlrml.errors import InputError, StorageError, headline
from tune_dlrml.records import Answer, Fault, Report, State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.system.allocator import keep_freed_memory
from tune_dlrml.system.timings import Stage, mark
from tune_dlrml.training.group_spec import GroupSpec, Lease
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial


class MailboxChannel:
    """Rank 0 speaks with the mailbox, all ranks hear its answer."""

    def __init__(self, mailbox: Any, index: int, rank: int) -> None:
        self._mailbox = mailbox
        self._index = index
        self._rank = rank

    def send(self, report: Report) -> Answer:
        """Deliver a report; at a rung this waits for the verdict."""
        answer = [Answer(go_on=False)]
        if self._rank == 0:
            answer = [ray.get(self._mailbox.send.remote(self._index, report.as_json(), report.rung))]
        if dist.is_initialized():
            dist.broadcast_object_list(answer, 0)
        return answer[0]


def train_trials(config: dict[str, Any], began_s: float) -> None:
    """Loop of one rank. An exception leaves it and so ends the whole group; the slot answers for the trial.

    Args:
        config: `lease`, what it trains; or `lobby`, handle of a mailbox whose orders are leases.
        began_s: When the process had started and its imports began, in Unix time.
    """
    lobby, worker, place = config["lobby"], _Worker(began_s), 0
    if lobby is None:
        worker.serve(config["lease"])
        return
    # Orders are fetched by their index, so that no rank can miss one that was dropped while it was still busy.
    while (lease := ray.get(lobby.order.remote(place))) is not None:
        worker.serve(lease)
        if worker.rank == 0:
            ray.get(lobby.finish.remote(place, {}))
        place += 1


class _Worker:
    """One rank, and what it has loaded."""

    def __init__(self, began_s: float) -> None:
        self.rank = ray.train.get_context().get_world_rank()
        self._marks: list[tuple[Stage, float]] = [("worker", began_s), ("imported", time.time())]
        self._group: GroupSpec | None = None
        self._resident: Resident | None = None
        self._stepped = False

    def serve(self, lease: Lease) -> None:
        """Train the trials of a lease until there are no more."""
        mailbox, index, self._stepped = lease.mailbox, 0, False
        try:
            group: GroupSpec = ray.get(lease.group)
            resident = self._loaded(group)
            while (order := ray.get(mailbox.order.remote(index))) is not None:
                spec = TrialSpec.from_json(order["spec"])
                outcome = train_trial(
                    resident,
                    spec,
                    group.plan,
                    MailboxChannel(mailbox, index, self.rank),
                    folder=Path(group.trials) / str(spec.number),
                    handed_over_s=order["handed_over_s"],
                    after_step=partial(self._after_step, Path(group.trials).parent),
                )
                if self.rank == 0 and outcome is not None:
                    ray.get(mailbox.finish.remote(index, asdict(outcome)))
                index += 1
        except Exception as error:
            if not _is_loss_of_others(error):
                number = ray.get(mailbox.order.remote(index))["spec"]["number"]
                ray.get(mailbox.finish.remote(index, asdict(_failed(number, error))))
            raise

    def _loaded(self, group: GroupSpec) -> Resident:
        """The model and the data of a search: those that are there already, or others in their place."""
        search = Path(group.trials).parent
        self._mark(search, *(self._marks or [("worker", time.time())]))
        self._marks = []
        if self._resident is None or self._group is None or not self._group.loads_as(group):
            if self._resident is not None:
                self._resident = self._group = None
                gc.unfreeze()
                gc.collect()
                torch.cuda.empty_cache()
            self._resident = _load(group)
        self._group = group
        self._mark(search, ("loaded", time.time()))
        return self._resident

    def _after_step(self, search: Path) -> None:
        if not self._stepped:
            self._stepped = True
            self._mark(search, ("step", time.time()))

    def _mark(self, search: Path, *marks: tuple[Stage, float]) -> None:
        if self.rank == 0:
            for stage, at_s in marks:
                mark(search, stage, at_s)


def _load(group: GroupSpec) -> Resident:
    own = logging.getLogger("tune_dlrml")
    if not own.handlers:
        own.addHandler(logging.StreamHandler())  # stderr, which Ray hands on to the search's log
    own.setLevel(logging.INFO)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(group.resources.cpus_per_worker)
    keep_freed_memory()
    resident = Resident.load(
        group.model,
        group.pairs,
        group.training,
        references=None if group.reference is None else Path(group.reference),
        fsdp=group.resources.fsdp,
        with_reference=group.reference is not None,
        completer=group.completer,
        beyond=group.beyond,
    )
    gc.collect()
    gc.freeze()  # a trial collects twice: 0.5 s over all that the imports made, 10 ms over its own
    return resident


def _is_loss_of_others(error: Exception) -> bool:
    """Whether an exception says that another process is gone: the mailbox, or a rank that a collective waited for."""
    # Gloo has no exception of its own; its messages begin with the place in its source.
    gloo = isinstance(error, RuntimeError) and "gloo/" in str(error)
    return gloo or isinstance(error, (RayActorError, dist.DistError))


def _failed(number: int, error: Exception) -> TrialOutcome:
    faults = {StorageError: Fault.STORAGE, InputError: Fault.INPUT}
    fault = next((fault for kind, fault in faults.items() if isinstance(error, kind)), Fault.TRIAL)
    reason = headline(error) if fault is Fault.TRIAL else str(error)
    text = "".join(traceback.format_exception(error))
    return TrialOutcome(number, State.FAILED, reason, exception=text, fault=fault)
