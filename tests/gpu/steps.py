"""Optimizer steps of this project and of TRL's DPOTrainer on the same pairs, timed."""

import contextlib
import copy
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu.made import Figures, Lengths, Pair, Shape, as_dataset, as_rows, llama, random_pairs, step_flops, word_tokenizer
from peft import LoraConfig
from pydantic import TypeAdapter
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tune_dlrml.config import CheckpointConfig, DivergenceConfig, TrainingConfig
from tune_dlrml.data import Pairs
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.records import Answer, Report
from tune_dlrml.space import TrialSpec
from tune_dlrml.training.group_spec import TrialPlan
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial

WARM_UP = 3
BETA, RANK = 0.1, 16


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Attributes:
        per_step: Pairs of an optimizer step.
        steps: Timed ones, behind `WARM_UP`.
        changes: Of the training settings.
    """

    shape: Shape
    device: torch.device
    lora: bool = True
    per_step: int = 4
    steps: int = 10
    lengths: Lengths = field(default_factory=Lengths)
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def bf16(self) -> bool:
        return self.device.type == "cuda"

    @property
    def all_steps(self) -> int:
        return WARM_UP + self.steps

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: a frozen base is in bfloat16, what is trained in float32."""
        return torch.bfloat16 if self.bf16 and self.lora else torch.float32

    def pairs(self) -> list[Pair]:
        return random_pairs(self.shape, self.all_steps * self.per_step, self.lengths, self.seed)

    def training(self) -> TrainingConfig:
        adapter = {"lora": {"r": RANK, "lora_alpha": 2 * RANK}} if self.lora else {}
        plain = {
            "learning_rate": 1e-5,
            "optim": "adamw_torch_fused",
            "per_device_train_batch_size": self.per_step,
            "per_device_eval_batch_size": self.per_step,
            "max_length": self.lengths.longest + 1,
            "max_steps": self.all_steps,
            "bf16": self.bf16,
        }
        return TrainingConfig.model_validate(plain | adapter | self.changes)


class Clock:
    """When each step ended, and the most memory that was in use behind the warm-up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.ticks: list[float] = []

    def tick(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            if len(self.ticks) == WARM_UP:
                torch.cuda.reset_peak_memory_stats(self._device)
        self.ticks.append(time.perf_counter())

    def figures(self, setting: Setting, pairs: Sequence[Pair]) -> Figures:
        seconds = [after - before for before, after in itertools.pairwise(self.ticks)][WARM_UP:]
        size = setting.per_step
        batches = [pairs[at : at + size] for at in range(WARM_UP * size, setting.all_steps * size, size)]
        batches = batches[: len(seconds)]
        flops = sum(step_flops(setting.shape, batch, frozen=setting.lora) for batch in batches)
        tokens = sum(pair.tokens for batch in batches for pair in batch)
        return {
            "step_ms": round(1000 * statistics.median(seconds), 2),
            "tokens_per_s": round(tokens / sum(seconds)),
            "tflops": round(flops / sum(seconds) / 1e12, 2),
            "peak_gib": peak(self._device),
        }


class ProfiledClock(Clock):
    """Looks into the last step but one: the steps before it have made what is made once."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._profile = torch.profiler.profile()
        self._seconds = 0.0

    def tick(self) -> None:
        super().tick()
        if len(self.ticks) == WARM_UP + 1:
            self._profile.start()
        elif len(self.ticks) == WARM_UP + 2:
            self._seconds = self.ticks[-1] - self.ticks[-2]
            self._profile.stop()

    def profiled(self) -> Figures:
        events = self._profile.events()
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        slowest = sorted(self._profile.key_averages(), key=lambda event: -event.self_device_time_total)
        return {
            "step_ms_profiled": round(1000 * self._seconds, 1),
            "kernels": len(kernels),
            "busy_ms": round(1000 * busy, 1),
            "slowest_ms": {event.key[:60]: round(event.self_device_time_total / 1000, 1) for event in slowest[:8]},
            "operators": sum(event.device_type == torch.autograd.DeviceType.CPU for event in events),
        }


def peak(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def in_order(resident: Resident, setting: Setting) -> list[Pair]:
    """The pairs in the order in which a trial trains on them."""
    planned = resident.plan(setting.training(), steps=setting.all_steps, workers=1)
    rows = [resident.train_rows[index] for index in planned]
    return [Pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]


class Recorder:
    """The channel of a trial: keeps its reports, and ticks a clock at each."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self.reports: list[Report] = []

    def send(self, report: Report) -> Answer:
        if self._clock is not None:
            self._clock.tick()
        self.reports.append(report)
        return Answer(go_on=True, acknowledged=report.step)

    def losses(self) -> list[float]:
        return [report.metrics["train_loss"] for report in self.reports if report.step > 0]


def group(setting: Setting, model: Any = None) -> Resident:
    """A worker group's resident model and data."""
    pairs = setting.pairs()
    held_out = random_pairs(setting.shape, 4, setting.lengths, seed=setting.seed + 1)
    model = llama(setting.shape, setting.device, setting.dtype) if model is None else model
    tokenizer = word_tokenizer(setting.shape)
    rows = Pairs(as_rows(pairs, tokenizer), as_rows(held_out, tokenizer))
    return Resident(model, tokenizer, rows, setting.training())


def trial(resident: Resident, setting: Setting, *, number: int = 0, clock: Clock | None = None) -> Recorder:
    loss = TypeAdapter(AnyLoss).validate_python({"name": "dpo", "beta": BETA})
    spec = TrialSpec(number=number, branch="dpo", loss=loss, training=setting.training(), params={})
    plan = TrialPlan(setting.all_steps, frozenset(), 1, DivergenceConfig(), CheckpointConfig(save_steps=10**6))
    channel = Recorder(clock)
    with tempfile.TemporaryDirectory() as folder:
        train_trial(resident, spec, plan, channel, folder=Path(folder))
    return channel


def ours(setting: Setting, model: Any = None) -> Figures:
    resident = group(setting, model)
    clock = Clock(setting.device)
    recorder = trial(resident, setting, clock=clock)
    clock.ticks.pop()  # the last step has a held-out pass and a checkpoint in it
    facts = recorder.reports[0].metrics
    return clock.figures(setting, in_order(resident, setting)) | {
        "shared_prompt": bool(facts["shared_prompt"]),
        "gradient_checkpointing": bool(facts["gradient_checkpointing"]),
        "last_loss": recorder.losses()[-1],
    }


def trl(setting: Setting, *, gradient_checkpointing: bool) -> Figures:
    """TRL's DPOTrainer with cached references and the fused optimizer, on the same pairs in the same order as ours."""
    clock = Clock(setting.device)

    class StepClock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    pairs = setting.pairs()
    model = llama(setting.shape, setting.device, setting.dtype)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            max_steps=setting.all_steps,
            per_device_train_batch_size=setting.per_step,
            max_length=setting.lengths.longest + 1,
            learning_rate=1e-5,
            beta=BETA,
            bf16=setting.bf16,
            use_cpu=setting.device.type == "cpu",
            optim="adamw_torch_fused",
            gradient_checkpointing=gradient_checkpointing,
            precompute_ref_log_probs=True,
            train_sampling_strategy="sequential",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=model,
            ref_model=None if setting.lora else copy.copy(model),
            args=arguments,
            train_dataset=as_dataset(pairs),
            processing_class=word_tokenizer(setting.shape),
            peft_config=adapter() if setting.lora else None,
            callbacks=[StepClock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.figures(setting, pairs) | {"gradient_checkpointing": gradient_checkpointing}


def adapter() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")


@contextlib.contextmanager
def emptied(device: torch.device) -> Iterator[None]:
    """Frees what a measurement leaves."""
    yield
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
