"""What a Ray Train worker runs: load once, then train the trials that the mailbox hands over, one after another."""

import gc
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from tune_dlrml.config import ResourcesConfig, TrainingConfig
from tune_dlrml.data import Pairs
from tune_dlrml.records import Report
from tune_dlrml.space import TrialSpec
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import TrialPlan, train_trial


@dataclass(frozen=True)
class GroupSpec:
    """All that a worker group needs to train any trial of its search.

    Attributes:
        name: The search's, in the names of Ray's runs.
        model: Model reference.
        pairs: Preference pairs, not yet tokenised.
        training: The settings that all trials share; a trial's own override them.
        plan: Budget and rules of the search.
        resources: Workers and what each takes.
        storage: Folder that every node sees, for the files that Ray Train insists on.
    """

    name: str
    model: str
    pairs: Pairs
    training: TrainingConfig
    plan: TrialPlan
    resources: ResourcesConfig
    storage: str


class MailboxChannel:
    """Rank 0 speaks with the mailbox, all ranks hear its answer."""

    def __init__(self, mailbox: Any, index: int, rank: int) -> None:
        self._mailbox = mailbox
        self._index = index
        self._rank = rank

    def send(self, report: Report) -> bool:
        """Deliver a report; at a rung this waits for the verdict."""
        answer = [False]
        if self._rank == 0:
            answer = [ray.get(self._mailbox.send.remote(self._index, report.as_json(), report.rung))]
        if dist.is_initialized():
            dist.broadcast_object_list(answer, 0)
        return answer[0]


def train_trials(config: dict[str, Any]) -> None:
    """Loop of one rank. An exception leaves it and so ends the whole group; the slot answers for the trial.

    Args:
        config: `mailbox`, the actor's handle, and `group`, a GroupSpec.
    """
    group: GroupSpec = config["group"]
    mailbox = config["mailbox"]
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(group.resources.cpus_per_worker)
    rank = ray.train.get_context().get_world_rank()
    resident = Resident.load(group.model, group.pairs, group.training)
    gc.collect()
    gc.freeze()  # a trial collects twice: 0.5 s over all that the imports made, 10 ms over its own
    index = 0
    # Orders are fetched by their index, so that no rank can miss one that was dropped while it was still busy.
    while (order := ray.get(mailbox.order.remote(index))) is not None:
        outcome = train_trial(
            resident,
            TrialSpec.from_json(order["spec"]),
            group.plan,
            MailboxChannel(mailbox, index, rank),
            handed_over_s=order["handed_over_s"],
        )
        if rank == 0 and outcome is not None:
            ray.get(mailbox.finish.remote(index, asdict(outcome)))
        index += 1
