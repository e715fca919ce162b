"""Whether the activations of a trial's largest batch fit the memory, measured, and so whether to compute them twice."""

import logging
from collections.abc import Sequence

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from tune_dlrml.config import TrainingConfig
from tune_dlrml.system.memory import free_memory
from tune_dlrml.training.memory.rest import MOMENTS
from tune_dlrml.training.pairs.batches import Batch, PairCollator, pair_log_probs
from tune_dlrml.training.ranks import from_all
from tune_dlrml.training.reference.logps import Row, computing, row_length, to_device
from tune_dlrml.training.sharding.shards import bytes_here, local_part, settle

ROOM = 0.6
"""Share of the free memory that activations may take; the rest is for adapters, logits and fragments."""

_log = logging.getLogger(__name__)


class Activations:
    """Memory that the backward pass of a micro-batch needs, measured once on the longest pair.

    What autograd keeps is a part for every pair, since attention does not leave its own, and under autocast the weights
    that it casts; so one pair is measured, and the same pair twice.

    Args:
        model: The base model, ready for pairs in the form of `collate`.
        training: Precision, and whether there is anything to decide.
        collate: Makes a batch of pairs.
        rows: Token ids of all training pairs.
    """

    def __init__(
        self, model: PreTrainedModel, training: TrainingConfig, collate: PairCollator, rows: Sequence[Row]
    ) -> None:
        self._device = next(model.parameters()).device
        self._weights = bytes_here(model)
        self._told: set[bool] = set()
        self._of_one_and_two: tuple[int, int] | None = None
        if training.gradient_checkpointing == "auto":
            longest, free = max(rows, key=row_length), _free(self._device)
            try:
                one, two = (_kept(model, training, to_device(collate([longest] * pairs), model)) for pairs in (1, 2))
            except torch.OutOfMemoryError:  # on every rank of a sharded model, since all measure the same pair
                one, two = free, 2 * free  # at least
                settle(model)
                clear_device_cache()
            self._of_one_and_two = one, two

    def needed(self, pairs: int) -> int | None:
        """Bytes of a micro-batch of this many pairs, were all as long as the longest; None if nothing was to decide."""
        if self._of_one_and_two is None:
            return None
        one, two = self._of_one_and_two
        return one + (two - one) * (pairs - 1)

    def need_checkpointing(self, training: TrainingConfig) -> bool:
        """Whether a trial with these settings computes its activations twice."""
        need = self.needed(training.per_device_train_batch_size)
        free = max(0, _free(self._device) - self._to_come(training))
        if need is None or training.gradient_checkpointing != "auto":
            return training.gradient_checkpointing is True
        # Of one mind, since ranks of a sharded model gather layers together, once more where these are computed twice.
        checkpointing = any(from_all(lambda: is_too_much(need, free)))
        if checkpointing not in self._told:
            self._told.add(checkpointing)
            _log.info(
                "gradient checkpointing is %s: activations of %d pairs take up to %.2f GiB, and %.2f GiB are free",
                "on" if checkpointing else "off",
                training.per_device_train_batch_size,
                need / 2**30,
                free / 2**30,
            )
        return checkpointing

    def _to_come(self, training: TrainingConfig) -> int:
        """Bytes of the gradients and moments of all weights, where these are trained; the first step makes them."""
        return 0 if training.lora else self._weights * (1 + MOMENTS.get(training.optim, 2))


def is_too_much(needed: int, free: int) -> bool:
    """Whether activations take more than their share of the bytes that weights, gradients and moments leave."""
    return needed > ROOM * free


def _kept(model: PreTrainedModel, training: TrainingConfig, batch: Batch) -> int:
    """Bytes that autograd keeps of one forward, weights left out.

    Of a sharded model also the gathered weights are saved, and given back before the forward ends: what is left of a
    storage by then counts, and norm and head stay gathered, as weights.
    """
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor.detach()  # an output that its own graph held would keep the graph for ever

    with computing(model, training), saved_tensors_hooks(keep, lambda tensor: tensor):
        pair_log_probs(model, batch)
    weights = {local_part(parameter.detach()).untyped_storage()._cdata for parameter in model.parameters()}
    return sum(storage.nbytes() for name, storage in kept.items() if name not in weights)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return free_memory()
