"""What a rank of a worker group holds while a trial trains, piece by piece: the arithmetic, from shapes alone.

Shape legend: C = scored tokens of a micro-batch, V = vocabulary, D = width of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.activations import is_too_much
from tune_dlrml.training.held_out import KL_ROWS, KL_TILE
from tune_dlrml.training.memory.rest import FLOAT, Pieces, at_rest, kept_dtype
from tune_dlrml.training.memory.simulated import (
    Held,
    MicroBatch,
    adapter_weights,
    outermost_layers,
    simulate,
    simulate_reading,
)
from tune_dlrml.training.pairs.batches import CPU_HEAD_TILE, GPU_HEAD_TILE, HEAD_TOKENS
from tune_dlrml.training.pairs.form import LOGITS

READ_TILES, LEARN_TILES = 3, 7
"""Float32 copies of a tile of logits that TRL's head makes on a CPU, forwards and backwards; a GPU has a kernel."""
KL_TILES = 5
"""Float32 tiles of logits that the KL of a tile of tokens takes."""
KEPT_COPIES = 3
"""Float32 copies of the reference's logits that are there while they are made halves."""
GATHERED = 2
"""Layers of a sharded model that are whole at a time: one computes, the next is on its way."""


@dataclass(frozen=True)
class Rank:
    """One of the ranks that train a trial together.

    Attributes:
        ranks: How many there are.
        sharded: Whether they hold the weights of the model together.
        checkpointing: Whether layers are computed twice.
        device: What it computes on.
    """

    ranks: int = 1
    sharded: bool = False
    checkpointing: bool = False
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds.

    Attributes:
        at_rest: Weights, gradients and moments, whose sum is there between two steps at the most.
        moments: All that is there at the moments of a step, of which one is the peak.
        host: What lies in main memory, whatever the rank computes on.
    """

    at_rest: Pieces
    moments: Mapping[str, Pieces]
    host: Pieces

    @property
    def resting(self) -> int:
        """Bytes at rest."""
        return sum(self.at_rest.values())

    @property
    def peak_moment(self) -> str:
        """The moment at which it holds the most."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> int:
        """Bytes at that moment."""
        return sum(self.moments[self.peak_moment].values())


class MemoryPlan:
    """What a rank holds while a trial trains, however many ranks there are.

    Args:
        model: Without an adapter and without storage.
        training: The trial's settings.
        batch: The largest micro-batch.
        with_reference: Whether trials look at the reference, so that its logits are kept for their KL.

    Attributes:
        weights: Numbers of the model.
        adapter: Numbers of its adapter.

    Raises:
        InputError: The model cannot be run on shapes alone.
    """

    def __init__(
        self, model: PreTrainedModel, training: TrainingConfig, batch: MicroBatch, *, with_reference: bool = True
    ) -> None:
        self._model, self._training, self._batch = model, training, batch
        self._with_reference = with_reference
        self._dtype = kept_dtype(training)
        self.weights = _numel(model)
        self.adapter = adapter_weights(model, training)
        self._held: dict[bool, Held] = {}
        self._read: dict[int, tuple[dict[str, int], dict[str, int]]] = {}

    def at_rest(self, shards: int = 1) -> dict[str, int]:
        """Weights, gradients and moments where so many ranks hold the model together."""
        return at_rest(self._model, self._training, self._dtype, adapter=self.adapter, shards=shards)

    @property
    def trained(self) -> int:
        """Numbers that a trial trains."""
        return self.weights if self._training.lora is None else self.adapter

    @cached_property
    def activations(self) -> int:
        """What a group measures when it loads a model, before there is an adapter; see `training.activations`."""
        bare = self._training.model_copy(update={"lora": None})
        return simulate(self._model, bare, self._batch, self._dtype, checkpointing=False).kept

    def checkpoints(self, free: int, shards: int = 1) -> bool:
        """Whether a trial computes its layers twice on a device with so many bytes free before the model is loaded."""
        if self._training.gradient_checkpointing != "auto":
            return self._training.gradient_checkpointing
        rest = self.at_rest(shards)
        to_come = 0 if self._training.lora else rest["gradients"] + rest["optimizer"]
        return is_too_much(self.activations, max(0, free - rest["weights"] - to_come))

    def on(self, rank: Rank) -> RankMemory:
        """What one of these ranks holds."""
        model, training, batch, dtype = self._model, self._training, self._batch, self._dtype
        again = training.gradient_accumulation_steps > 1
        if rank.checkpointing not in self._held:
            self._held[rank.checkpointing] = simulate(
                model, training, batch, dtype, checkpointing=rank.checkpointing, again=again
            )
        held = self._held[rank.checkpointing]
        rows = -(-KL_ROWS // rank.ranks) if self._with_reference else 0
        if rows not in self._read:
            self._read[rows] = _reading(model, training, batch, dtype, rows)
        reference, held_out = self._read[rows]
        rest = self.at_rest(rank.ranks if rank.sharded else 1)
        if rank.ranks > 1 and (training.lora is not None or not rank.sharded):
            rest["buckets"] = rest["gradients"]  # in which DDP sums them
        before = rest if again else rest | {"gradients": 0}
        gathered, gathered_back = _gathered(model, training, dtype) if rank.sharded else (0, 0)
        head = _Head.of(model, training, batch, dtype, rank)
        moments: dict[str, Pieces] = {
            "forward": before | {"activations": held.forward, "gathered": gathered},
            "log-probs": before | {"activations": held.end, "log-probs": head.read, "gathered": gathered},
            "backward of log-probs": before
            | {"activations": held.kept, "log-probs": head.learn, "gathered": gathered_back},
            "backward": before | {"activations": held.backward, "log-probs": head.gradient, "gathered": gathered_back},
            "end of backward": rest | {"activations": held.last, "gathered": gathered_back},
            "optimizer step": rest | {"temporary": _optimizer_temporary(model, training, rest, rank)},
            "reference": rest | {"gradients": 0, "optimizer": 0, "gathered": gathered} | reference,
            "held-out pairs": rest | {"gradients": 0, "gathered": gathered} | held_out,
        }
        if not self._with_reference:
            del moments["reference"]
        host = {"KL logits": rows * _logits(model, batch) * (2 if training.in_bfloat16 else FLOAT)} if rows else {}
        if training.lora is None:
            host["pristine weights"] = rest["weights"]
        return RankMemory(rest, {name: _present(pieces) for name, pieces in moments.items()}, host)


def _present(pieces: Pieces) -> Pieces:
    return {name: size for name, size in pieces.items() if size}


@dataclass(frozen=True)
class _Head:
    """What makes log-probs of hidden states takes forwards and backwards, and the gradient of its matrix."""

    read: int
    learn: int
    gradient: int

    @classmethod
    def of(
        cls, model: PreTrainedModel, training: TrainingConfig, batch: MicroBatch, dtype: torch.dtype, rank: Rank
    ) -> "_Head":
        vocabulary, width = _head(model).shape
        itemsize = 2 if training.in_bfloat16 else dtype.itemsize
        on_cpu, tokens = rank.device == "cpu", min(batch.scored, HEAD_TOKENS)
        tile = CPU_HEAD_TILE if on_cpu else GPU_HEAD_TILE
        # The buffer is a tile of the full width, its float32 copies of the vocabulary's.
        cast = (tokens + min(tile, vocabulary)) * width * itemsize if itemsize != dtype.itemsize else 0
        buffer, copy = tokens * tile * itemsize + cast, tokens * min(tile, vocabulary) * FLOAT * on_cpu
        gradient = 0 if training.lora is not None else vocabulary * width * FLOAT
        hidden = batch.scored * width * FLOAT
        return cls(
            read=buffer + READ_TILES * copy, learn=buffer + LEARN_TILES * copy + hidden + gradient, gradient=gradient
        )


def _head(model: PreTrainedModel) -> nn.Parameter:
    weight: nn.Parameter = model.get_output_embeddings().weight
    return weight


def _gathered(model: PreTrainedModel, training: TrainingConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Whole weights of a sharded model that are there at once, forwards and, with their gradients, backwards.

    The head stays from the forward to the backward pass.
    """
    layer, head = max(map(_numel, outermost_layers(model))), _head(model).numel()
    weights = (GATHERED * layer + head) * dtype.itemsize
    return weights, weights + (0 if training.lora is not None else GATHERED * max(layer, head) * FLOAT)


def _numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _optimizer_temporary(model: PreTrainedModel, training: TrainingConfig, rest: Pieces, rank: Rank) -> int:
    """What an optimizer's step makes and drops: on a GPU AdamW's has one number for every weight, on a CPU of one."""
    shards = rank.ranks if rank.sharded else 1
    largest: int = min(rest["gradients"], max(weight.numel() for weight in model.parameters()) // shards * FLOAT)
    if training.optim == "adafactor":
        return 3 * largest
    if training.optim != "adamw_torch":
        return 0
    return rest["gradients"] if rank.device == "cuda" else 2 * largest


def _reading(
    model: PreTrainedModel, training: TrainingConfig, batch: MicroBatch, dtype: torch.dtype, rows: int
) -> tuple[dict[str, int], dict[str, int]]:
    """The KL of so many held-out pairs, in float32: the reference's when a group loads, and a policy's at a rung.

    Of none of them there is no KL, and a rung reads the pairs alone.
    """
    pairs = replace(batch, pairs=training.per_device_eval_batch_size)
    evaluated = simulate_reading(model, training, pairs, dtype, autocast=training.in_bfloat16)
    if not rows:
        return {}, {"activations": evaluated}
    layers, logits = outermost_layers(model), _logits(model, batch)
    outside = _numel(model) - sum(map(_numel, layers))
    widened = (outside + max(map(_numel, layers))) * (FLOAT - dtype.itemsize)
    at_once = max(1, min(rows, LOGITS // logits)) if batch.packed else 1
    row = MicroBatch(at_once, batch.prompt, batch.chosen, 0, batch.packed)
    forward = simulate_reading(model, training, row, torch.float32, autocast=False)
    made = at_once * logits * FLOAT
    tile = KL_TILES * min(KL_TILE, batch.chosen) * logits // batch.chosen * FLOAT
    return (
        {"widened weights": widened, "KL logits": max(forward, made * (KEPT_COPIES if training.in_bfloat16 else 1))},
        {"widened weights": widened, "KL logits": max(forward, evaluated - widened, made + tile)},
    )


def _logits(model: PreTrainedModel, batch: MicroBatch) -> int:
    """Numbers of the distributions over a chosen completion."""
    count: int = batch.chosen * _head(model).shape[0]
    return count
