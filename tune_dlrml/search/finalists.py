"""Trials that are examined after their training: from the checkpoint that they ended with, on the cluster's workers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import ray

from tune_dlrml.config import ResourcesConfig, TrainingConfig
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.examination import Examination
from tune_dlrml.evaluation.policy import load_policy
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.reference_logps import computing


def examine_finalists(
    trials: Mapping[int, TrainingConfig],
    examination: Examination,
    *,
    model: str,
    folder: Path,
    resources: ResourcesConfig,
    on_answered: Callable[[int], None],
) -> None:
    """Have trials that have ended answer, as many at once as there are worker groups.

    Args:
        trials: Settings of each trial, by its number.
        examination: What they are asked.
        model: Reference of the base model.
        folder: With a folder for each trial.
        resources: What one worker takes; each of these trials takes one.
        on_answered: Told of a trial whose answers are there.

    Raises:
        InputError: A trial has no complete checkpoint, or its model cannot be loaded.
    """
    ask = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=2)(_examine)
    waiting = dict(trials)
    under_way: dict[ray.ObjectRef, int] = {}
    while waiting or under_way:
        while waiting and len(under_way) < resources.concurrent_trials:
            number, training = waiting.popitem()
            ref = ask.remote(model, folder / str(number), training, examination, resources.cpus_per_worker)
            under_way[ref] = number
        (done,), _ = ray.wait([*under_way], num_returns=1)
        number = under_way.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, InputError) else error from None
        on_answered(number)


def _examine(model: str, folder: Path, training: TrainingConfig, examination: Examination, threads: int) -> None:
    """In a process of the cluster: load a trial's policy, ask it, and write its answers down."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise InputError(f"a trial is examined with the model that it ended with, but {folder} has no whole checkpoint")
    policy, tokenizer = load_policy(model, checkpoint.path, training, threads=threads)
    with computing(policy, training):
        share = examination.answer(policy, tokenizer, rank=0, world=1)
    examination.keep(folder, [share])
