"""The warm-up of a search: once, on the cluster, before its first trial."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from tune_dlrml.errors import TuneDlrmlError
from tune_dlrml.models.loading import parse_model_reference
from tune_dlrml.search.preparation import PreparedSearch
from tune_dlrml.search.tune.keeper import make_room


def warm_up_once(prepared: PreparedSearch, on_notice: Callable[[str], None]) -> None:
    """Make the model that the trials of a search start from, unless it exists or no warm-up is configured.

    Args:
        prepared: The search; its settings cannot have changed since the model was made.
        on_notice: Called with the start and the result.

    Raises:
        InputError: The warm-up was not finite.
        StorageError: The model cannot be written.
    """
    config, folder = prepared.config, prepared.place.warm_up(prepared.config.name)
    settings, resources = config.training.warm_up, config.resources
    if settings is None or folder.exists():
        return
    on_notice(f"warming up: {settings.steps} steps of the {settings.rule} rule on the chosen answers")
    make_room()
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=2)(_warm_up)
    model = str(parse_model_reference(config.model))
    try:
        asked = (model, prepared.pairs.train, config.training, folder, resources.workers, resources.cpus_per_worker)
        losses = ray.get(task.remote(*asked))
    except RayTaskError as error:
        if isinstance(error.cause, TuneDlrmlError):
            raise error.cause from None
        raise
    on_notice(f"warmed up: loss {losses[0]:.4g} at the first step, {losses[-1]:.4g} at the last")


def _warm_up(model: str, pairs: Any, training: Any, folder: Path, workers: int, threads: int) -> list[float]:
    from tune_dlrml.training.warm_up import warm_up  # imports torch, which the driver does without

    return warm_up(model, pairs, training, folder, workers=workers, threads=threads)
