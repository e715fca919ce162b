"""Trials of the toy model in one process: a resident model, trial specifications, and a channel that keeps reports."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy
from datasets import disable_progress_bars
from pydantic import TypeAdapter
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from tune_dlrml.config import CheckpointConfig, DivergenceConfig, TrainingConfig
from tune_dlrml.data import Pairs, TokenRows
from tune_dlrml.data.plan import batch_plan
from tune_dlrml.data.tokens import TokenPair, tokenize
from tune_dlrml.evaluation.completions import Completer as HeldOutCompleter
from tune_dlrml.evaluation.frontier.rewards import load_reward
from tune_dlrml.losses.dpo.function import dpo
from tune_dlrml.losses.dpo.geometry import dpo_geometry
from tune_dlrml.losses.preference import PureLoss
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.records import Answer, Report, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.training.group_spec import Completer, TrialPlan
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial

disable_progress_bars()
transformers_logging.disable_progress_bar()

LORA = {"r": 4, "lora_alpha": 8}
SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
    "max_length": 64,
    "max_steps": 8,
    "bf16": False,
    "lora": LORA,
}
OF_THE_GROUP = {"steps_per_second", "reference_tokens", "reference_tokens_saved"}
"""Metrics that the clock decides, or what a group had done before."""
DPO = {"name": "dpo", "beta": 0.1}
DISCOPOP = {"name": "discopop", "beta": 0.1}
BCO = {"name": "bco_pair", "beta": 0.1}
ORPO = {"name": "orpo", "beta": 0.5}
LEARNABLE = {"name": "dlrml", "beta_kl": 0.1, "beta_mix": {"learnable": True, "c_init": 4.0}}


class Dpo(PureLoss):
    """DPO at a beta of 0.1, to be made faulty or slow."""

    def __init__(self) -> None:
        super().__init__(dpo, {"beta": 0.1}, dpo_geometry())


def settings(**changes: Any) -> TrainingConfig:
    """Training settings of the toy; a key may be dotted."""
    return TrainingConfig.model_validate(SETTINGS).at(changes)


def pairs(model: Path, train: int = 48, held_out: int = 16, *, uneven: bool = False) -> Pairs:
    made = toy.uneven_pairs if uneven else toy.pairs
    return Pairs(rows(model, made(train)), rows(model, made(held_out, seed=1)))


def rows(model: Path, pairs: Sequence[Any]) -> TokenRows:
    """Pairs of texts as token ids."""
    made = [pair for pair in tokenize(pairs, AutoTokenizer.from_pretrained(model)) if isinstance(pair, TokenPair)]
    assert len(made) == len(pairs)
    return TokenRows.of(made)


def order(model: Path, rows: list[dict[str, str]], *, steps: int, pairs_per_step: int, seed: int) -> list[int]:
    """The training order of plain text pairs that are not truncated."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = [
        max(len(tokenizer(row["prompt"] + row[side] + "</s>")["input_ids"]) for side in ("chosen", "rejected"))
        for row in rows
    ]
    return batch_plan(lengths, steps=steps, pairs_per_step=pairs_per_step, seed=seed)


def resident(
    model: Path,
    training: TrainingConfig,
    *,
    fsdp: bool = False,
    with_reference: bool = True,
    completer: Completer | None = None,
    beyond: bool = False,
    uneven: bool = False,
    **sizes: int,
) -> Resident:
    return Resident.load(
        str(model),
        pairs(model, uneven=uneven, **sizes),
        training,
        fsdp=fsdp,
        with_reference=with_reference,
        completer=completer,
        beyond=beyond,
    )


def completer(reward: str | None = "toy_reward:characters", **changes: Any) -> HeldOutCompleter:
    """Of the first held-out prompts of the toy."""
    asked = tuple(pair["prompt"] for pair in toy.pairs(5, seed=1))
    own = {} if reward is None else {"reward": reward, "content": load_reward(reward).content}
    return HeldOutCompleter(asked, **{"max_new_tokens": 12, "temperature": 1.0, "batch_size": 2} | own | changes)


def spec(loss: dict[str, Any], training: TrainingConfig, number: int = 0) -> TrialSpec:
    parsed = TypeAdapter(AnyLoss).validate_python(loss)
    return TrialSpec(number=number, branch=loss["name"], loss=parsed, training=training, params={})


def plan(
    steps: int = 8,
    rungs: Iterable[int] = (),
    workers: int = 1,
    *,
    save_steps: int = 50,
    save_total_limit: int = 2,
    **divergence: Any,
) -> TrialPlan:
    checkpoint = CheckpointConfig(save_steps=save_steps, save_total_limit=save_total_limit)
    return TrialPlan(steps, frozenset(rungs), workers, DivergenceConfig(**divergence), checkpoint)


@dataclass
class Recorder:
    """A channel that keeps every report, acknowledges it at once and says stop at one step."""

    stop_at: int | None = None
    reports: list[Report] = field(default_factory=list)

    def send(self, report: Report) -> Answer:
        self.reports.append(report)
        return Answer(report.step != self.stop_at, acknowledged=report.step)

    def curve(self, metric: str = "train_loss") -> list[float]:
        return [report.metrics[metric] for report in self.reports if report.step > 0]


class Verdict(Recorder):
    """Of several ranks: rank 0 decides, the others hear of it."""

    def send(self, report: Report) -> Answer:
        answer = [super().send(report)]
        dist.broadcast_object_list(answer, 0)
        return answer[0]


class Dying(Verdict):
    """All ranks raise at step 6."""

    def send(self, report: Report) -> Answer:
        if report.step == 6:
            raise ConnectionError("nobody listens")
        return super().send(report)


def run(
    model: Resident,
    loss: dict[str, Any],
    training: TrainingConfig,
    budget: TrialPlan | None = None,
    stop_at: int | None = None,
) -> tuple[TrialOutcome | None, Recorder]:
    """One trial from its first step, in a folder of its own that is gone afterwards."""
    channel = Recorder(stop_at)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train_trial(model, spec(loss, training), budget or plan(), channel, folder=Path(folder))
    return outcome, channel


def disturb(model: nn.Module, seed: int = 0) -> None:
    """Move all weights a little, the same way for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.02 * torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
            parameter += noise
