"""What a Ray Train worker runs: load once, then train the trials that the mailbox hands over, one after another."""

import gc
import logging
import traceback
from dataclasses import asdict
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
from tune_dlrml.system.timings import mark
from tune_dlrml.training.group_spec import GroupSpec
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
        config: `mailbox`, the actor's handle, and `group`, a GroupSpec.
        began_s: When the process had started and its imports began, in Unix time.
    """
    group: GroupSpec = config["group"]
    mailbox, index, search = config["mailbox"], 0, Path(group.trials).parent
    try:
        rank = ray.train.get_context().get_world_rank()
        if rank == 0:
            mark(search, "worker", began_s)
            mark(search, "imported")
        resident = _load(group)
        if rank == 0:
            mark(search, "loaded")
        # Orders are fetched by their index, so that no rank can miss one that was dropped while it was still busy.
        while (order := ray.get(mailbox.order.remote(index))) is not None:
            spec = TrialSpec.from_json(order["spec"])
            outcome = train_trial(
                resident,
                spec,
                group.plan,
                MailboxChannel(mailbox, index, rank),
                folder=Path(group.trials) / str(spec.number),
                handed_over_s=order["handed_over_s"],
            )
            if rank == 0 and outcome is not None:
                ray.get(mailbox.finish.remote(index, asdict(outcome)))
            index += 1
    except Exception as error:
        if not _is_loss_of_others(error):
            number = ray.get(mailbox.order.remote(index))["spec"]["number"]
            ray.get(mailbox.finish.remote(index, asdict(_failed(number, error))))
        raise


def _load(group: GroupSpec) -> Resident:
    own = logging.getLogger("tune_dlrml")
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
