"""Trials that are examined after their training: from the checkpoint that they ended with, on the cluster's workers."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError

from tune_dlrml.cluster.cluster import waited_for
from tune_dlrml.config import ResourcesConfig, TrainingConfig
from tune_dlrml.errors import InputError, StorageError, UnansweredError
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.search.tune.keeper import make_room
from tune_dlrml.training.checkpoint import newest_checkpoint


def ask_finalists(
    trials: Mapping[int, TrainingConfig],
    questionnaire: Questionnaire,
    *,
    model: str,
    folder: Path,
    resources: ResourcesConfig,
    on_answered: Callable[[int, float], None],
    on_notice: Callable[[str], None],
) -> None:
    """Have trials that have ended answer the questions, as many at once as there are worker groups.

    A trial that fails to answer does not stop the others.

    Args:
        trials: Settings of each trial, by its number, in the order in which they answer.
        questionnaire: The questions.
        model: Reference of the base model.
        folder: With a folder for each trial.
        resources: Resources of one worker; each of these trials uses one.
        on_answered: Called with each trial whose answers are complete, and the seconds that they took.
        on_notice: Called with what is being waited for.

    Raises:
        UnansweredError: Naming the trials that could not answer, and why.
        StorageError: The answers cannot be written.
    """
    make_room()
    ask = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=2)(_answer)
    waiting, under_way = deque(trials.items()), dict[ray.ObjectRef, int]()
    faults: dict[int, str] = {}
    while waiting or under_way:
        while waiting and len(under_way) < resources.concurrent_trials:
            number, training = waiting.popleft()
            asked = ask.remote(model, folder / str(number), training, questionnaire, resources.cpus_per_worker)
            under_way[asked] = number
        ended, _ = ray.wait([*under_way], num_returns=1, timeout=resources.silence_s)
        if not ended:
            numbers = ", ".join(map(str, under_way.values()))
            on_notice(f"trials {numbers}: no answers for {resources.silence_s:g} s; {waited_for(resources)}")
        for asked in ended:
            number = under_way.pop(asked)
            try:
                on_answered(number, ray.get(asked))
            except RayError as error:
                faults[number] = _reason(error)
    if faults:
        reasons = "; ".join(f"trial {number}: {reason}" for number, reason in faults.items())
        raise UnansweredError(
            f"every finalist must answer to be judged, but {reasons}; the same command asks them again"
        )


def _reason(error: RayError) -> str:
    """Why a trial could not answer.

    Raises:
        StorageError: The disk failed, which all trials share.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, StorageError):
        raise cause
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"


def _answer(model: str, folder: Path, training: TrainingConfig, questionnaire: Questionnaire, threads: int) -> float:
    """In a process of the cluster: load a trial's policy and store its answers; the seconds that this took."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise InputError(f"a trial answers with its final model, but {folder} has no complete checkpoint")
    from tune_dlrml.evaluation.engines.policy import (
        load_policy,  # imports torch, which the driver does without
    )
    from tune_dlrml.training.reference.logps import computing

    policy, tokenizer = load_policy(model, checkpoint.path, training, threads=threads)
    began = time.monotonic()
    with computing(policy, training):
        share = questionnaire.answer(policy, tokenizer, rank=0, world=1)
    questionnaire.keep(folder, [share])
    return time.monotonic() - began
