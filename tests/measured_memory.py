"""The most memory that a toy's trial takes on a CPU, as torch's allocator tells it, beside what the plan says of it."""

import gc
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu.made import Pair, Shape, as_rows, llama, word_tokenizer
from pydantic import TypeAdapter
from torch.profiler import ProfilerActivity, profile
from toy_training import DPO, Recorder

from tune_dlrml.config import CheckpointConfig, DivergenceConfig, TrainingConfig
from tune_dlrml.data import Pairs
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.models.loading import load_shapes, parse_model_reference
from tune_dlrml.space import TrialSpec
from tune_dlrml.training.group_spec import TrialPlan
from tune_dlrml.training.held_out import KL_ROWS
from tune_dlrml.training.memory.plan import MemoryPlan, Rank, RankMemory
from tune_dlrml.training.memory.simulated import MicroBatch
from tune_dlrml.training.ranks import rank_and_world
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial

TOY = Shape("toy", hidden=128, intermediate=256, layers=4, heads=4, kv_heads=2, vocabulary=512)
BATCH = MicroBatch(pairs=4, prompt=96, chosen=64, rejected=48, packed=True)
STEPS = 2


@dataclass(frozen=True)
class Case:
    """A way to train the toy."""

    lora: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    batch: MicroBatch = BATCH
    shape: Shape = TOY
    sharded: bool = False

    @property
    def training(self) -> TrainingConfig:
        plain = {
            "learning_rate": 1e-4,
            "per_device_train_batch_size": self.batch.pairs,
            "per_device_eval_batch_size": self.batch.pairs,
            "shared_prompt": self.batch.packed,
            "gradient_checkpointing": False,
            "bf16": False,
            "max_steps": STEPS,
            "lora": {"r": 8, "lora_alpha": 16} if self.lora else None,
        }
        return TrainingConfig.model_validate(plain | self.changes)

    def write(self, folder: Path) -> Path:
        llama(self.shape, torch.device("cpu"), torch.float32).save_pretrained(folder)
        word_tokenizer(self.shape).save_pretrained(folder)
        return folder

    def pairs(self) -> Pairs:
        """Twice as many as a step takes, all of the same lengths."""
        torch.manual_seed(0)
        ids = torch.randint(2, self.shape.vocabulary, (64, self.batch.prompt + self.batch.chosen + self.batch.rejected))
        sizes = self.batch.prompt, self.batch.chosen, self.batch.rejected
        made = [Pair(*(part.tolist() for part in row.split(sizes))) for row in ids]
        rows = as_rows(made, word_tokenizer(self.shape))
        return Pairs(rows, as_rows(made[:KL_ROWS], word_tokenizer(self.shape)))

    def planned(self, folder: Path, ranks: int = 1) -> RankMemory:
        model = load_shapes(parse_model_reference(str(folder)))
        training = self.training
        rank = Rank(ranks, self.sharded, training.gradient_checkpointing is True, "cpu")
        return MemoryPlan(model, training, self.batch).on(rank)

    def measured(self, folder: Path) -> int:
        """Bytes, from the loading of the model to the end of a trial."""
        pairs, training, world = self.pairs(), self.training, rank_and_world()[1]
        loss = TypeAdapter(AnyLoss).validate_python(DPO)
        spec = TrialSpec(number=0, branch="dpo", loss=loss, training=training, params={})
        plan = TrialPlan(STEPS, frozenset(), world, DivergenceConfig(), CheckpointConfig(save_steps=10**6))
        gc.collect()  # what goes while it is watched is subtracted
        with (
            tempfile.TemporaryDirectory() as place,
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        ):
            resident = Resident.load(str(folder), pairs, training, fsdp=self.sharded)
            gc.collect()  # as a worker does
            train_trial(resident, spec, plan, Recorder(), folder=Path(place))
        return most_allocated(profiled)


def most_allocated(profiled: profile) -> int:
    """Bytes that were there at once of what was allocated since the profile began."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(file))
        trace = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    events = [event["args"] for event in trace if event["name"] == "[memory]"]
    live: dict[int, int] = {}
    now = most = 0
    for event in sorted(events, key=lambda event: int(event["Ev Idx"])):
        now -= live.pop(event["Addr"], 0)
        if event["Bytes"] > 0:
            live[event["Addr"]] = event["Bytes"]
            now += event["Bytes"]
        most = max(most, now)
    return most
