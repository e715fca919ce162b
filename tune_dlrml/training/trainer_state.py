"""What a trainer trains and its optimizers, in the files of a checkpoint as transformers and PEFT name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from tune_dlrml.training.sharding.files import (
    gathered_weights,
    moments,
    optimizer_file,
    put_moments,
    read_weights,
    refuse_other_division,
)
from tune_dlrml.training.sharding.shards import is_sharded, settle
from tune_dlrml.training.state_files import random_state, write_model, write_pickle, write_tensors

MIX_NAME = "beta_mix.pt"
"""File with a learnable beta_mix and its optimizer; the other names are transformers' and PEFT's."""
MEMORY_NAME = "loss_memory.pt"
"""File with what a loss remembers of the pairs it was trained on."""


@dataclass(frozen=True)
class TrainerState:
    """The part of a trainer that changes in training, as one rank writes and reads it.

    Attributes:
        model: With its adapter, if it has one.
        optimizer: Of the policy.
        lr_scheduler: Of that optimizer.
        mix: A learnable beta_mix and its optimizer; None without one.
        memory: What the loss remembers of the pairs it was trained on, by name, the same on every rank; most remember
            nothing.
        adapter: Whether an adapter is trained, and not all weights.
        rank: This rank.
        world: How many there are.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: LRScheduler
    mix: tuple[nn.Module, torch.optim.Optimizer] | None
    memory: Mapping[str, Tensor]
    adapter: bool
    rank: int
    world: int

    @property
    def divided(self) -> bool:
        """Whether no rank has all of what is trained."""
        return not self.adapter and is_sharded(self.model)

    @property
    def _optimizer_file(self) -> str:
        return optimizer_file(self.rank, self.world) if self.divided else "optimizer.pt"

    def write(self, folder: Path) -> None:
        """Write this rank's part; rank 0's is all that is not divided.

        Other than transformers' own, a checkpoint holds no `training_args.bin`, which only a full unpickling could
        read, and no model card.

        Raises:
            OSError: A file cannot be written.
        """
        weights = self._weights()  # all ranks together, before any file, which may fail on one alone
        name = f"rng_state_{self.rank}.pth" if self.world > 1 else "rng_state.pth"
        write_pickle(random_state(self.world), folder / name)
        if self.divided:
            write_pickle(moments(self.optimizer), folder / self._optimizer_file)
        if self.rank != 0:
            return
        if weights is None:
            write_model(self.model, folder / "model.safetensors")
        else:
            write_tensors(weights, folder / f"{'adapter_' if self.adapter else ''}model.safetensors")
        if self.adapter:
            self.model.peft_config["default"].save_pretrained(folder)
        if not self.divided:
            write_pickle(self.optimizer.state_dict(), folder / self._optimizer_file)
        write_pickle(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        if self.mix is not None:
            mix, optimizer = self.mix
            write_pickle({"mix": mix.state_dict(), "optimizer": optimizer.state_dict()}, folder / MIX_NAME)
        if self.memory:
            write_pickle(dict(self.memory), folder / MEMORY_NAME)

    def _weights(self) -> Mapping[str, Tensor] | None:
        """What is trained; None for all weights of a model that this rank has whole."""
        settle(self.model)
        if self.divided:
            return gathered_weights(self.model, keep=self.rank == 0)
        if not self.adapter:
            return None
        named = self.model.named_parameters()
        # Given no weights, PEFT gathers the whole base of a sharded model.
        trained = {name: weight for name, weight in named if weight.requires_grad} if is_sharded(self.model) else None
        # Or else PEFT asks the hub whether the vocabulary has grown.
        found: Mapping[str, Tensor] = get_peft_model_state_dict(self.model, trained, save_embedding_layers=False)
        return found

    def read_weights(self, folder: Path) -> None:
        """Put this rank's part of all weights back, where they are divided."""
        settle(self.model)
        read_weights(self.model, folder / "model.safetensors")

    def refuse_other_division(self, folder: Path) -> None:
        """Refuse moments of all weights that another division wrote.

        Raises:
            InputError: Naming what is there.
        """
        if not self.adapter:
            refuse_other_division(folder, self._optimizer_file)

    def read_optimizers(self, folder: Path) -> None:
        """Put back what transformers does not: moments that are divided, with their schedule, and the loss's own."""
        if self.divided:
            put_moments(self.optimizer, _read(folder / self._optimizer_file))
            self.lr_scheduler.load_state_dict(_read(folder / "scheduler.pt"))
        if self.mix is not None:
            mix, optimizer = self.mix
            stored = _read(folder / MIX_NAME)
            mix.load_state_dict(stored["mix"])
            optimizer.load_state_dict(stored["optimizer"])
        if self.memory:
            stored = _read(folder / MEMORY_NAME)
            for name, buffer in self.memory.items():
                buffer.copy_(stored[name])


def _read(file: Path) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return stored
