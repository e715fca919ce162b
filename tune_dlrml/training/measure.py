"""What a worker takes on this machine: a few real optimizer steps, a held-out evaluation, a checkpoint.

The trial is the one that a worker trains, on a model and rows loaded as a worker loads them, in this process.
"""

import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from tune_dlrml.config import CheckpointConfig, DivergenceConfig, ResourcesConfig
from tune_dlrml.data import Pairs
from tune_dlrml.errors import InputError
from tune_dlrml.records import Answer, Report, State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.system.allocator import keep_freed_memory
from tune_dlrml.training.group_spec import Completer, TrialPlan
from tune_dlrml.training.reference.logps import row_length
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trial import train_trial

SQUARE = {"cpu": 1024, "cuda": 8192}
"""Rows of the matrices whose products are timed: tens of milliseconds, far above what a call takes."""
PRODUCTS = 5
NEVER = DivergenceConfig(nonfinite_fraction=1.0, loss_factor=1e300, margin_limit=1e300)
"""What is timed is not judged."""


@dataclass(frozen=True)
class Measurement:
    """What one worker took, with its own share of a batch; nothing in it depends on how many workers there are.

    Attributes:
        device: `cpu`, or the GPU's name.
        threads: Of the CPU.
        load_s: Model, tokenizer and rows, without the reference pass.
        reference_s_per_token: Of the reference's forward; padding counts as time and not as tokens.
        held_out_reference_tokens: Tokens of the reference pass over the held-out pairs.
        reference_tokens_per_pair: Mean over the training pairs; 0 where the timed loss takes no reference.
        train_pairs: Training pairs that a trial can see.
        step_s: Optimizer steps after the first, each scaled to a batch of mean length.
        tokens_per_step: Tokens that such a batch trains on.
        evaluation_s: One held-out evaluation.
        checkpoint_s: Writing one checkpoint.
        trial_s: What a trial takes beside all that: its adapter and trainer, and putting the model back.
        checkpoint_bytes: Size of a checkpoint.
        memory_bytes: The process's peak.
        gpu_memory_bytes: Peak of what torch reserved; 0 on a CPU.
        longest_share: Length of the longest pair that was trained on, relative to the longest of all.
        matrix_rates: FLOP/s of a dense matrix product on that device with those threads, by its dtype.
    """

    device: str
    threads: int
    load_s: float
    reference_s_per_token: float
    held_out_reference_tokens: int
    reference_tokens_per_pair: float
    train_pairs: int
    step_s: tuple[float, ...]
    tokens_per_step: float
    evaluation_s: float
    checkpoint_s: float
    trial_s: float
    checkpoint_bytes: int
    memory_bytes: int
    gpu_memory_bytes: int
    longest_share: float
    matrix_rates: Mapping[str, float]


def measure_worker(
    model: str,
    pairs: Pairs,
    spec: TrialSpec,
    resources: ResourcesConfig,
    *,
    steps: int,
    completer: Completer | None = None,
    others: Sequence[TrialSpec] = (),
) -> tuple[Measurement, list[tuple[float, ...]]]:
    """Time a worker: load, the reference pass over a few batches, and a trial of `steps` optimizer steps.

    Nothing stays: neither a file nor a changed weight nor the number of threads; only the process keeps the memory that
    it frees, as a worker does.

    Args:
        model: Model reference.
        pairs: Those of the search.
        spec: The trial that is timed.
        resources: What a worker is given.
        steps: At least 2, of which the first is not counted.
        completer: Held-out prompts that its trials complete.
        others: Trials that are trained as far as the timed one.

    Returns:
        What it took, and the margin of every held-out pair after the timed trial and after each of the others.

    Raises:
        InputError: There is no GPU for torch, the memory does not suffice, or a held-out number was not finite.
    """
    if steps < 2:
        raise ValueError(f"`steps >= 2` must hold, since the first is not counted, but got {steps}")
    if resources.gpus_per_worker and not torch.cuda.is_available():
        raise InputError(
            f"resources.gpus_per_worker: {resources.gpus_per_worker:g} asks for a GPU, but torch {torch.__version__} "
            "finds none here; run this where a worker of the search would run"
        )
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(resources.cpus_per_worker)
    keep_freed_memory()
    try:
        return _measure(model, pairs, spec, steps, completer, others)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a trial must fit the memory of {_device()}, but: {str(error).split('. ')[0]}; lower "
            "training.per_device_train_batch_size (and raise gradient_accumulation_steps) or training.max_length"
        ) from None
    finally:
        torch.set_num_threads(threads)
        gc.unfreeze()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(
    model: str,
    pairs: Pairs,
    spec: TrialSpec,
    steps: int,
    completer: Completer | None,
    others: Sequence[TrialSpec],
) -> tuple[Measurement, list[tuple[float, ...]]]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    resident, loaded_s = _timed(
        lambda: Resident.load(
            model,
            pairs,
            spec.training,
            with_reference=spec.loss.needs_reference,
            beyond=spec.loss.ld_alpha is not None,
            completer=completer,
        )
    )
    gc.collect()
    gc.freeze()  # as a worker does, or the collections of a trial would look through all imports
    reference, train_pairs = resident.reference, len(resident.train_rows)
    held_out_tokens = reference.tokens_forwarded
    rows, filled_s = _timed(lambda: resident.rows(spec.training, steps=steps, workers=1))
    reference_s = filled_s / max(1, reference.tokens_forwarded - held_out_tokens)
    timed = _time_trial(resident, spec, steps)
    # A few batches are a sample of the lengths: what they took is scaled to the mean length of all pairs.
    tokens_per_pair = reference.tokens_of(resident.train_rows) / train_pairs
    tokens_per_step = _mean(timed.step_tokens) * tokens_per_pair / (reference.tokens_of(rows) / len(rows))
    scaled = [seconds * tokens_per_step / own for seconds, own in zip(timed.step_s, timed.step_tokens, strict=True)]
    on_gpu = next(resident.model.parameters()).device.type == "cuda"
    measured = Measurement(
        device=_device(),
        threads=torch.get_num_threads(),
        load_s=max(0.0, loaded_s - held_out_tokens * reference_s),
        reference_s_per_token=reference_s,
        held_out_reference_tokens=held_out_tokens,
        reference_tokens_per_pair=tokens_per_pair if resident.with_reference else 0.0,
        train_pairs=train_pairs,
        step_s=tuple(scaled[1:]),
        tokens_per_step=tokens_per_step,
        evaluation_s=timed.outcome.seconds["evaluation"],
        checkpoint_s=timed.outcome.seconds["saving"],
        trial_s=timed.beside_s,
        checkpoint_bytes=timed.checkpoint_bytes,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        gpu_memory_bytes=torch.cuda.max_memory_reserved() if on_gpu else 0,
        longest_share=max(map(row_length, rows)) / max(map(row_length, resident.train_rows)),
        matrix_rates=matrix_rates(next(resident.model.parameters()).device),
    )
    return measured, [timed.margins, *(_margins(resident, each, steps) for each in others)]


def _margins(resident: Resident, spec: TrialSpec, steps: int) -> tuple[float, ...]:
    """The margin of every held-out pair after so many steps of a trial."""
    plan = TrialPlan(steps, frozenset(), 1, NEVER, CheckpointConfig(save_steps=steps + 1))
    with tempfile.TemporaryDirectory(prefix="measure_") as folder:
        outcome = train_trial(resident, spec, plan, _Stopwatch(), folder=Path(folder))
    return _reached(resident, outcome, spec)


def _reached(resident: Resident, outcome: TrialOutcome | None, spec: TrialSpec) -> tuple[float, ...]:
    """The held-out margins of a trial that has ended; it is an error if it has not reached its last step."""
    if outcome is None or outcome.state is not State.COMPLETE:
        reason = "it was stopped" if outcome is None else outcome.reason
        raise InputError(
            f"a trial that is measured must reach its last step, but {reason}; lower training.learning_rate, which is "
            f"{spec.training.learning_rate:g}"
        )
    return tuple(resident.held_out.margins)


def matrix_rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of the product of two square matrices in float32 and in bfloat16, the median of a few."""
    size = SQUARE[device.type]
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        taken_s = [_timed(partial(_multiply, matrix))[1] for _ in range(PRODUCTS)]
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / statistics.median(taken_s)
    return rates


def _multiply(matrix: torch.Tensor) -> float:
    """A number of the product, so that a GPU is done with it."""
    return float((matrix @ matrix)[0, 0].item())


@dataclass(frozen=True)
class _TimedTrial:
    """A trial in its parts; `beside_s` is what neither steps nor evaluation nor checkpoint took."""

    outcome: TrialOutcome
    step_s: list[float]
    step_tokens: list[float]
    beside_s: float
    checkpoint_bytes: int
    margins: tuple[float, ...]


def _time_trial(resident: Resident, spec: TrialSpec, steps: int) -> _TimedTrial:
    """Train a trial whose process has trained before: the first one of a process also waits for imports and caches."""
    training = spec.training.model_copy(update={"logging_steps": 1})
    spec = spec.model_copy(update={"training": training})
    plan = TrialPlan(steps, frozenset(), 1, NEVER, CheckpointConfig(save_steps=steps + 1))
    watch, clock = _Stopwatch(), time.perf_counter
    with tempfile.TemporaryDirectory(prefix="measure_") as folder:
        train_trial(resident, spec, plan, _Stopwatch(stop_at=1), folder=Path(folder, "warm"), clock=clock)
        outcome, took_s = _timed(
            lambda: train_trial(resident, spec, plan, watch, folder=Path(folder, "timed"), clock=clock)
        )
        checkpoint_bytes = sum(path.stat().st_size for path in Path(folder, "timed").rglob("*") if path.is_file())
    margins = _reached(resident, outcome, spec)
    assert outcome is not None
    # The evaluation of the last step comes before its report.
    step_s = [watch.at_s[step] - watch.at_s[step - 1] for step in range(1, steps + 1)]
    step_s[-1] -= outcome.seconds["evaluation"]
    step_tokens = [watch.tokens[step] - watch.tokens[step - 1] for step in range(1, steps + 1)]
    accounted = steps * _mean(step_s[1:]) + outcome.seconds["evaluation"] + outcome.seconds["saving"]
    return _TimedTrial(outcome, step_s, step_tokens, max(0.0, took_s - accounted), checkpoint_bytes, margins)


@dataclass
class _Stopwatch:
    """A channel that keeps when each report came, in seconds, and how many tokens had been trained on by then."""

    stop_at: int | None = None
    at_s: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)

    def send(self, report: Report) -> Answer:
        """Acknowledge at once; the step's numbers are on the CPU by now, so that a GPU is done with it."""
        self.at_s[report.step] = time.perf_counter()
        self.tokens[report.step] = report.metrics.get("tokens", 0.0)
        return Answer(report.step != self.stop_at, acknowledged=report.step)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _device() -> str:
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"
